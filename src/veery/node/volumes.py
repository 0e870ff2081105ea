"""Volumes as a whole: their records in the store, the bytes and targets of this node if it is a storage node, and the
domains that use them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from veery.cluster import changes, initiators, levels, volumegate
from veery.cluster.keys import CHAP_SECRETS, DOMAINS, FENCES, INITIATORS, NODES, OWNERS, VOLUMES, Kind
from veery.cluster.store import Delete, Store, StoreUnavailable, Unchanged
from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.model.ha import FenceState
from veery.model.node import Role
from veery.model.volume import ChapSecret, Initiator, Volume
from veery.node.peers import Peers
from veery.storage.volumes import Volumes

log = logging.getLogger(__name__)

T = TypeVar("T")

REPAIR_INTERVAL_S = 10.0  # seconds between two comparisons of tgtd with the records, apart from those after each change


class VolumeRecords:
    """`veery.storage.volumes.Records` over the cluster's store."""

    def __init__(
        self,
        store: Store,
        opener: Callable[[str, ChapSecret], Awaitable[str]] | None = None,
        remembered: Callable[[], Iterable[Initiator]] = tuple,
    ) -> None:
        """`opener` opens a node's sealed password, on storage nodes. If it cannot, `remembered` is searched."""
        self._store, self._opener, self._remembered = store, opener, remembered
        self._opened: dict[str, tuple[ChapSecret, str]] = {}
        self._closed: dict[str, str] = {}  # by node: why its password is unknown
        self._memory: dict[str, dict[str, Any]] = {}  # by kind: the records as last read

    async def _known(self, kind: Kind[T]) -> dict[str, T]:
        """Return all records of `kind`, and the last readable version of one that cannot be read. Raises Unreadable if
        there is none: then it is unknown what must be kept."""
        found, bad = await kind.sifted(self._store)
        memory = self._memory.get(kind.prefix, {})
        for name, error in bad.items():
            if name not in memory:
                raise error
            found[name] = memory[name]
        self._memory[kind.prefix] = found
        return found

    async def volumes(self) -> Sequence[Volume]:
        """As Records.volumes."""
        return tuple((await self._known(VOLUMES)).values())

    async def initiators(self) -> Sequence[Initiator]:
        """As Records.initiators: those of the nodes that run domains. A node whose record cannot be read may run
        some."""
        nodes, unreadable = await NODES.sifted(self._store)
        runs = {name for name, node in nodes.items() if node.has(Role.HYPERVISOR)} | set(unreadable)
        known, secrets = await self._known(INITIATORS), await CHAP_SECRETS.readable(self._store)
        return tuple([await self._opening(one, secrets) for name, one in known.items() if name in runs])

    async def _opening(self, one: Initiator, secrets: Mapping[str, ChapSecret]) -> Initiator:
        """Return `one` with its password, or without it if it is sealed and neither opened nor remembered. If the store
        cannot be read, raise that instead."""
        secret = secrets.get(one.node)
        if one.password or self._opener is None:
            return one
        if secret is None:
            return self._unknown(one, "the node has not recorded it yet")
        opened, password = self._opened.get(one.node, (None, ""))
        if opened != secret:
            try:
                password = await self._opener(one.node, secret)
            except StoreUnavailable:
                raise
            except VeeryError as error:
                return self._unknown(one, error.message, secret.id)
            self._opened[one.node] = secret, password
        self._closed.pop(one.node, None)
        return replace(one, password=password)

    def _unknown(self, one: Initiator, why: str, id: str = "") -> Initiator:
        if self._closed.get(one.node) != why:
            log.warning("the CHAP password of %s is unknown here: %s", one.node, why)
        self._closed[one.node] = why
        fit = (each for each in self._remembered() if (each.iqn, each.user) == (one.iqn, one.user) and each.password)
        return next((each for each in fit if id in ("", initiators.identify(each.node, each.password))), one)

    async def denied(self) -> Collection[tuple[str, str]]:
        """As Records.denied: until it is admitted, a fenced node is denied every volume, including those that are made
        later."""
        fences, unreadable = await FENCES.sifted(self._store)
        shut = [name for name, fence in fences.items() if fence.state is not FenceState.ADMITTING] + [*unreadable]
        if not shut:
            return frozenset()
        known, volumes = await self._known(INITIATORS), await self._known(VOLUMES)
        return frozenset((volume, known[name].iqn) for volume in ("", *volumes) for name in shut if name in known)

    async def users(self, name: str) -> Sequence[str]:
        """As Records.users: the domains that run or are being started, and name the volume."""
        found: list[str] = []
        owners, bad = await OWNERS.sifted(self._store)
        for domain in (*owners, *bad):
            record = await DOMAINS.get(self._store, domain)
            if record is not None and any(disk.volume == name for disk in record.spec.disks):
                found.append(f"{domain} on {owners[domain].node if domain in owners else 'some node'}")
        return found

    async def put(self, volume: Volume, *, new: bool = False) -> None:
        """As Records.put."""
        conditions = [Unchanged(VOLUMES.key(volume.name), 0)] if new else []
        if not (await self._store.commit(conditions, [VOLUMES.put(volume.name, volume)])).held:
            raise Refused(f"volume {volume.name} exists already", hint="veery volume list shows it")

    async def take_tid(self, least: int) -> int:
        """As Records.take_tid."""
        return await volumegate.take_tid(self._store, least)

    async def remove(self, volume: Volume) -> None:
        """As Records.remove."""
        await self._store.commit([], [Delete(VOLUMES.key(volume.name))])


