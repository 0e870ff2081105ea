"""Leadership: the key `leader`, bound to a lease, gives the cluster one leader at a time.

In the store the lease ends when the store says so. For the holder it ends earlier. The holder counts from the moment at
which it sent the last renewal that was granted, by its own monotonic clock, less a margin. So the holder stops before
another node can begin. If its clock is wrong, every write of a leader still has the key's revision as a condition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from veery.cluster.keys import LEADER, LEADERS
from veery.cluster.store import Store, Unchanged
from veery.errors import Failed, OutcomeUnknown
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.ha import LeaderRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_INTERVAL_S = 0.5  # seconds between two tries to become, or to stay, the leader
LEASE_MARGIN = 0.2  # share of the lease's time that the holder does not use


class NotLeader(Failed):
    """This node does not lead, or no longer leads: nothing was written."""


class Leadership:
    """This node's part in the election. The caller owns the task of `run`; the other methods may be called at any
    time."""

    def __init__(self, store: Store, node: str, *, ttl: int, clock: Clock, election_delay: float = 0.0) -> None:
        """`ttl`: seconds of the lease. `election_delay`: seconds for which this node lets others become leader
        first."""
        self._store, self._node, self._ttl, self._clock = store, node, ttl, clock
        self._election_delay = election_delay
        self._vacant: float | None = None  # since when no leader was seen
        self._lease = 0
        self._revision = 0
        self._until = clock.now()

    def remaining(self) -> float:
        """Return for how many seconds this node may still act as the leader; 0 when it does not lead."""
        return max(0.0, self._until - self._clock.now()) if self._revision else 0.0

    def held(self) -> bool:
        """Return True if this node leads."""
        return self.remaining() > 0

    def guard(self) -> Unchanged:
        """Return the condition for every write of the leader. Raises NotLeader."""
        if not self.held():
            raise NotLeader(f"{self._node} does not lead the cluster")
        return Unchanged(LEADER, self._revision)

    async def run(self) -> None:
        """Become the leader when there is none, and stay it while the store agrees. Cancel to stop. `resign` then lets
        another node begin at once."""
        while True:
            asked = self._clock.now()
            try:
                await (self._keep() if self._revision else self._campaign())
            except (Failed, OutcomeUnknown, TimeoutError) as error:
                if self._revision and not self.held():
                    self._lose(str(error) or "no answer in time")
                await self._clock.sleep(RETRY_INTERVAL_S)
                continue
            pause = max(
                RETRY_INTERVAL_S, asked + self._ttl / 3 - self._clock.now()
            )  # between requests: stores are slow
            await self._clock.sleep(pause if self._revision else 2 * RETRY_INTERVAL_S)

    async def resign(self) -> None:
        """Give up leadership now. Raises StoreUnavailable."""
        self._vacant = None
        lease, self._lease = self._lease, 0
        self._revision = 0
        if lease:
            await self._store.revoke(lease)

    async def _campaign(self) -> None:
        """Try to become the leader. Each of the three requests has its own timeout: a store that answers late can still
        get another leader."""
        if await self._in_time(self._store.get(LEADER)) is not None:
            self._vacant = None
            return
        asked = self._clock.now()
        self._vacant = asked if self._vacant is None else self._vacant
        if asked - self._vacant < self._election_delay:
            return
        lease = self._lease
        self._lease = 0  # until the key is known to be bound to it
        if not lease or await self._in_time(self._store.keep(lease)) <= 0:
            asked = self._clock.now()
            lease = await self._in_time(self._store.grant(self._ttl))
        record = LeaderRecord(node=self._node, since=self._clock.epoch())
        write = self._store.commit([Unchanged(LEADER, 0)], [LEADERS.put(LEADER, record, lease=lease)])
        done = await self._in_time(write)
        self._lease = lease
        if done.held:
            self._revision, self._until = done.revision, asked + self._ttl * (1 - LEASE_MARGIN)
            log.info(decision("leader.begin", node=self._node, revision=done.revision))

    async def _keep(self) -> None:
        asked = self._clock.now()
        async with asyncio.timeout(self._ttl / 3):
            entry = await self._store.get(LEADER)
            if entry is None or entry.revision != self._revision or await self._store.keep(self._lease) <= 0:
                self._lose("the lease has ended")
                return
        self._until = asked + self._ttl * (1 - LEASE_MARGIN)

    async def _in_time(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the answer of `question`. Raises TimeoutError if it takes longer than a third of the lease's time."""
        async with asyncio.timeout(self._ttl / 3):
            return await question

    def _lose(self, reason: str) -> None:
        self._revision, self._lease = 0, 0
        log.warning(decision("leader.end", node=self._node, reason=reason))
