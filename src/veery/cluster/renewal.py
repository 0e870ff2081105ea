"""Renewal of a node's certificate while everything keeps running.

The node keeps its key and gets a new certificate for it. So the key and certificate files match at every moment, also
for etcd and QEMU, which read two files. The steps:

    sign       one transaction records the new certificate in certificate/NODE, and the one in use as `former`
    install    the node replaces its files; connections opened from then on use the new certificate
    release    some minutes later, while no move is in progress, the former is revoked (revoked/SERIAL)

Both certificates are accepted between the first and the last step. A new certificate that was lost before `install`
is revoked when the next one is signed."""

from __future__ import annotations

import enum
import ipaddress
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from veery.cluster import authorities, keys, revocation
from veery.cluster.store import Delete, Put, Store, Unchanged
from veery.cluster.vault import Vault
from veery.errors import Failed, Refused
from veery.host import tls
from veery.host.log import decision
from veery.model import endpoint, newer
from veery.model.cluster import Certificate, Revoked

log = logging.getLogger(__name__)

RENEW_FRACTION = 2 / 3  # of a certificate's lifetime, after which it is renewed
OVERLAP_S = 600.0  # the former certificate is accepted for this time, and longer while a move is in progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """The body of POST /v1/certificates: a certificate request, PEM, and a future additional address of the node
    ("": none)."""

    csr: str
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewReply:
    """The answer of POST /v1/certificates: the certificate, PEM."""

    cert: str


class Step(enum.StrEnum):
    """The next step of a node for its certificate."""

    NOTHING = "nothing"
    """The certificate is in use and valid."""
    RENEW = "renew"
    """It has passed two thirds of its lifetime, its CA no longer signs, or the newly signed one was lost."""
    RELEASE = "release"
    """The former certificate is no longer in use."""


def decide(
    held: tls.Facts, known: Certificate | None, *, signing: str, now: float, idle: bool, overlap: float = OVERLAP_S
) -> Step:
    """Return the next step. `held`: the certificate in the node's folder. `known`: its record. `signing`: the id of the
    CA that signs. `idle`: no move is in progress on this node."""
    if known is None:
        return Step.NOTHING  # the membership task records it first
    if held.serial != known.serial:
        return Step.RENEW
    if known.former:
        return Step.RELEASE if idle and now >= known.since + overlap else Step.NOTHING
    due = held.begins + RENEW_FRACTION * (held.ends - held.begins)
    return Step.RENEW if held.issuer != signing or now >= due else Step.NOTHING


async def sign(
    store: Store, vault: Vault | None, shown: tls.Shown, csr: str, *, epoch: float, address: str = ""
) -> str:
    """Return a new certificate (PEM) for the node that presented `shown`, which stays in use meanwhile. It is valid for
    the node's addresses and for `address`, the node's future address.

    Raises Refused if `shown` is no node's certificate, this node is no voter, the request is invalid, or `address` is
    another node's; Failed, StoreUnavailable, OutcomeUnknown: the node may ask again."""
    entry, record = await store.get(keys.CERTIFICATES.key(shown.name)), await keys.NODES.get(store, shown.name)
    known = keys.CERTIFICATES.value(entry) if entry else None
    usable = {known.serial, known.former} - {""} if known else set()
    if entry is None or known is None or record is None or shown.serial not in usable:
        raise Refused(f"{shown.name} shows no certificate of a node", hint="join it again")
    addresses = [record.address, *record.former]
    if address:
        await _free(store, shown.name, address)
        addresses.append(address)
    ca = await authorities.signer(store, vault)
    cert = tls.sign(ca, csr, name=record.name, addresses=addresses, epoch=epoch)
    ends = known.ends if shown.serial == known.serial else known.former_ends
    fresh = newer.kept(revocation.certificate(cert), known)
    fresh = replace(fresh, former=shown.serial, former_ends=ends, since=epoch)
    operations: list[Put | Delete] = [keys.CERTIFICATES.put(shown.name, fresh)]
    for serial, end in ((known.serial, known.ends), (known.former, known.former_ends)):
        if serial not in ("", shown.serial):
            operations.append(keys.REVOKED.put(serial, Revoked(node=shown.name, ends=end)))
    conditions = [Unchanged(entry.key, entry.revision)]
    if not (await store.commit(conditions, operations)).held:
        raise Refused(f"the certificate of {shown.name} changed meanwhile", hint=f"veery node renew {shown.name}")
    log.info(decision("certificate.signed", node=shown.name, serial=fresh.serial, former=shown.serial))
    return cert


async def _free(store: Store, name: str, address: str) -> None:
    """Raise Refused unless node `name` may have `address`."""
    try:
        plain = str(ipaddress.ip_address(address))
    except ValueError as error:
        raise Refused(f"not an IP address: {address!r}", hint="veery node readdress --help") from error
    for other in (await keys.NODES.readable(store)).values():
        if other.name != name and plain in map(endpoint.canonical, other.addresses):
            raise Refused(f"{address} is {other.name}'s address", hint="veery node list shows the addresses")


def request(folder: Path, name: str) -> str:
    """Return the certificate request (PEM) for the key in `folder`. Raises OSError, Refused."""
    return tls.request_for(name, (folder / "server-key.pem").read_text())


def install(folder: Path, name: str, cert: str) -> tls.Facts:
    """Write a new certificate into `folder`; return its facts. Raises Failed if it is for another key, OSError."""
    before, after = tls.facts((folder / "server-cert.pem").read_text()), tls.facts(cert)
    if after.public != before.public:
        raise Failed("the new certificate is for another key", hint=f"veery node renew {name}")
    tls.replace_certificate(folder, cert)
    log.info(decision("certificate.renewed", node=name, serial=after.serial, former=before.serial))
    return after


def mend(folder: Path) -> None:
    """Complete an install after a crash between two files: the server's file was written first. Raises OSError."""
    cert = (folder / "server-cert.pem").read_text()
    if (folder / "client-cert.pem").read_text() != cert:
        tls.replace_certificate(folder, cert)


async def release(store: Store, node: str, serial: str) -> bool:
    """Revoke the former certificate of `node`, which now uses the one with `serial`; return whether that was done.
    Raises StoreUnavailable, OutcomeUnknown: call it again."""
    entry = await store.get(keys.CERTIFICATES.key(node))
    if entry is None:
        return False
    known = keys.CERTIFICATES.value(entry)
    if known.serial != serial or not known.former:
        return False
    done = await store.commit(
        [Unchanged(entry.key, entry.revision)],
        [
            keys.CERTIFICATES.put(node, replace(known, former="", former_ends=0.0)),
            keys.REVOKED.put(known.former, Revoked(node=node, ends=known.former_ends)),
        ],
    )
    if done.held:
        log.info(decision("certificate.released", node=node, serial=known.former))
    return done.held
