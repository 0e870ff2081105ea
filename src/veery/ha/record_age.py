"""The age of records by this node's own monotonic clock.

A record carries the wall clock of the node that wrote it, and wall clocks can be set. This class paces retries and
starts without them. It knows that a record changed between two observations. The wall clock only decides when between
the two."""

from __future__ import annotations

import math
from dataclasses import dataclass

from veery.host.clock import Clock
from veery.model.ha import ClusterView
from veery.model.verdict import NodeVerdict


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float  # as in the record: epoch
    since: float  # own clock


class RecordAges:
    """Measures how old records are. Pass it every observation on every voter: then a new leader has the same memory as
    the old one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._last = -math.inf  # time of the last observation

    def of(self, view: ClusterView) -> dict[str, float]:
        """Return ages in seconds: of the run record of each domain ("domain/x"), of the fence of each node ("node/y"),
        and of the verdict on each node that is not well ("health/y").

        A record first seen now gets its age from the wall clocks, clamped to the last observation interval. On this
        node's first observation only the wall clocks count. A timestamp in the future counts as age zero."""
        now, ahead = self._clock.now(), self._clock.epoch()
        written = {f"domain/{name}": each.run.at for name, each in view.domains.items() if each.run}
        written |= {f"node/{name}": each.fence.at for name, each in view.nodes.items() if each.fence}
        sick = (each for each in view.nodes.values() if each.health.verdict is not NodeVerdict.WELL)
        written |= {f"health/{each.name}": each.health.since for each in sick}
        seen: dict[str, _Seen] = {}
        for subject, at in written.items():
            old = self._seen.get(subject)
            known = old is not None and old.at == at
            seen[subject] = old if old and known else _Seen(at, min(now, max(now - (ahead - at), self._last)))
        self._seen, self._last = seen, now
        return {subject: now - each.since for subject, each in seen.items()}
