"""Fences from the point of view of this node.

As a storage node it cuts other nodes off from its targets. While it is fenced itself, it reports what runs here and
ends stale copies. It also takes an operator's confirmation. ARCHITECTURE.md, "Safety": a proof, never an assumption."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from veery.cluster import fencing
from veery.cluster.keys import FENCES, NODES, OWNERS
from veery.cluster.store import Store
from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.ha import orders
from veery.ha.fence.base import Fence
from veery.ha.fence.power import PowerFence
from veery.ha.fence.storage import StorageFence
from veery.ha.fence.watchdog import WatchdogFence
from veery.host.clock import Clock
from veery.host.mounts import shared
from veery.hypervisor.base import Driver
from veery.model.codec import convert
from veery.model.domain import DomainSpec
from veery.model.fence import Clean, Cut, Fenced
from veery.node.domains import Domains
from veery.node.peers import Peers
from veery.node.volumes import VolumeService
from veery.storage import sessions

log = logging.getLogger(__name__)

CLEAN_DEADLINE_S = 15.0  # seconds for a node to report its copies


def writes_shared(spec: DomainSpec) -> bool:
    """Return True if the domain writes to a disk that another node could also write to."""
    return any(disk.readwrite and (disk.volume or (disk.target and shared(disk.target))) for disk in spec.disks)


class Fencing:
    """The fencing service of a daemon."""

    def __init__(
        self,
        node: str,
        store: Store,
        *,
        peers: Peers,
        volumes: VolumeService,
        domains: Domains,
        clock: Clock,
        power: PowerFence,
    ) -> None:
        """`node` is the name of this node."""
        self.node = node
        self._store, self._peers, self._volumes = store, peers, volumes
        self._domains, self._clock = domains, clock
        self.ways: tuple[Fence, ...] = (StorageFence(store, self._ask), power, WatchdogFence(store))

    @property
    def _driver(self) -> Driver:
        return self._domains.driver

    async def _ask(self, node: str, method: str, path: str, *, deadline: float) -> Any:
        return await self._peers.call(node, method, path, deadline=deadline)

    async def test(self, name: str) -> list[dict[str, object]]:
        """Return, for each fence method in order, whether it would work for node `name`. Changes nothing. Raises
        Refused."""
        if await NODES.get(self._store, name) is None:
            raise NotFound(f"no node {name!r}", hint="veery node list shows the nodes")
        told = await asyncio.gather(*(way.test(name) for way in self.ways), return_exceptions=True)
        rows: list[dict[str, object]] = []
        for way, answer in zip(self.ways, told, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, VeeryError):
                raise answer
            good = isinstance(answer, str)
            said = answer.message if isinstance(answer, VeeryError) else answer
            rows.append({"method": way.method, "works": good, "told": said})
        return rows

    # ---- the records
    async def list(self) -> list[Fenced]:
        """Return every fence."""
        return [await fencing.require(self._store, name) for name in await FENCES.readable(self._store)]

    async def show(self, name: str) -> Fenced:
        """Return the fence of node `name`. Raises Refused if it is not fenced."""
        return await fencing.require(self._store, name)

    async def begin(self, name: str, *, by: str) -> Fenced:
        """Write the fence of node `name`, or return the existing one. Raises Refused."""
        return await fencing.begin(self._store, name, by=by, epoch=self._clock.epoch())

    async def confirm(self, name: str, *, by: str) -> Fenced:
        """Record an operator's confirmation that node `name` is off. Raises Refused while the node is present."""
        await orders.confirm(self._store, name, by=by, now=self._clock.epoch())
        return await fencing.require(self._store, name)

    async def lift(self, name: str) -> Clean:
        """Admit node `name` again, once it reports that it has no stale copy. Raises Refused."""
        fence = await fencing.require(self._store, name)
        if name == self.node:
            clean = await self.clean()
        else:
            told = await self._peers.call(name, "GET", "/v1/clean", deadline=CLEAN_DEADLINE_S)
            clean = convert(told, Clean)
        await fencing.lift(self._store, fence, clean)
        return clean

    # ---- as a storage node
    async def cut(self, name: str) -> Cut:
        """Cut the fenced node `name` off from every target here, and prove it.

        Raises Refused if it is not fenced, because the next check of the records would admit it again. Raises
        OutcomeUnknown if it is not proven, or Failed."""
        fence = await self._of(name)
        begun = self._clock.now()
        closed = await self._volumes.mine().cut_all(fence.iqn, await self._addresses(fence))
        return await self._told(fence, closed, self._clock.now() - begun)

    async def proof(self, name: str) -> Cut:
        """Prove that the node is still cut off: read it back from tgtd. Changes nothing. Raises Failed if it is not."""
        fence = await self._of(name)
        begun = self._clock.now()
        if why := await self._volumes.mine().way_in(fence.iqn, await self._addresses(fence)):
            raise Failed(
                f"{self.node}: {name} is not shut out: {why}", hint="nothing to do: the cluster cuts it off again"
            )
        return await self._told(fence, 0, self._clock.now() - begun)

    async def admit(self, name: str, revision: int) -> None:
        """Admit node `name` again here, if its fence is at `revision` and ADMITTING; otherwise raise Refused.

        The records are read again under the lock that `cut` uses, so a late order changes nothing. Raises Failed."""
        fence = await fencing.require(self._store, name)
        if fence.shut or fence.record.revision != revision:
            raise Refused(
                f"the fence of {name} is not in the state ADMITTING at revision {revision}",
                hint="veery fence list shows it",
            )
        await self._volumes.mine().reconcile()

    async def _addresses(self, fence: Fenced) -> frozenset[str]:
        """Return the addresses of the fenced node alone: it may have logged in under another node's name."""
        return sessions.alone(sessions.homes((await NODES.readable(self._store)).values()), fence.iqn)

    async def _of(self, name: str) -> Fenced:
        self._volumes.mine()
        fence = await fencing.require(self._store, name)
        if not fence.shut:
            raise Refused(f"{name} is being admitted again", hint="veery fence list shows its fence")
        return fence

    async def _told(self, fence: Fenced, closed: int, seconds: float) -> Cut:
        return Cut(
            storage=self.node,
            node=fence.node,
            fence=fence.created,
            targets=len(await self._volumes.mine().targets()),
            closed=closed,
            milliseconds=round(1000 * seconds, 1),
        )

    # ---- as a node that is fenced, or was
    async def clean(self) -> Clean:
        """Return what runs here, and which copies are stale. The store is read first: a domain that appears later
        claimed its name later. Raises StoreUnavailable."""
        fence = await fencing.read(self._store, self.node)
        snapshot = await self._store.scan(OWNERS.prefix)
        owners = {OWNERS.name(entry.key): OWNERS.value(entry) for entry in snapshot.entries}
        kept: dict[str, int] = {}
        stale: list[str] = []
        for reading in await self._driver.list():
            owner = owners.get(reading.name)
            if owner is None or owner.node != self.node:
                stale.append(reading.name)
                continue
            spec, _ = await self._driver.spec(reading.uuid)
            # An owner key written after the fence does not allow an older instance: the domain may have run elsewhere
            # in between.
            if fence is not None and owner.revision > fence.created and writes_shared(spec):
                stale.append(reading.name)
            else:
                kept[reading.name] = owner.revision
        return Clean(
            node=self.node,
            revision=snapshot.revision,
            fence=fence.created if fence else 0,
            kept=kept,
            stale=tuple(stale),
        )

    async def end_stale(self) -> tuple[str, ...]:
        """End the stale copies here while this node is fenced; return the ended ones. Raises StoreUnavailable."""
        if await FENCES.get(self._store, self.node) is None:
            return ()
        ended = []
        for name in (await self.clean()).stale:
            try:
                async with self._domains.held(name) as reading:
                    if name in (await self.clean()).stale:
                        log.error(
                            "domain=%s destroyed here: this node is fenced, and the domain may run elsewhere", name
                        )
                        await self._domains.end(reading)
                        ended.append(name)
            except Refused as error:
                log.warning("domain=%s: the stale copy is not ended yet: %s", name, error.message)
        return tuple(ended)
