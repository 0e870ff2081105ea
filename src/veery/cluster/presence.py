"""A node's presence: the key alive/NODE under a lease, which the node judges by its own monotonic clock.

etcd's lease is a hint to the others. The node itself counts from the moment when it *sent* the request for the last
granted renewal: from then on it is present for the lease's time, and no longer, whatever etcd or the network does
(etcd-io/etcd#11490)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import veery
from veery.cluster.keys import ALIVE
from veery.cluster.store import Store
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.cluster import LEVEL, Presence

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 0.25  # before another attempt
LEASE_TIMEOUT_S = 2.0  # for an operation that waits for the lease


class Heartbeat:
    """The keeper of the key alive/NODE. The caller runs `run` as a task; `lost` may be called at any time."""

    def __init__(self, store: Store, node: str, *, ttl: int, clock: Clock) -> None:
        """`ttl`: seconds without a renewal after which the node counts as absent."""
        self._store, self._node, self.ttl, self._clock = store, node, ttl, clock
        self.started = clock.epoch()
        self._presence = Presence(node=node, started=self.started, version=veery.__version__, level=LEVEL)
        self._lease = 0
        self._until = clock.now()
        self._granted = False

    def remaining(self) -> float:
        """Return the seconds for which the node still counts as present; 0 if it does not."""
        return max(0.0, self._until - self._clock.now())

    def lost(self) -> bool:
        """Return whether the node must assume that the others count it as absent."""
        return self.remaining() <= 0

    def since_lost(self) -> float | None:
        """Return the seconds since the lease ended, negative while the node is present; None before the first lease."""
        return self._clock.now() - self._until if self._granted else None

    async def require(self) -> None:
        """Return while the node counts as present; after a start or a delay, wait up to LEASE_TIMEOUT_S for the lease.

        Raises Refused otherwise: the node may start nothing, since other nodes may be about to start its domains."""
        ends = self._clock.now() + LEASE_TIMEOUT_S
        while self.lost():
            if self._clock.now() >= ends:
                raise Refused(
                    f"{self._node} starts nothing: its lease has lapsed, the store does not renew it",
                    hint="veery cluster status shows more; try again when the node is present",
                )
            await self._clock.sleep(RETRY_S)

    async def run(self) -> None:
        """Renew the lease every third of its TTL, so that two attempts may fail, until cancelled. The key then goes
        when the lease expires, or at once with `withdraw`."""
        present: bool | None = None
        while True:
            try:
                await self._renew()
            except (Failed, OutcomeUnknown, TimeoutError) as error:
                if self.lost() and present is not False:
                    present = False
                    log.error(decision("presence.lost", node=self._node, reason=str(error) or "no answer in time"))
                await self._clock.sleep(RETRY_S)
                continue
            if present is not True:
                present = True
                log.info(decision("presence.kept", node=self._node, ttl=self.ttl))
            await self._clock.sleep(self.ttl / 3)

    async def withdraw(self) -> None:
        """Delete the key now, for an orderly stop of this node. Raises StoreUnavailable."""
        lease, self._lease, self._until = self._lease, 0, self._clock.now()
        if lease:
            await self._store.revoke(lease)

    async def _renew(self) -> None:
        """Send up to three requests, each with its own timeout, so that a new lease still works at a slow store."""
        asked = self._clock.now()
        good_for = await self._in_time(self._store.keep(self._lease)) if self._lease else 0.0
        if good_for <= 0:
            asked = self._clock.now()
            self._lease = await self._in_time(self._store.grant(self.ttl))
            lease, good_for = self._lease, float(self.ttl)
            try:
                await self._in_time(self._store.commit([], [ALIVE.put(self._node, self._presence, lease=lease)]))
            except BaseException:
                self._lease = 0  # unknown whether the key is bound to it: use a new lease
                raise
        self._until = asked + good_for
        self._granted = True

    async def _in_time(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the answer to `question`. Raises TimeoutError after a third of the lease's TTL."""
        async with asyncio.timeout(self.ttl / 3):
            return await question