class VolumeService:
    """The orders of users for volumes. `here` is None if this node is not a storage node."""

    def __init__(self, node: str, store: Store, peers: Peers, records: VolumeRecords, here: Volumes | None) -> None:
        self.node, self.records, self.here = node, records, here
        self._store, self._peers = store, peers

    async def list(self) -> list[dict[str, object]]:
        """Return every volume of the cluster with its users."""
        users: dict[str, list[str]] = {}
        records = await DOMAINS.readable(self._store)
        for domain, owner in (await OWNERS.readable(self._store)).items():
            record = records.get(domain)
            for disk in record.spec.disks if record else ():
                users.setdefault(disk.volume, []).append(f"{domain} on {owner.node}")
        volumes = (await VOLUMES.readable(self._store)).values()
        return [{"volume": one, "used_by": users.get(one.name, [])} for one in volumes]

    async def find(self, name: str) -> Volume:
        """Return one volume. Raises Refused if it does not exist."""
        volume = await VOLUMES.get(self._store, name)
        if volume is None:
            raise NotFound(f"there is no volume {name}", hint="veery volume list shows the volumes")
        return volume

    async def storage_node(self, wanted: str = "") -> str:
        """Return the node for a new volume: `wanted`, otherwise this one, otherwise the first storage node. A node
        below the cluster's level gets no volume. Raises Refused, StoreUnavailable, Unreadable."""
        names = [name for name, node in (await NODES.readable(self._store)).items() if node.has(Role.STORAGE)]
        if wanted and wanted not in names:
            raise Refused(f"{wanted} is not a storage node", hint=f"storage nodes: {', '.join(names) or 'none'}")
        if not names:
            raise Refused("the cluster has no storage node", hint="join one with --roles storage")
        if wanted:
            await levels.require(self._store, wanted, "make a volume")
            return wanted
        for name in sorted(names, key=lambda name: name != self.node):
            if not (await levels.fault(self._store, name))[0]:
                return name
        raise Refused(
            "no storage node supports the cluster's level",
            hint="upgrade veery there; veery version -a shows all versions",
        )

    def mine(self) -> Volumes:
        """Return the volumes of this node. Raises Refused if it is not a storage node."""
        if self.here is None:
            raise Refused(f"{self.node} is not a storage node", hint="veery node list shows the storage nodes")
        return self.here

    async def resize(self, name: str, size: int) -> Volume:
        """Grow a volume of this node and tell the domain that uses it."""
        volume = await self.mine().resize(name, size)
        for domain, owner in (await OWNERS.all(self._store)).items():
            record = await DOMAINS.get(self._store, domain)
            if record is None or not any(disk.volume == name for disk in record.spec.disks):
                continue
            try:
                await self._peers.call(
                    owner.node, "POST", f"/v1/volumes/{name}/resized", {"size": volume.size}, deadline=15
                )
            except VeeryError as error:
                raise Failed(
                    f"volume {name} has grown, but {domain} on {owner.node} was not told: {error.message}",
                    hint=f"when {owner.node} answers: veery volume resize {name} {volume.size}",
                ) from error
        return volume

    async def run(self) -> None:
        """Until cancelled, on a storage node: make tgtd match the records, at each change and at intervals."""
        if self.here is None:
            return
        async with asyncio.TaskGroup() as tasks:
            changed = asyncio.Event()
            for prefix in (VOLUMES.prefix, INITIATORS.prefix, CHAP_SECRETS.prefix, NODES.prefix, FENCES.prefix):
                tasks.create_task(changes.wake(changed, self._store, prefix), name=f"watch {prefix}")
            while True:
                await self.repair()
                try:
                    async with asyncio.timeout(REPAIR_INTERVAL_S):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()

    async def repair(self) -> None:
        """Compare and correct tgtd once. A failure is logged, and the next comparison tries again."""
        try:
            await self.mine().reconcile()
        except (VeeryError, OSError) as error:
            log.warning("targets could not be reconciled: %s", error)
