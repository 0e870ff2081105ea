"""Heartbeats on storage, both ends: a hypervisor writes them, a storage node tells how old each node's last one is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from veery.errors import Refused, VeeryError
from veery.host.clock import Clock
from veery.model import codec
from veery.model.ha import StorageHeartbeat, StorageHeartbeats
from veery.model.node import Node, Role
from veery.model.volume import Initiator, IscsiLun
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.storage.heartbeat import HeartbeatBlock, HeartbeatFile, HeartbeatSession, slot

log = logging.getLogger(__name__)

BEAT = 1.0  # seconds between two heartbeats
LATE = 2.0  # seconds for one to be taken
LOOK = 0.2  # seconds between a storage node's looks at the blocks
SETTLED = 3.0  # seconds that a storage node has looked before its word on who is silent counts
ASK = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReport:
    """The answer of GET /v1/heartbeats: where heartbeats are to be written, for how many seconds this node has watched
    them, and the last sign of each node that it saw one of."""

    node: str
    portal: str
    iqn: str
    watched: float
    signs: dict[str, StorageHeartbeat]


class HeartbeatWatcher:
    """A storage node's end. Works without the store."""

    def __init__(
        self, node: Node, file: HeartbeatFile, node_cache: NodeCache, clock: Clock, *, portal: str, iqn: str
    ) -> None:
        """`portal` and `iqn` are of the target that serves `file`."""
        self._node, self._file, self._node_cache, self._clock = node, file, node_cache, clock
        self._portal, self._iqn = portal, iqn
        self._since = clock.now()
        self._numbers: dict[str, int] = {}
        self._seen: dict[str, tuple[float, bool]] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            self.look()
            await self._clock.sleep(LOOK)

    def look(self) -> None:
        """Read every node's block once. A number seen for the first time may be old: only its change is a sign."""
        now = self._clock.now()
        for name, node in self._node_cache.nodes.items():
            beat = self._file.read(slot(node.address))
            if beat is None or beat.node != name:
                continue
            if self._numbers.get(name, beat.number) != beat.number:
                self._seen[name] = (now, beat.stopped)
            self._numbers[name] = beat.number

    def told(self) -> HeartbeatReport:
        """What is known now."""
        now = self._clock.now()
        signs = {
            name: StorageHeartbeat(age=round(now - at, 2), stopped=stopped)
            for name, (at, stopped) in self._seen.items()
        }
        return HeartbeatReport(
            node=self._node.name, portal=self._portal, iqn=self._iqn, watched=round(now - self._since, 2), signs=signs
        )


class HeartbeatWriter:
    """A hypervisor's end: one session to each storage node, one beat a second in each."""

    def __init__(
        self,
        node: Node,
        mine: Callable[[], Awaitable[Initiator]],
        *,
        node_cache: NodeCache,
        peers: Peers,
        clock: Clock,
        stopped: Callable[[], bool],
    ) -> None:
        """`mine` gives this node's credentials; `peers` asks the store for nothing; `stopped` tells whether our domains
        are ended and none starts."""
        self._node, self._mine, self._node_cache = node, mine, node_cache
        self._peers, self._clock, self._stopped = peers, clock, stopped
        self._number = int(clock.epoch() * 1000)  # goes on after a restart: a number is never written twice
        self.troubles: dict[str, str] = {}

    def storage(self) -> tuple[str, ...]:
        """The storage nodes that beats are written to."""
        return tuple(sorted(name for name, node in self._node_cache.nodes.items() if node.has(Role.STORAGE)))

    def addresses(self) -> dict[str, str]:
        """Where the storage nodes' targets are reached, by node."""
        return {name: self._node_cache.nodes[name].storage for name in self.storage()}

    async def run(self) -> None:
        """For ever: one task a storage node, as they come and go."""
        at_work: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                wanted = set(self.storage())
                for name in wanted - set(at_work):
                    at_work[name] = tasks.create_task(self._beat_for_ever(name), name=f"heartbeat {name}")
                for name in set(at_work) - wanted:
                    at_work.pop(name).cancel()
                    self.troubles.pop(name, None)
                await self._clock.sleep(BEAT)

    async def _beat_for_ever(self, name: str) -> None:
        lun: IscsiLun | None = None
        while True:
            try:
                lun = lun or await self._lun(name)
                await self._beat(name, lun)
            except VeeryError as error:
                if name not in self.troubles:
                    log.warning("heartbeats to %s: %s", name, error.message)
                self.troubles[name] = error.message
                if isinstance(error, Refused):  # its portal may have changed
                    lun = None
            await self._clock.sleep(BEAT / 2)

    async def _beat(self, name: str, lun: IscsiLun) -> None:
        session = await HeartbeatSession.begin(lun, deadline=LATE)
        try:
            while True:
                self._number += 1
                beat = HeartbeatBlock(self._node.name, self._number, self._stopped())
                await session.write(slot(self._node.address), beat, deadline=LATE)
                if self.troubles.pop(name, None):
                    log.info("heartbeats to %s are taken again", name)
                await self._clock.sleep(BEAT)
        finally:
            session.close()

    async def _lun(self, name: str) -> IscsiLun:
        mine = await self._mine()
        told = codec.convert(await self._peers.call(name, "GET", "/v1/heartbeats", deadline=ASK), HeartbeatReport)
        return IscsiLun(
            portal=told.portal, iqn=told.iqn, lun=1, initiator=mine.iqn, user=mine.user, password=mine.password
        )


async def ask(peers: Peers, nodes: Mapping[str, Node]) -> StorageHeartbeats:
    """What the storage nodes among `nodes` tell, asked just now; of several words on a node the youngest counts. A
    storage node that has only begun to watch is no witness. Raises nothing."""

    async def one(name: str) -> HeartbeatReport | None:
        try:
            return codec.convert(await peers.call(name, "GET", "/v1/heartbeats", deadline=ASK), HeartbeatReport)
        except VeeryError:
            return None

    told = await asyncio.gather(*(one(name) for name, node in nodes.items() if node.has(Role.STORAGE)))
    witnesses = [watch for watch in told if watch is not None and watch.watched >= SETTLED]
    youngest: dict[str, StorageHeartbeat] = {}
    for watch in witnesses:
        for name, sign in watch.signs.items():
            if name not in youngest or sign.age < youngest[name].age:
                youngest[name] = sign
    return StorageHeartbeats(witnesses=len(witnesses), ages=youngest)
