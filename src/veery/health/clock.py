"""The clock: how far it is off, and whether something synchronises it. It is never a reason to leave a node.

Source: adjtimex(2) (STA_UNSYNC 0x40, STA_NANO 0x2000, maxerror in microseconds, at most 16 s); chronyc(1), tracking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, parsed, real

OFF_S = 0.05
UNSYNC, NANO = 0x40, 0x2000
MAXERROR_US = 16_000_000
DISPERSION_S = 16.0
HOLD_S = 600.0
FIELD = re.compile(r"(Reference ID|System time|Last offset|Root dispersion|Leap status)\s{0,12}: (.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """What synchronises the clock, and its state; None if unknown."""

    source: str
    off_s: float | None
    synchronised: bool | None
    readable: bool = True


class Clock:
    """The sensor of the clock."""

    name = "clock"

    def read(self, source: Source) -> Reading | None:
        for program, form in (("chronyc-c-tracking", _csv), ("chronyc-tracking", _text), ("timedatectl", _timedatectl)):
            text = source.output(program)
            if text is not None and (found := form(text)):
                return found
        if (text := source.output("adjtimex")) is not None:
            return _kernel(text)
        if any(source.outputs(program) for program in ("chronyc-c-tracking", "chronyc-tracking", "timedatectl")):
            return Reading("chrony", None, None, False)
        return None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last
        if not last.readable or (last.off_s is None and last.synchronised is None):
            yield sign(self.name, last.source, Level.UNKNOWN, "", "nothing tells how the clock stands")
        elif last.off_s is not None and abs(last.off_s) > OFF_S:
            said = f"the clock is off by more than {OFF_S * 1000:g} ms"
            yield sign(self.name, last.source, Level.WATCH, f"{last.off_s:g} s", said)
        elif series.held(lambda reading: reading.synchronised is False, HOLD_S):
            yield sign(self.name, last.source, Level.WATCH, "", "nothing keeps the clock right")
        else:
            value = "" if last.off_s is None else f"{last.off_s:g} s"
            yield sign(self.name, last.source, Level.OK, value, "the clock is right")


def _csv(text: str) -> Reading | None:
    """Parse chronyc -c tracking: id, name, stratum, reference time, system time, last offset, ..., leap status."""
    for line in lines(text):
        cells = line.strip().split(",")
        if len(cells) >= 14 and re.fullmatch(r"[0-9A-F]{8}", cells[0]):
            off = [abs(value) for value in (real(cells[4]), real(cells[5])) if value is not None]
            unsynced = cells[0] == "00000000" or cells[13].strip().lower().startswith("not sync")
            return Reading("chrony", max(off) if off and not unsynced else None, not unsynced)
    return None


def _text(text: str) -> Reading | None:
    found = {match[1]: match[2].strip() for line in lines(text) if (match := FIELD.match(line))}
    if "Leap status" not in found and "System time" not in found:
        return None
    unsynced = found.get("Leap status", "").startswith("Not sync") or found.get("Reference ID", "").startswith(
        "00000000"
    )
    first = [found[key].split()[0] for key in ("System time", "Last offset") if found.get(key)]
    off = [abs(value) for word in first if (value := real(word)) is not None]
    dispersion = real(found.get("Root dispersion", "").split(" ")[0])
    synchronised = not unsynced and (dispersion is None or dispersion < DISPERSION_S)
    return Reading("chrony", max(off) if off and not unsynced else None, synchronised)


def _timedatectl(text: str) -> Reading | None:
    match = re.search(r"(?:System clock synchronized|NTP synchronized|NTPSynchronized)[:=] ?(yes|no)", text, re.ASCII)
    return Reading("timedatectl", None, match[1] == "yes") if match else None


def _kernel(text: str) -> Reading:
    found = parsed(text) or {}
    status, error = found.get("status"), found.get("maxerror")
    if not isinstance(status, int) or not isinstance(error, int):
        return Reading("kernel", None, None, False)
    offset = found.get("offset")
    unit = 1e-9 if status & NANO else 1e-6
    off = offset * unit if isinstance(offset, int) and not isinstance(offset, bool) and abs(offset) < 1e12 else None
    return Reading("kernel", None if status & UNSYNC else off, not (status & UNSYNC and error >= MAXERROR_US))
