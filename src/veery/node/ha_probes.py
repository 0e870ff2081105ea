"""The facts that the brain learns from nodes: heartbeats from storage nodes, and what nodes report about themselves.

Each observation asks every node at once. It waits only a short time for a node that is slower than the others; a late
answer counts for the next observation. So a dead node does not delay what is seen of the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TypeVar

from veery.errors import VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.model.codec import convert
from veery.model.ha import NodeReading, StorageHeartbeat, StorageHeartbeats
from veery.model.node import Role
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.storage_heartbeats import WATCH_LEAST_S, HeartbeatReport

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT_S = 2.0  # seconds for the answer of one node
SLOW_WAIT_S = 0.4  # seconds for which an observation waits for slow nodes


class NodePoll:
    """One question that is asked of many nodes, again and again."""

    def __init__(self, peers: Peers, path: str) -> None:
        self._peers, self._path = peers, path
        self._asked: dict[str, asyncio.Task[object]] = {}
        self._slow: set[str] = set()  # nodes that answered late: not waited for until they have answered again

    async def collect(self, nodes: Collection[str], kind: type[T]) -> dict[str, T]:
        """Return the answers that came since the last call, by node. Raises nothing: a node without an answer is left
        out."""
        new = [name for name in nodes if name not in self._asked]
        for name in new:
            self._asked[name] = asyncio.create_task(self._ask(name), name=f"{self._path} of {name}")
        if waited := [self._asked[name] for name in new if name not in self._slow]:
            await asyncio.wait(waited, timeout=SLOW_WAIT_S)
        self._slow |= {name for name, task in self._asked.items() if not task.done()}
        found: dict[str, T] = {}
        for name in [name for name, task in self._asked.items() if task.done()]:
            told = self._asked.pop(name).result()
            if told is None or name not in nodes:
                continue
            try:
                found[name] = convert(told, kind)
                self._slow.discard(name)
            except VeeryError as error:
                log.warning("%s of %s: %s", self._path, name, error.message)
        return found

    async def close(self) -> None:
        """Stop waiting for answers."""
        await tasks.stop(*self._asked.values())
        self._asked.clear()

    async def _ask(self, name: str) -> object:
        try:
            return await self._peers.call(name, "GET", self._path, deadline=ANSWER_TIMEOUT_S)
        except VeeryError:
            return None


class PeerProbes:
    """`veery.ha.base.Probes` through the nodes' APIs."""

    def __init__(self, peers: Peers, node_cache: NodeCache, clock: Clock) -> None:
        """`peers` must find addresses without the store."""
        self._node_cache, self._clock = node_cache, clock
        self._reports: dict[
            str, tuple[HeartbeatReport, float]
        ] = {}  # the last word of each storage node, and when it came
        self._signs = NodePoll(peers, "/v1/heartbeats")
        self._readings = NodePoll(peers, "/v1/reading")

    async def signs(self) -> StorageHeartbeats:
        """As Probes.signs. A storage node that has only just begun to watch is not counted as a witness."""
        told = await self._signs.collect(self._having(Role.STORAGE), HeartbeatReport)
        now = self._clock.now()
        self._reports |= {name: (watch, now) for name, watch in told.items()}
        self._reports = {
            name: (watch, at) for name, (watch, at) in self._reports.items() if now - at < ANSWER_TIMEOUT_S
        }
        witnesses = [(watch, now - at) for watch, at in self._reports.values() if watch.watched >= WATCH_LEAST_S]
        youngest: dict[str, StorageHeartbeat] = {}
        for watch, since in witnesses:
            for node, sign in watch.signs.items():
                age = sign.age + since
                if node not in youngest or age < youngest[node].age:
                    youngest[node] = StorageHeartbeat(age=age, stopped=sign.stopped)
        return StorageHeartbeats(witnesses=len(witnesses), ages=youngest)

    async def readings(self) -> Mapping[str, NodeReading]:
        """As Probes.readings."""
        return await self._readings.collect(self._having(Role.HYPERVISOR), NodeReading)

    async def close(self) -> None:
        """Stop waiting for answers."""
        await asyncio.gather(self._signs.close(), self._readings.close())

    def _having(self, role: Role) -> list[str]:
        return [name for name, node in self._node_cache.nodes.items() if node.has(role)]
