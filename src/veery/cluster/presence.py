"""A node's sign of life: the key alive/NODE under a lease, judged by the node's own monotonic clock.

etcd's lease is a hint to the others. To the node itself what counts is when it *asked* for the last renewal
that was granted: from then on it may believe in its presence for the lease's time, whatever etcd or the network
do, and not a moment longer (etcd-io/etcd#11490)."""

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

RETRY = 0.25  # seconds before another try
SOON = 2.0  # seconds that an order waits for a lease


class Heartbeat:
    """Keeps alive/NODE there. `run` is to be somebody's task; `lost` may be asked at any time."""

    def __init__(self, store: Store, node: str, *, ttl: int, clock: Clock) -> None:
        """`ttl`: seconds without a renewal after which the node counts as absent."""
        self._store, self._node, self.ttl, self._clock = store, node, ttl, clock
        self.started = clock.epoch()
        self._presence = Presence(node=node, started=self.started, version=veery.__version__, level=LEVEL)
        self._lease = 0
        self._until = clock.now()
        self._granted = False

    def remaining(self) -> float:
        """Seconds for which the node still counts as present; 0 when it does not."""
        return max(0.0, self._until - self._clock.now())

    def lost(self) -> bool:
        """Whether the node has to take it that the others hold it for absent."""
        return self.remaining() <= 0

    def since_lost(self) -> float | None:
        """Seconds since the node counts as absent, negative while it is present; None before it ever was."""
        return self._clock.now() - self._until if self._granted else None

    async def require(self) -> None:
        """Returns while the node counts as present; one that has only just begun, or lags, is given SOON seconds.
        Raises Refused: nothing may be started then, for others may be about to take its place."""
        ends = self._clock.now() + SOON
        while self.lost():
            if self._clock.now() >= ends:
                raise Refused(
                    f"{self._node} starts nothing: its lease has lapsed, the store does not renew it",
                    hint="veery cluster status tells more; try again when the node is present",
                )
            await self._clock.sleep(RETRY)

    async def run(self) -> None:
        """For ever: renew each third of the time, so that two tries may fail. Cancel to stop; the key then goes
        when its time is over, or at once with `withdraw`."""
        present: bool | None = None
        while True:
            try:
                await self._renew()
            except (Failed, OutcomeUnknown, TimeoutError) as error:
                if self.lost() and present is not False:
                    present = False
                    log.error(decision("presence.lost", node=self._node, reason=str(error) or "no answer in time"))
                await self._clock.sleep(RETRY)
                continue
            if present is not True:
                present = True
                log.info(decision("presence.kept", node=self._node, ttl=self.ttl))
            await self._clock.sleep(self.ttl / 3)

    async def withdraw(self) -> None:
        """Take the key away now: this node leaves in good order. Raises StoreUnavailable."""
        lease, self._lease, self._until = self._lease, 0, self._clock.now()
        if lease:
            await self._store.revoke(lease)

    async def _renew(self) -> None:
        """Up to three questions, each with its own time: a store that answers late can still be told of us anew."""
        asked = self._clock.now()
        good_for = await self._in_time(self._store.keep(self._lease)) if self._lease else 0.0
        if good_for <= 0:
            asked = self._clock.now()
            self._lease = await self._in_time(self._store.grant(self.ttl))
            lease, good_for = self._lease, float(self.ttl)
            try:
                await self._in_time(self._store.commit([], [ALIVE.put(self._node, self._presence, lease=lease)]))
            except BaseException:
                self._lease = 0  # whether the key hangs on it is not known: begin again with another
                raise
        self._until = asked + good_for
        self._granted = True

    async def _in_time(self, question: Coroutine[Any, Any, T]) -> T:
        """Its answer. Raises TimeoutError when it does not come in a third of the lease's time."""
        async with asyncio.timeout(self.ttl / 3):
            return await question
