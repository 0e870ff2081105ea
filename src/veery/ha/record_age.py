"""How old records are, by this node's own steady clock.

Records carry the wall clock of the node that wrote them, and wall clocks are set. What paces tries and starts goes by
this memory instead: a record changed at some moment between two observations, and the wall clock has a say only in
when between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from veery.host.clock import Clock
from veery.model.ha import ClusterView
from veery.model.verdict import NodeVerdict


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float  # as the record has it: epoch
    since: float  # own clock


class RecordAges:
    """Every observation is to be shown to it, whoever leads: then a new leader has the memory that the old one had."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._last = -math.inf  # when it was shown something last

    def of(self, view: ClusterView) -> dict[str, float]:
        """Seconds since the run of each domain ("domain/x") and the fence of each node ("node/y") were written, and
        since the verdict on each node that is not well ("health/y").

        Of one that is new since the last observation the wall clocks tell, kept to the time between the two; of one
        that was there when this node began to look they alone tell, and one from their future counts as of now."""
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
