"""Certificates of nodes that were put out: etcd lets them in no more.

Each node's certificate stands under certificate/NODE; putting the node out moves it to revoked/SERIAL, in the same
transaction that takes its records away. Every voter writes these into the file that its etcd reads at each new
connection (host/crl.py). A connection that stands is not ended by it: docs/hosts.md."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

from veery.cluster.keys import CA_KEY, CA_LIST, CERTIFICATES, CLUSTER, REVOKED, Unreadable
from veery.cluster.store import Compacted, Delete, Entry, Put, Store, StoreUnavailable, Unchanged
from veery.errors import Refused
from veery.host import crl
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model import codec
from veery.model.cluster import Certificate, Cluster, Revoked

log = logging.getLogger(__name__)

_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets


def certificate(cert: str) -> Certificate:
    """What is remembered of a PEM certificate."""
    serial, ends = crl.serial(cert)
    return Certificate(serial=serial, ends=ends)


async def tell(store: Store, node: str, folder: Path) -> None:
    """Have the store know this node's certificate, which is in `folder`. Raises Refused where it was put out (its name
    may have joined anew), StoreUnavailable, OutcomeUnknown."""
    mine = certificate((folder / "server-cert.pem").read_text())
    if await CERTIFICATES.get(store, node) == mine:
        return
    done = await store.commit([Unchanged(REVOKED.key(mine.serial), 0)], [CERTIFICATES.put(node, mine)])
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
    return gone


async def write(store: Store, folder: Path) -> int:
    """Bring the file in `folder` to what the store says; its revision. Raises StoreUnavailable, OSError."""
    now, snapshot = time.time(), await store.scan(REVOKED.prefix)
    names = [REVOKED.name(entry.key) for entry in snapshot.entries if _ends(entry) > now]
    serials = [name for name in names if _SERIAL.fullmatch(name)]  # no other name is a certificate's
    crl.write(folder, serials, epoch=now)
    await publish(store, serials, epoch=now)
    log.info(decision("certificates.revoked", count=len(serials)))
    return snapshot.revision


async def publish(store: Store, serials: Sequence[str], *, epoch: float) -> None:
    """Have the CA's list in the store say `serials`: there is none as long as there is nothing to say. Raises
    StoreUnavailable, OutcomeUnknown."""
    before, key, cluster = await store.get(CA_LIST), await store.get(CA_KEY), await store.get(CLUSTER)
    if key is None or cluster is None or (not serials and before is None):
        return
    if before is not None and _listed(before) == frozenset(serials):
        return
    revision = before.revision if before else 0
    ca = codec.decode(cluster.value, Cluster).ca
    pem = crl.sign(ca, key.value.decode(), serials, number=revision + 1, epoch=epoch)
    await store.commit([Unchanged(CA_LIST, revision)], [Put(CA_LIST, pem.encode())])


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


async def follow(store: Store, folder: Path) -> None:
    """Keep the file in `folder` as the store says; returns when the watch breaks off. Raises StoreUnavailable."""
    revision = await write(store, folder)
    try:
        async for _ in store.watch(REVOKED.prefix, revision):
            await write(store, folder)
    except Compacted:
        return
    raise StoreUnavailable("the watch of revoked certificates has ended")
