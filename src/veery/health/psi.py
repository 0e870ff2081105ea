"""Memory pressure. Pressure on processors and I/O is load, and load is not a defect.

Source: Documentation/accounting/psi.rst. `full avg60`: the share of the last minute in which no task could continue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, whole

WATCH_PERCENT = 5.0
BAD_PERCENT = 20.0
LEAST_AVAILABLE = 0.03  # of all memory; below it, the pressure is the host's own
HOLD_S = 60.0
FULL = re.compile(r"full avg10=\S+ avg60=([0-9]{1,3}(?:\.[0-9]+)?) ", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """The stalled share of a minute in percent, and the available share of memory."""

    stalled: float | None
    available: float | None

    @property
    def is_out(self) -> bool:
        """Return True if the host stalls because it has no memory left."""
        return (self.stalled or 0) > BAD_PERCENT and self.available is not None and self.available < LEAST_AVAILABLE


class Psi:
    """The sensor of memory pressure."""

    name = "psi"

    def read(self, source: Source) -> Reading | None:
        text = source.text("proc/pressure/memory")
        if text is None:
            return None
        full = FULL.search(text)
        memory: dict[str, int] = {}
        for line in lines(source.text("proc/meminfo")):
            words = line.split()
            if len(words) > 1 and (number := whole(words[1])) is not None:
                memory[words[0]] = number
        total, left = memory.get("MemTotal:"), memory.get("MemAvailable:")
        return Reading(
            float(full[1]) if full else None,
            left / total if total and left is not None else None,
        )

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last
        if last.stalled is None:
            yield sign(self.name, "memory", Level.UNKNOWN, "", "the kernel's memory pressure cannot be read")
        elif series.held(lambda reading: reading.is_out, HOLD_S):
            said = f"tasks wait for memory {last.stalled:g} % of the time and almost none is left"
            yield sign(self.name, "memory", Level.BAD, last.stalled, said)
        elif last.stalled > WATCH_PERCENT:
            said = f"tasks wait for memory {last.stalled:g} % of the time"
            yield sign(self.name, "memory", Level.WATCH, last.stalled, said)
        else:
            yield sign(self.name, "memory", Level.OK, last.stalled, "no task waits for memory to speak of")
