"""Certificates of nodes that were put out: etcd lets them in no more.

Each node's certificate stands under certificate/NODE; putting the node out moves it to revoked/SERIAL, in the same
transaction that takes its records away. Every voter writes these into the file that its etcd reads at each new
connection (host/crl.py). Connections that stand are cut by node/etcdcut.py."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from veery.cluster import authorities
from veery.cluster.keys import CA_LIST, CERTIFICATES, CLUSTER, REVOKED, Unreadable
from veery.cluster.store import Compacted, Delete, Entry, Put, Store, StoreUnavailable, Unchanged
from veery.cluster.vault import Vault, ca_key
from veery.errors import Failed, Refused
from veery.host import crl, tls
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model.cluster import Certificate, Revoked

log = logging.getLogger(__name__)

Cut = Callable[[Collection[str]], Awaitable[None]]
"""Ends connections to etcd that began with certificates that were put out since; it is given all serial numbers."""
_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets


def certificate(cert: str) -> Certificate:
    """What is remembered of a PEM certificate."""
    found = tls.facts(cert)
    return Certificate(serial=found.serial, ends=found.ends, issuer=found.issuer)


async def tell(store: Store, node: str, folder: Path) -> None:
    """Have the store know this node's certificate, which is in `folder`. Raises Refused where it was put out (its name
    may have joined anew), StoreUnavailable, OutcomeUnknown."""
    mine = certificate((folder / "server-cert.pem").read_text())
    entry = await store.get(CERTIFICATES.key(node))
    known = _readable(entry)
    if known is not None and (
        mine.serial == known.former or (mine.serial, mine.issuer) == (known.serial, known.issuer)
    ):
        return  # the former: the new one was lost on its way, and is to be made again
    if known is not None and mine.serial == known.serial:
        mine = replace(known, issuer=mine.issuer)
    unchanged = Unchanged(CERTIFICATES.key(node), entry.revision if entry else 0)
    done = await store.commit([Unchanged(REVOKED.key(mine.serial), 0), unchanged], [CERTIFICATES.put(node, mine)])
    if not done.held:
        raise Refused(
            f"this certificate of {node} was put out of the cluster", hint="join it again with an empty state folder"
        )


async def revoke(store: Store, node: str) -> list[Put | Delete]:
    """The operations that make the certificate of `node` worthless; with its record they are to be done at once.
    Raises StoreUnavailable."""
    known = await CERTIFICATES.get(store, node)
    gone: list[Put | Delete] = [Delete(CERTIFICATES.key(node))]
    if known is not None:
        gone.append(REVOKED.put(known.serial, Revoked(node=node, ends=known.ends)))
        if known.former:
            gone.append(REVOKED.put(known.former, Revoked(node=node, ends=known.former_ends)))
    return gone


def _readable(entry: Entry | None) -> Certificate | None:
    try:
        return CERTIFICATES.value(entry) if entry else None
    except Unreadable:
        return None


async def write(store: Store, folder: Path, vault: Vault | None = None, *, cut: Cut | None = None) -> int:
    """Bring the file in `folder` to what the store says; its revision. `vault` opens the CAs' keys; `cut` then ends
    connections that stand. Raises StoreUnavailable, OSError."""
    now, snapshot = time.time(), await store.scan(REVOKED.prefix)
    found = _serials(snapshot.entries, now)
    crl.write(folder, found, epoch=now)
    if cut is not None:
        await cut(found)
    await publish(store, found, vault, epoch=now)
    log.info(decision("certificates.revoked", count=len(found)))
    return snapshot.revision


async def serials(store: Store, now: float) -> list[str]:
    """The serial numbers (hex) of the certificates that were put out and have not ended. Raises StoreUnavailable."""
    return _serials((await store.scan(REVOKED.prefix)).entries, now)


def _serials(entries: Sequence[Entry], now: float) -> list[str]:
    names = [REVOKED.name(entry.key) for entry in entries if _ends(entry) > now]
    return [name for name in names if _SERIAL.fullmatch(name)]  # no other name is a certificate's


async def publish(store: Store, listed: Sequence[str], vault: Vault | None = None, *, epoch: float) -> None:
    """Have the list in the store say `listed`, once by each CA that is trusted: OpenSSL asks for one of the CA that
    signed what it checks. There is none as long as there is nothing to say. Raises StoreUnavailable, OutcomeUnknown."""
    before = await store.get(CA_LIST)
    if not listed and before is None:
        return
    if await store.get(CLUSTER) is None:
        return
    trusted = (await authorities.load(store)).authorities.trusted
    if before is not None and _listed(before) == frozenset(listed) and _by(before) == len(trusted):
        return
    revision, pem = before.revision if before else 0, ""
    for ca in trusted:
        try:
            pem += crl.sign(ca, await ca_key(store, vault, ca), listed, number=revision + 1, epoch=epoch)
        except StoreUnavailable:
            raise
        except (Refused, Failed) as error:  # its key may be lost: its last list must do until the CA is dropped
            last = crl.signed_by(before.value.decode(), ca) if before is not None and _listed(before) else ""
            if not last:
                log.warning("the list of revoked certificates is not signed: %s", error.message)
                return
            pem += last
    if before is None or before.value != pem.encode():
        await store.commit([Unchanged(CA_LIST, revision)], [Put(CA_LIST, pem.encode())])


def _by(entry: Entry) -> int:
    """How many CAs have signed the list."""
    return entry.value.count(crl.BEGIN.encode())


def _listed(entry: Entry) -> frozenset[str] | None:
    try:
        return crl.listed(entry.value.decode())
    except ValueError:
        return None


async def keep(store: Store, folder: Path) -> None:
    """Keep the CA's list in `folder` as the store has it; returns when the watch breaks off. Raises StoreUnavailable,
    OSError."""
    snapshot = await store.scan(CA_LIST)
    for entry in snapshot.entries:
        _write_list(folder, entry)
    try:
        async for change in store.watch(CA_LIST, snapshot.revision):
            if change.entry is not None:
                _write_list(folder, change.entry)
    except Compacted:
        return
    raise StoreUnavailable("the watch of the CA's list has ended")


def _write_list(folder: Path, entry: Entry) -> None:
    """One that cannot be read would keep every peer of QEMU out: the old one stays."""
    if entry.key == CA_LIST and _listed(entry) is not None:
        write_atomic(folder / crl.CA_FILE, entry.value, mode=0o644, sync=True)


def _ends(entry: Entry) -> float:
    try:
        return REVOKED.value(entry).ends
    except Unreadable:
        return math.inf


async def follow(store: Store, folder: Path, vault: Vault | None = None, *, cut: Cut | None = None) -> None:
    """Keep the file in `folder` as the store says; returns when the watch breaks off. Raises StoreUnavailable."""
    revision = await write(store, folder, vault, cut=cut)
    try:
        async for _ in store.watch(REVOKED.prefix, revision):
            await write(store, folder, vault, cut=cut)
    except Compacted:
        return
    raise StoreUnavailable("the watch of revoked certificates has ended")
