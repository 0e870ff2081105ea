"""How long the volumes of domains take to answer this node.

Source: Documentation/admin-guide/iostats (/proc/diskstats). A busy volume is slow too, so only long times count. A slow
target slows all nodes: this is a state, and the brain compares it with other nodes before it moves anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, whole

WINDOW_S = 300.0
SLOW_S, BAD_S = 0.5, 5.0  # on average
REQUESTS_LEAST = 20
HANG_S = 30.0  # without an answer while requests wait
FIELDS_LEAST = 12


@dataclass(frozen=True, slots=True)
class Disk:
    """Requests that were answered since boot, the milliseconds that they took, and those that wait."""

    answered: int
    spent_ms: int
    waiting: int


class Latency:
    """The sensor of the volumes' answers."""

    name = "latency"

    def read(self, source: Source) -> dict[str, Disk] | None:
        found: dict[str, Disk] = {}
        for row in lines(source.text("proc/diskstats")):
            cells = row.split()
            counts = [whole(cell) for cell in cells[3:FIELDS_LEAST]]
            if len(cells) < FIELDS_LEAST or None in counts:
                continue
            reads, _, _, reading_ms, writes, _, _, writing_ms, waiting = (each or 0 for each in counts)
            found[cells[2]] = Disk(reads + writes, reading_ms + writing_ms, waiting)
        return found or None

    def judge(self, series: Series[dict[str, Disk]]) -> Iterator[Sign]:
        newest = series.moments[-1].at
        if newest is None:
            return  # counters without times say nothing
        recent = [each for each in series.moments if each.at is not None and newest - each.at <= WINDOW_S]
        first, last = recent[0], recent[-1]
        span_s = newest - (first.at or 0.0)
        answered, spent_ms, hung, used = 0, 0, 0, 0
        for name in sorted(series.given.own_luns & last.reading.keys() & first.reading.keys()):
            old, new = first.reading[name], last.reading[name]
            if new.answered < old.answered:
                continue  # another volume has this name now
            grown = new.answered - old.answered
            answered, spent_ms = answered + grown, spent_ms + max(0, new.spent_ms - old.spent_ms)
            always = all((each.reading.get(name) or new).waiting for each in recent)
            hung += bool(always and not grown and span_s >= HANG_S)
            used += bool(grown or new.waiting)
        if hung:
            level = Level.BAD if hung == used else Level.WATCH
            yield sign(self.name, "volumes", level, f"{hung} of {used}", f"no answer for {span_s:.0f} s")
        elif used:
            yield self._average(answered, spent_ms / 1000)

    def _average(self, answered: int, spent_s: float) -> Sign:
        average_s = spent_s / max(answered, 1)
        if answered < REQUESTS_LEAST or average_s < SLOW_S:
            return sign(self.name, "volumes", Level.OK, f"{average_s * 1000:.0f} ms", "the volumes answer in time")
        level = Level.BAD if average_s >= BAD_S else Level.WATCH
        return sign(self.name, "volumes", level, f"{average_s:.1f} s", "the volumes answer slowly, on average")
