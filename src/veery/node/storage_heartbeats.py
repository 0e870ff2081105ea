"""Heartbeats on storage: a hypervisor writes them, and a storage node reports how old each node's last one is."""

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

HEARTBEAT_INTERVAL_S = 1.0  # seconds between two heartbeats
WRITE_TIMEOUT_S = 2.0  # seconds for the target to accept one
READ_INTERVAL_S = 0.2  # seconds between two reads of the blocks on a storage node
WATCH_LEAST_S = 3.0  # seconds that a storage node must have watched before its report of silence counts
ANSWER_TIMEOUT_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReport:
    """The answer of GET /v1/heartbeats: where to write heartbeats, for how many seconds this node has watched them, and
    the last heartbeat of each node that it saw."""

    node: str
    portal: str
    iqn: str
    watched: float
    signs: dict[str, StorageHeartbeat]


class HeartbeatWatcher:
    """The watcher on a storage node. It works without the store."""

    def __init__(
        self, node: Node, file: HeartbeatFile, node_cache: NodeCache, clock: Clock, *, portal: str, iqn: str
    ) -> None:
        """`portal` and `iqn` are those of the target that serves `file`."""
        self._node, self._file, self._node_cache, self._clock = node, file, node_cache, clock
        self._portal, self._iqn = portal, iqn
        self._since = clock.now()
        self._numbers: dict[str, int] = {}
        self._seen: dict[str, tuple[float, bool]] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(READ_INTERVAL_S)

    def look(self) -> None:
        """Read every node's block once. A number seen for the first time may be old, so only a change of it is a
        heartbeat."""
        now = self._clock.now()
        for name, node in self._node_cache.nodes.items():
            beat = self._file.read(slot(node.address))
            if beat is None or beat.node != name:
                continue
            if self._numbers.get(name, beat.number) != beat.number:
                self._seen[name] = (now, beat.stopped)
            self._numbers[name] = beat.number

    def told(self) -> HeartbeatReport:
        """Return what is known now."""
        now = self._clock.now()
        signs = {
            name: StorageHeartbeat(age=round(now - at, 2), stopped=stopped)
            for name, (at, stopped) in self._seen.items()
        }
        return HeartbeatReport(
            node=self._node.name, portal=self._portal, iqn=self._iqn, watched=round(now - self._since, 2), signs=signs
        )


class HeartbeatWriter:
    """The writer on a hypervisor: one session to each storage node, with one heartbeat a second in each."""

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
        """`mine` returns this node's credentials. `peers` does not need the store. `stopped` returns True if this node
        has ended its domains and starts none."""
        self._node, self._mine, self._node_cache = node, mine, node_cache
        self._peers, self._clock, self._stopped = peers, clock, stopped
        self._number = int(clock.epoch() * 1000)  # continues after a restart: a number is never written twice
        self.troubles: dict[str, str] = {}

    def storage(self) -> tuple[str, ...]:
        """Return the storage nodes that receive heartbeats."""
        return tuple(sorted(name for name, node in self._node_cache.nodes.items() if node.has(Role.STORAGE)))

    def addresses(self) -> dict[str, str]:
        """Return the address of each storage node's target, by node."""
        return {name: self._node_cache.nodes[name].storage for name in self.storage()}

    async def run(self) -> None:
        """Until cancelled: run one task for each storage node, as they come and go."""
        at_work: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                wanted = set(self.storage())
                for name in wanted - set(at_work):
                    at_work[name] = tasks.create_task(self._beat_for_ever(name), name=f"heartbeat {name}")
                for name in set(at_work) - wanted:
                    at_work.pop(name).cancel()
                    self.troubles.pop(name, None)
                await self._clock.sleep(HEARTBEAT_INTERVAL_S)

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
            await self._clock.sleep(HEARTBEAT_INTERVAL_S / 2)

    async def _beat(self, name: str, lun: IscsiLun) -> None:
        session = await HeartbeatSession.begin(lun, deadline=WRITE_TIMEOUT_S)
        try:
            while True:
                self._number += 1
                beat = HeartbeatBlock(self._node.name, self._number, self._stopped())
                await session.write(slot(self._node.address), beat, deadline=WRITE_TIMEOUT_S)
                if self.troubles.pop(name, None):
                    log.info("heartbeats to %s are accepted again", name)
                await self._clock.sleep(HEARTBEAT_INTERVAL_S)
        finally:
            session.close()

    async def _lun(self, name: str) -> IscsiLun:
        mine = await self._mine()
        told = codec.convert(
            await self._peers.call(name, "GET", "/v1/heartbeats", deadline=ANSWER_TIMEOUT_S), HeartbeatReport
        )
        return IscsiLun(
            portal=told.portal, iqn=told.iqn, lun=1, initiator=mine.iqn, user=mine.user, password=mine.password
        )


async def ask(peers: Peers, nodes: Mapping[str, Node]) -> StorageHeartbeats:
    """Ask the storage nodes among `nodes` now. Of several reports on a node the youngest counts. A storage node that
    has only begun to watch is not counted as a witness. Raises nothing."""

    async def one(name: str) -> HeartbeatReport | None:
        try:
            return codec.convert(
                await peers.call(name, "GET", "/v1/heartbeats", deadline=ANSWER_TIMEOUT_S), HeartbeatReport
            )
        except VeeryError:
            return None

    told = await asyncio.gather(*(one(name) for name, node in nodes.items() if node.has(Role.STORAGE)))
    witnesses = [watch for watch in told if watch is not None and watch.watched >= WATCH_LEAST_S]
    youngest: dict[str, StorageHeartbeat] = {}
    for watch in witnesses:
        for name, sign in watch.signs.items():
            if name not in youngest or sign.age < youngest[name].age:
                youngest[name] = sign
    return StorageHeartbeats(witnesses=len(witnesses), ages=youngest)
