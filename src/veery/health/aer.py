"""PCIe errors: the counters of Advanced Error Reporting, and its lines in the kernel's log.

Source: Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats; drivers/pci/pcie/aer.c. Corrected errors count only
if there are hundreds of them. A request that a device does not support is also reported as an uncorrected error, but is
harmless."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, real

HOUR_S = 3600.0
CORRECTED_AN_HOUR = 100
KINDS = ("correctable", "nonfatal", "fatal")
HARMLESS = ("UnsupReq", "ACSViol")
DEVICE = r"(?:\S{1,40} )?(?:[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]: )"
CORRECTED = re.compile(DEVICE + r"(?:AER: )?(?:Multiple )?Corrected error (?:message )?received", re.ASCII)
SEVERE = re.compile(
    r"(?:\S{1,40} )?([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]): (?:AER: )?PCIe Bus Error: "
    r"severity=Uncorrect(?:ed|able) \((Non-Fatal|Fatal)\)",
    re.ASCII,
)
HARMLESS_LINE = re.compile(r".*\[ ?\d{1,2}\] (UnsupReq|ACSViol)\b", re.ASCII)
RECOVERED = re.compile(r".*(?:AER: )?[Dd]evice recovery successful", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters by device and kind, and the kernel's log."""

    counters: dict[str, int] = field(default_factory=dict)
    uptime_s: float | None = None
    log: tuple[kmsg.Record, ...] = ()


class Aer:
    """The sensor of PCIe errors."""

    name = "aer"

    def read(self, source: Source) -> Reading | None:
        counters: dict[str, int] = {}
        for kind in KINDS:
            for path in source.paths(f"sys/bus/pci/devices/*/aer_dev_{kind}"):
                below = str(path.relative_to(source.root))
                counters[f"{path.parent.name} {kind}"] = _count(source.text(below, 4096), kind)
        log = tuple(record for record in kmsg.read(source) or () if _matters(record.text))
        uptime = (source.word("proc/uptime") or "").split()
        return Reading(counters, real(uptime[0]) if uptime else None, log) if counters or log else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        for part, count in series.last.counters.items():
            if level := self._level(series, part, count):
                said = f"{part.split()[-1]} PCIe errors"
                yield sign(self.name, part.split()[0], level, count, said)
        if series.last.counters:
            yield sign(self.name, "pci", Level.OK, len(series.last.counters), "counters of PCIe errors were read")
        yield from self._logged(kmsg.merged(moment.reading.log for moment in series.moments))

    def _level(self, series: Series[Reading], part: str, count: int) -> Level | None:
        def counter(reading: Reading) -> int | None:
            return reading.counters.get(part)

        grown, hourly = series.growth(counter), series.rate(counter, HOUR_S)
        if part.endswith(" correctable"):
            if hourly is None and series.last.uptime_s:
                hourly = count * HOUR_S / max(series.last.uptime_s, HOUR_S)
            return Level.WATCH if (hourly or 0) > CORRECTED_AN_HOUR else None
        if count and grown is None:
            return Level.BAD
        if grown:
            return Level.BAD
        return Level.WATCH if count else None

    def _logged(self, log: Sequence[kmsg.Record]) -> Iterator[Sign]:
        corrected = [record for record in log if CORRECTED.match(record.text)]
        if corrected:
            often = kmsg.most_within(corrected, HOUR_S) > CORRECTED_AN_HOUR
            level = Level.WATCH if often else Level.OK
            yield sign(self.name, "pci", level, len(corrected), "corrected PCIe errors")
        for index, record in enumerate(log):
            if not (match := SEVERE.match(record.text)):
                continue
            after = [each.text for each in log[index + 1 : index + 12]]
            harmless = any(HARMLESS_LINE.match(text) for text in after)
            recovered = any(RECOVERED.match(text) for text in after)
            level = Level.WATCH if match[2] == "Non-Fatal" and (harmless or recovered) else Level.BAD
            yield sign(self.name, match[1], level, match[2], "an uncorrected PCIe error")


def _matters(text: str) -> bool:
    return "AER" in text or "PCIe Bus Error" in text or bool(HARMLESS_LINE.match(text) or RECOVERED.match(text))


def _count(text: str | None, kind: str) -> int:
    """Return the total of a counter file, without harmless errors."""
    found: dict[str, int] = {}
    for line in lines(text):
        name, _, count = line.partition(" ")
        if count.strip().isdigit():
            found[name] = int(count.strip()[:18])
    total = max((count for name, count in found.items() if name.startswith("TOTAL_ERR")), default=0)
    if kind == "nonfatal":
        total = max(0, total - sum(found.get(name, 0) for name in HARMLESS))
    return total
