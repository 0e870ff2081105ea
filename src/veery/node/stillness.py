"""Stillness while the store is recovered: the watchdog is fed, and the guard leaves domains as they are.

A recovery orders it on every node that answers. It ends with the first lease that is granted after the order, and after
STILL_S seconds in any case. From then on others may fence this node, and its watchdog must not be kept fed."""

from __future__ import annotations

import logging

from veery.cluster.presence import Heartbeat
from veery.host.clock import Clock
from veery.host.log import decision

log = logging.getLogger(__name__)

STILL_S = 300.0


class Stillness:
    """Whether this node keeps still for a recovery of the store."""

    def __init__(self, heartbeat: Heartbeat, clock: Clock) -> None:
        """Build it. It begins with `order`."""
        self._heartbeat, self._clock = heartbeat, clock
        self._ordered, self._until, self._by = 0.0, 0.0, ""

    def order(self, by: str) -> None:
        """Keep still from now on: node `by` recovers the store."""
        self._ordered = self._clock.now()
        self._until, self._by = self._ordered + STILL_S, by
        log.warning(decision("still", by=by, seconds=STILL_S))

    def holds_for(self, node: str) -> bool:
        """Return True if this node keeps still by the order of `node`. As far as this node knows, a recovery is then
        under way there, and the store decides nothing."""
        return self._by == node and self.holds()

    def holds(self) -> bool:
        """Return True if this node keeps still."""
        now = self._clock.now()
        if now >= self._until:
            return False
        left = self._heartbeat.remaining()
        if left > 0 and now + left - self._heartbeat.ttl > self._ordered:  # granted after the order
            self._until = 0.0
            return False
        return True
