"""Revocation of the certificates of removed nodes, so that etcd no longer accepts them.

Each node's certificate is recorded under certificate/NODE. The transaction that removes a node moves the record to
revoked/SERIAL. Every voter writes the revoked serials into the file that its etcd reads at each new connection
(host/crl.py). node/etcdcut.py cuts open connections."""

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
"""Cuts the open connections to etcd with revoked certificates; the argument is all revoked serial numbers."""
_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets


def certificate(cert: str) -> Certificate:
    """Return the record of a PEM certificate."""
    found = tls.facts(cert)
    return Certificate(serial=found.serial, ends=found.ends, issuer=found.issuer)


async def tell(store: Store, node: str, folder: Path) -> None:
    """Record this node's certificate, which is in `folder`, in the store. Raises Refused if it was revoked (a new node
    of the same name may have joined), StoreUnavailable, OutcomeUnknown."""
    mine = certificate((folder / "server-cert.pem").read_text())
    entry = await store.get(CERTIFICATES.key(node))
    known = _readable(entry)
    if known is not None and (
        mine.serial == known.former or (mine.serial, mine.issuer) == (known.serial, known.issuer)
    ):
        return  # if it is the former one, the new one was lost and is to be made again
    if known is not None and mine.serial == known.serial:
        mine = replace(known, issuer=mine.issuer)
    unchanged = Unchanged(CERTIFICATES.key(node), entry.revision if entry else 0)
    done = await store.commit([Unchanged(REVOKED.key(mine.serial), 0), unchanged], [CERTIFICATES.put(node, mine)])
    if not done.held:
        raise Refused(f"this certificate of {node} was revoked", hint="join the node again with an empty state folder")


async def revoke(store: Store, node: str) -> list[Put | Delete]:
    """Return the operations that revoke the certificate of `node`, for the transaction that deletes its records.
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
    """Write the store's revoked serials to the file in `folder`; return the store's revision. `vault` opens the CAs'
    keys. `cut` then cuts open connections. Raises StoreUnavailable, OSError."""
    now, snapshot = time.time(), await store.scan(REVOKED.prefix)
    found = _serials(snapshot.entries, now)
    crl.write(folder, found, epoch=now)
    if cut is not None:
        await cut(found)
    await publish(store, found, vault, epoch=now)
    log.info(decision("certificates.revoked", count=len(found)))
    return snapshot.revision


async def serials(store: Store, now: float) -> list[str]:
    """Return the serial numbers (hex) of the revoked certificates that have not expired. Raises StoreUnavailable."""
    return _serials((await store.scan(REVOKED.prefix)).entries, now)


def _serials(entries: Sequence[Entry], now: float) -> list[str]:
    names = [REVOKED.name(entry.key) for entry in entries if _ends(entry) > now]
    return [name for name in names if _SERIAL.fullmatch(name)]  # any other name is no serial number


async def publish(store: Store, listed: Sequence[str], vault: Vault | None = None, *, epoch: float) -> None:
    """Write the list of revoked serials `listed` to the store, signed once by each trusted CA: OpenSSL needs a list of
    the CA that signed the checked certificate. Before the first serial there is no list. Raises StoreUnavailable,
    OutcomeUnknown."""
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
        except (Refused, Failed) as error:  # its key may be lost: keep its last list until the CA is dropped
            last = crl.signed_by(before.value.decode(), ca) if before is not None and _listed(before) else ""
            if not last:
                log.warning("the list of revoked certificates is not signed: %s", error.message)
                return
            pem += last
    if before is None or before.value != pem.encode():
        await store.commit([Unchanged(CA_LIST, revision)], [Put(CA_LIST, pem.encode())])


def _by(entry: Entry) -> int:
    """Return the number of CAs that signed the list."""
    return entry.value.count(crl.BEGIN.encode())


def _listed(entry: Entry) -> frozenset[str] | None:
    try:
        return crl.listed(entry.value.decode())
    except ValueError:
        return None


async def keep(store: Store, folder: Path) -> None:
    """Keep the CA's list in `folder` equal to the store's; return when the watch must restart. Raises StoreUnavailable,
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
    """Write the list if it is readable. With an unreadable one QEMU would refuse every peer, so the old file stays."""
    if entry.key == CA_LIST and _listed(entry) is not None:
        write_atomic(folder / crl.CA_FILE, entry.value, mode=0o644, sync=True)


def _ends(entry: Entry) -> float:
    try:
        return REVOKED.value(entry).ends
    except Unreadable:
        return math.inf


async def follow(store: Store, folder: Path, vault: Vault | None = None, *, cut: Cut | None = None) -> None:
    """Keep the file in `folder` up to date; return when the watch must restart. Raises StoreUnavailable, OSError."""
    revision = await write(store, folder, vault, cut=cut)
    try:
        async for _ in store.watch(REVOKED.prefix, revision):
            await write(store, folder, vault, cut=cut)
    except Compacted:
        return
    raise StoreUnavailable("the watch of revoked certificates has ended")
