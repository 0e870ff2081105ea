"""APEI: hardware errors that the firmware reports (GHES), and those that the previous boot left (BERT).

Source: drivers/firmware/efi/cper.c and drivers/acpi/apei/. Boards whose firmware handles errors first have no EDAC
counters: their errors appear only here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source

HOUR_S = 3600.0
DAY_S = 86400.0
CORRECTED_AN_HOUR = 10  # reports; more than this is reported for any part
CORRECTED_A_DAY = 100  # reports of one memory module; more than this is bad
LINE = re.compile(r"(?:\S+ )?(?:\{(\d{1,12})\})?\[Hardware Error\]: {0,8}(.*)", re.ASCII)
GRAVE = ("recoverable", "fatal")


@dataclass(slots=True)
class Report:
    """One event. `number` counts since boot (None under BERT). `of_before`: the previous boot left it."""

    at: float | None
    number: int | None
    severity: str
    of_before: bool
    section: str = ""
    part: str = ""

    @property
    def is_memory(self) -> bool:
        return "memory" in self.section


@dataclass(frozen=True, slots=True)
class Reading:
    """The reports in the kernel's log."""

    log: tuple[kmsg.Record, ...] = field(default=())


class Apei:
    """The sensor of hardware errors that the firmware reports."""

    name = "apei"

    def read(self, source: Source) -> Reading | None:
        log = tuple(
            record
            for record in kmsg.read(source) or ()
            if "[Hardware Error]" in record.text or record.text.startswith("BERT:")
        )
        return Reading(log) if any("event severity:" in record.text for record in log) else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        found = reports(kmsg.merged(moment.reading.log for moment in series.moments))
        for report in found:
            part = report.part or report.section or "hardware"
            if report.of_before:
                said = f"the boot before ended with a hardware error ({report.severity}); it tells nothing of now"
                yield sign(self.name, part, Level.WATCH, report.severity, said)
            elif report.severity in GRAVE:
                said = f"the firmware reports a {report.severity} hardware error ({report.section or 'no part named'})"
                yield sign(self.name, part, Level.BAD, report.severity, said)
        yield from self._corrected([each for each in found if not each.of_before and each.severity == "corrected"])

    def _corrected(self, found: Sequence[Report]) -> Iterator[Sign]:
        for part in dict.fromkeys(report.part or report.section or "hardware" for report in found):
            mine = [each for each in found if (each.part or each.section or "hardware") == part]
            hourly = kmsg.most_within([kmsg.Record(each.at, "") for each in mine], HOUR_S)
            daily = kmsg.most_within([kmsg.Record(each.at, "") for each in mine], DAY_S)
            count = max(hourly, _counted(mine))
            if any(each.is_memory for each in mine):
                level = Level.BAD if daily > CORRECTED_A_DAY else Level.WATCH
            else:
                level = Level.WATCH if count > CORRECTED_AN_HOUR else Level.OK
            said = f"the firmware reports corrected errors ({mine[0].section})"
            yield sign(self.name, part, level, count, said, counter=True)


def _counted(found: Sequence[Report]) -> float:
    """Return the reports per hour, from the newest report's number since boot."""
    last = found[-1]
    if last.number is None or not last.at:
        return 0
    return round(last.number * HOUR_S / max(last.at, HOUR_S))


def reports(log: Sequence[kmsg.Record]) -> list[Report]:
    """Return the events of a log, each with the details of the lines after it."""
    found: list[Report] = []
    of_before = False
    for record in log:
        if record.text.startswith("BERT: Error records from previous boot"):
            of_before = True
        if not (match := LINE.match(record.text)):
            continue
        number, text = match[1], match[2].strip()
        of_before = of_before and number is None
        key, _, value = text.partition(": ")
        if key == "event severity":
            report = Report(record.at, int(number) if number else None, value.strip(), of_before)
            found.append(report)
        elif found and key == "section_type" and not found[-1].section:
            found[-1].section = value.strip()
        elif found and key in ("fru_text", "device_id", "DIMM location") and not found[-1].part:
            found[-1].part = value.strip()
    return found
