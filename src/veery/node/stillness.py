"""Standing still while the store is recovered: the watchdog is fed, and the guard leaves domains as they are.

A recovery orders it on every node that answers. It ends with the first lease that is granted after the order, and
after STILL_S seconds in any case: from then on others may fence this node, and nothing may keep its watchdog fed."""

from __future__ import annotations

import logging

from veery.cluster.presence import Heartbeat
from veery.host.clock import Clock
from veery.host.log import decision

log = logging.getLogger(__name__)

STILL_S = 300.0


class Stillness:
    """One a daemon."""

    def __init__(self, heartbeat: Heartbeat, clock: Clock) -> None:
        """Nothing stands still before `order`."""
        self._heartbeat, self._clock = heartbeat, clock
        self._ordered, self._until, self._by = 0.0, 0.0, ""

    def order(self, by: str) -> None:
        """Stand still from now on: node `by` recovers the store."""
        self._ordered = self._clock.now()
        self._until, self._by = self._ordered + STILL_S, by
        log.warning(decision("still", by=by, seconds=STILL_S))

    def holds_for(self, node: str) -> bool:
        """Whether this node stands still by the order of `node`: for all that is known here, a recovery is under way
        there and the store does not decide."""
        return self._by == node and self.holds()

    def holds(self) -> bool:
        """Whether this node stands still."""
        now = self._clock.now()
        if now >= self._until:
            return False
        left = self._heartbeat.remaining()
        if left > 0 and now + left - self._heartbeat.ttl > self._ordered:  # granted since
            self._until = 0.0
            return False
        return True
