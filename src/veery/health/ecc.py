"""ECC: corrected and uncorrected memory errors, as counted and logged by EDAC.

Sources: Documentation/ABI/testing/sysfs-devices-edac; drivers/edac/edac_mc.c (the log's lines). The limit of 100 a day
follows rasdaemon's default of 50 corrected errors on one page in 24 hours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, real

DAY_S = 86400.0
CORRECTED_A_DAY = 100  # on one DIMM; more than this is bad
LINE = re.compile(r"EDAC MC(\d+): (?:(\d{1,9}) )?(CE|UE)\b(?:.*? on (\S+)|.*?label \"([^\"]*)\")?", re.ASCII)
MODULES = ("dimm*", "rank*")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters by part: DIMMs (rows on older drivers), whole controllers, and uncorrected errors."""

    modules: dict[str, int] = field(default_factory=dict)
    controllers: dict[str, int] = field(default_factory=dict)
    uncorrected: dict[str, int] = field(default_factory=dict)
    uptime_s: float | None = None
    log: tuple[kmsg.Record, ...] | None = None


class Ecc:
    """The sensor of memory errors that EDAC reports."""

    name = "ecc"

    def read(self, source: Source) -> Reading | None:
        modules: dict[str, int] = {}
        controllers: dict[str, int] = {}
        uncorrected: dict[str, int] = {}
        found = source.paths("sys/devices/system/edac/mc/mc[0-9]*")
        for controller in found:
            _counters(source, controller, modules, controllers, uncorrected)
        log = tuple(record for record in kmsg.read(source) or () if "EDAC" in record.text)
        if not (modules or controllers or uncorrected or log):
            return None
        uptime = (source.word("proc/uptime") or "").split()
        return Reading(modules, controllers, uncorrected, real(uptime[0]) if uptime else None, log)

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last
        for part, count in last.uncorrected.items():
            if count > 0:
                yield sign(self.name, part, Level.BAD, count, f"uncorrected memory errors since boot: {count}")
        for part, count in last.modules.items():
            yield self._module(series, part, count)
        for part, count in last.controllers.items():
            yield self._controller(series, part, count)
        yield from self._logged(series)

    def _controller(self, series: Series[Reading], part: str, count: int) -> Sign:
        """Judge the errors that a controller counted in addition to those of its DIMMs."""

        def beyond(reading: Reading) -> int | None:
            total = reading.controllers.get(part)
            named = sum(each for name, each in reading.modules.items() if name.startswith(f"{part}/"))
            return None if total is None else max(0, total - named)

        grown = series.growth(beyond)
        if (beyond(series.last) if grown is None else grown) or 0:
            return sign(self.name, part, Level.WATCH, count, "corrected memory errors, and no DIMM is named")
        return sign(self.name, part, Level.OK, count, "no new corrected memory error beside those of the DIMMs")

    def _module(self, series: Series[Reading], part: str, count: int) -> Sign:
        def counter(reading: Reading) -> int | None:
            return reading.modules.get(part)

        grown, a_day = series.growth(counter), series.rate(counter, DAY_S)
        if grown is None:
            grown = count
            uptime = series.last.uptime_s
            a_day = 0.0 if uptime is None else count * DAY_S / max(uptime, DAY_S)
        if (a_day or 0) > CORRECTED_A_DAY:
            said = f"more than {CORRECTED_A_DAY} corrected memory errors in 24 hours on one DIMM"
            return sign(self.name, part, Level.BAD, count, said, counter=True)
        if grown > 0:
            return sign(self.name, part, Level.WATCH, count, f"{grown} corrected memory errors")
        return sign(self.name, part, Level.OK, count, "no new memory error")

    def _logged(self, series: Series[Reading]) -> Iterator[Sign]:
        corrected: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for record in kmsg.merged(moment.reading.log for moment in series.moments):
            if not (match := LINE.match(record.text)) or "FAKE ERROR" in record.text:
                continue
            part = match[4] or match[5] or f"mc{match[1]}"
            if match[3] == "UE":
                yield sign(self.name, part, Level.BAD, match[2] or 1, "the kernel logged an uncorrected memory error")
            else:
                corrected[part].append((record.at or 0.0, int(match[2] or 1)))
        for part, events in corrected.items():
            count = _most_in_a_day(events)
            if count > CORRECTED_A_DAY:
                said = f"{count} corrected memory errors logged in 24 hours"
                yield sign(self.name, part, Level.BAD, count, said, counter=True)
            else:
                yield sign(self.name, part, Level.WATCH, count, f"{count} corrected memory errors logged")


def _counters(
    source: Source, folder: Path, modules: dict[str, int], controllers: dict[str, int], uncorrected: dict[str, int]
) -> None:
    """Add the counters of one memory controller."""
    name, below = folder.name, folder.relative_to(source.root)

    def number(path: Path) -> int | None:
        return source.number(path.relative_to(source.root))

    for counter in ("ue_count", "ue_noinfo_count"):
        if (count := number(folder / counter)) is not None:
            uncorrected[name if counter == "ue_count" else f"{name} (no DIMM known)"] = count
    before = len(modules)
    for pattern in MODULES:
        for each in source.paths(f"{below}/{pattern}"):
            label = source.word(each.relative_to(source.root) / "dimm_label") or ""
            part = f"{name}/{each.name}" + (f" {label}" if label else "")
            if (count := number(each / "dimm_ce_count")) is not None:
                modules[part] = count
            if (count := number(each / "dimm_ue_count")) is not None:
                uncorrected[part] = count
    has_modules = len(modules) > before
    for each in source.paths(f"{below}/csrow*"):
        part = f"{name}/{each.name}"
        if not has_modules and (count := number(each / "ce_count")) is not None:
            modules[part] = count
        if (count := number(each / "ue_count")) is not None:
            uncorrected[part] = count
    totals = [count for each in ("ce_count", "ce_noinfo_count") if (count := number(folder / each)) is not None]
    if totals:
        controllers[name] = max(totals)  # some drivers do not add errors without a DIMM to the total


def _most_in_a_day(events: list[tuple[float, int]]) -> int:
    """Return the largest number of errors that were logged within 24 hours."""
    events = sorted(events)
    most = total = start = 0
    for at, count in events:
        total += count
        while at - events[start][0] > DAY_S:
            total -= events[start][1]
            start += 1
        most = max(most, total)
    return most
