"""Temperatures: hwmon, and the kernel's log lines about throttling.

Source: Documentation/hwmon/sysfs-interface.rst (thousandths of a degree), coretemp.rst (crit_alarm "never clears", so
readings count, not alarms). The pins of Super-I/O chips are often not connected, and that cannot be detected: they are
not judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source

NEAR_CRITICAL_MC = 2000  # millidegrees
CRITICAL_HOLD_S = 60.0
ABOVE_HOLD_S = 300.0
LOWEST_LIMIT_MC, HIGHEST_LIMIT_MC = 40_000, 126_000  # a limit outside this range means "no limit"
LOWEST_MC, HIGHEST_MC = -40_000, 126_000  # a reading outside this range means "no sensor"
NOT_JUDGED = re.compile(
    r"(nct|it8|w83|f71|sch5|smsc|asus|acpitz|dme1737|vt8|pc87|thinkpad|dell_smm|applesmc|lm\d|adt7|adm1)"
)
THROTTLED = re.compile(
    r"(?:mce: )?CPU(\d+): (Core|Package) temperature (?:is )?above threshold.*?total events = (\d{1,12})", re.ASCII
)
COOL = re.compile(r"(?:mce: )?CPU(\d+): (Core|Package) temperature(?:/speed)? (?:is )?normal", re.ASCII)
SHUTTING = re.compile(r"thermal thermal_zone\d+: .*critical temperature reached.*shutting down", re.ASCII)
THROTTLED_OFTEN = 1000  # events since boot


@dataclass(frozen=True, slots=True)
class Reading:
    """One temperature and its limits, in millidegrees; a meaningless limit is None."""

    now: int
    above: int | None
    critical: int | None
    warned: bool = False  # True if the device itself warns now

    @property
    def is_critical(self) -> bool:
        return self.critical is not None and self.now >= self.critical - NEAR_CRITICAL_MC

    @property
    def is_above(self) -> bool:
        return self.above is not None and self.now > self.above


@dataclass(frozen=True, slots=True)
class Readings:
    """All temperatures by part; None for a part that cannot be read or is not judged."""

    parts: dict[str, Reading | None]
    log: tuple[kmsg.Record, ...]


class Temperature:
    """The sensor of temperatures."""

    name = "temperature"

    def read(self, source: Source) -> Readings | None:
        parts: dict[str, Reading | None] = {}
        for path in source.paths("sys/class/hwmon/hwmon*/temp*_input"):
            below = path.relative_to(source.root)
            stem = str(below).removesuffix("_input")
            chip = source.word(below.parent / "name") or below.parent.name
            label = source.word(f"{stem}_label") or below.name.removesuffix("_input")
            parts[f"{below.parent.name} {chip} {label}"] = _reading(source, chip, stem)
        log = tuple(
            record
            for record in kmsg.read(source) or ()
            if THROTTLED.match(record.text) or COOL.match(record.text) or SHUTTING.match(record.text)
        )
        return Readings(parts, log) if parts or log else None

    def judge(self, series: Series[Readings]) -> Iterator[Sign]:
        for part, last in series.last.parts.items():
            if last is not None:
                yield self._judged(series, part, last)
        if series.last.parts and not any(series.last.parts.values()):
            yield sign(self.name, "hwmon", Level.UNKNOWN, "", "no temperature that can be judged")
        yield from self._logged(kmsg.merged(moment.reading.log for moment in series.moments))

    def _judged(self, series: Series[Readings], part: str, last: Reading) -> Sign:
        def critical(readings: Readings) -> bool:
            found = readings.parts.get(part)
            return found is not None and found.is_critical

        def above(readings: Readings) -> bool:
            found = readings.parts.get(part)
            return found is not None and found.is_above

        shown = f"{last.now / 1000:g} C"
        if critical(series.last) and series.held(critical, CRITICAL_HOLD_S):
            return sign(
                self.name, part, Level.BAD, shown, f"at its critical temperature of {(last.critical or 0) / 1000:g} C"
            )
        if critical(series.last):
            return sign(self.name, part, Level.WATCH, shown, "at its critical temperature, for less than a minute")
        if above(series.last) and series.held(above, ABOVE_HOLD_S):
            return sign(self.name, part, Level.WATCH, shown, "above its highest temperature for five minutes")
        if last.warned:
            return sign(self.name, part, Level.WATCH, shown, "the disk warns of its temperature")
        return sign(self.name, part, Level.OK, shown, "within its limits")

    def _logged(self, log: Sequence[kmsg.Record]) -> Iterator[Sign]:
        hot: dict[tuple[str, str], int] = {}
        most = 0
        for record in log:
            if SHUTTING.match(record.text):
                yield sign(self.name, "thermal zone", Level.BAD, "", "the kernel reached a critical temperature")
            elif match := THROTTLED.match(record.text):
                hot[match[1], match[2]] = int(match[3])
                most = max(most, int(match[3]))
            elif match := COOL.match(record.text):
                hot.pop((match[1], match[2]), None)
        if hot or most >= THROTTLED_OFTEN:
            yield sign(self.name, "processors", Level.WATCH, most, "the processors slow down because they are hot")
        elif most:
            yield sign(self.name, "processors", Level.OK, most, "the processors were hot for a moment")


def _reading(source: Source, chip: str, stem: str) -> Reading | None:
    now = source.number(f"{stem}_input")
    if now is None or not LOWEST_MC < now < HIGHEST_MC or NOT_JUDGED.match(chip) or source.number(f"{stem}_fault"):
        return None
    above, critical = _limit(source.number(f"{stem}_max")), _limit(source.number(f"{stem}_crit"))
    if chip == "k10temp":  # the driver reports 70 C for every processor
        above = None
    if critical is None:
        critical = _limit(source.number(f"{stem}_emergency"))
    if above is not None and critical is not None and above >= critical:
        above = None
    return Reading(now, above, critical, warned=chip == "nvme" and source.number(f"{stem}_alarm") == 1)


def _limit(value: int | None) -> int | None:
    return value if value is not None and LOWEST_LIMIT_MC <= value <= HIGHEST_LIMIT_MC else None
