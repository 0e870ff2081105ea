"""Machine checks: the processor's own reports, and memory pages that were taken out of use.

Source: Intel SDM volume 3, 15.3.2.2 (IA32_MCi_STATUS: VAL 63, UC 61, EN 60, PCC 57); arch/x86/kernel/cpu/mce;
mm/memory-failure.c. The letters MCE in a line mean nothing by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, whole

VALID, UNCORRECTED, ENABLED = 1 << 63, 1 << 61, 1 << 60
BANK = re.compile(r"Bank (\d{1,3}): ([0-9a-fA-F]{16})\b", re.ASCII)
DECODED = re.compile(r"MC\d{1,3}_STATUS\[[^\]]{0,120}\]: 0x([0-9a-f]{1,16})", re.ASCII)
PAGE = re.compile(r"(?:Memory failure:|MCE) (0x[0-9a-f]{1,16}): .*?recovery action for (.{0,60}): (\w+)", re.ASCII)
INJECTED = re.compile(r"Injecting memory failure.*? (?:page|pfn) (0x[0-9a-f]{1,16})", re.ASCII)
TESTED = re.compile(r"Triggering MCE exception on CPU|Starting machine check poll CPU|Machine check injector", re.ASCII)
TEST_S = 5.0  # a machine check within this time belongs to the test
UNCORRECTED_LINES = re.compile(
    r"(mce: )?Uncorrected hardware memory error in|mce: Memory error not recovered|"
    r"\[Hardware Error\]: (Uncorrected|Deferred error)|(mce: )?\[Hardware Error\]: (Fatal|Machine check: Processor)|"
    r"Kernel panic - not syncing: .*[Mm]achine check",
    re.ASCII,
)
CORRECTED_LINE = re.compile(r"\[Hardware Error\]: Corrected error", re.ASCII)
LOGGED = "Machine check events logged"
PAGE_KIB = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """The log's lines, the memory taken out of use (KiB), and the machine checks counted by /proc/interrupts."""

    log: tuple[kmsg.Record, ...]
    corrupted_kib: int | None
    exceptions: int | None
    thresholds: int | None


def bank_level(status: int) -> Level:
    """Return the meaning of one bank's status while the machine runs."""
    if not status & VALID:
        return Level.OK
    if not status & UNCORRECTED:
        return Level.WATCH
    return Level.BAD if status & ENABLED else Level.WATCH


class Mce:
    """The sensor of machine checks."""

    name = "mce"

    def read(self, source: Source) -> Reading | None:
        log = tuple(record for record in kmsg.read(source) or () if _matters(record.text))
        corrupted = None
        for line in lines(source.text("proc/meminfo")):
            if line.startswith("HardwareCorrupted:"):
                corrupted = whole(line.split()[1]) if len(line.split()) > 1 else None
        rows = dict(_interrupts(lines(source.text("proc/interrupts"))))
        if not log and corrupted is None and not rows:
            return None
        return Reading(log, corrupted, rows.get("MCE"), rows.get("THR"))

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last
        if last.corrupted_kib is not None:
            pages = last.corrupted_kib // PAGE_KIB
            level = Level.WATCH if pages else Level.OK
            yield sign(self.name, "pages", level, pages, f"{pages} pages of memory are taken out of use")
        if last.exceptions is not None:
            level = Level.WATCH if last.exceptions else Level.OK
            yield sign(self.name, "exceptions", level, last.exceptions, "machine check exceptions since boot")
        if series.growth(lambda reading: reading.thresholds):
            yield sign(self.name, "thresholds", Level.WATCH, last.thresholds, "corrected errors passed a threshold")
        yield from self._logged(kmsg.merged(moment.reading.log for moment in series.moments))

    def _logged(self, log: Sequence[kmsg.Record]) -> Iterator[Sign]:
        injected = {match[1] for record in log if (match := INJECTED.search(record.text))}
        told = False
        tested = [record.at or 0.0 for record in log if TESTED.match(record.text)]
        for record in log:
            if TESTED.match(record.text) or any(0 <= (record.at or 0.0) - at <= TEST_S for at in tested):
                told = True
            elif found := self._line(record, injected):
                told = told or not record.at_boot
                yield found
        late = [record for record in log if LOGGED in record.text and not record.at_boot]
        if late and not told:
            yield sign(self.name, "log", Level.WATCH, len(late), "the kernel logged machine checks without details")

    def _line(self, record: kmsg.Record, injected: set[str]) -> Sign | None:
        text = record.text
        if match := BANK.search(text) or DECODED.search(text):
            status = int(match[match.lastindex or 0], 16)
            part = f"bank {match[1]}" if match.re is BANK else "bank"
            level = bank_level(status)
            if record.at_boot:
                level = Level.WATCH if level is Level.BAD else Level.OK
                return sign(self.name, part, level, f"{status:016x}", "a machine check that the boot before left")
            said = "an uncorrected machine check" if status & UNCORRECTED else "a corrected machine check"
            return sign(self.name, part, level, f"{status:016x}", said)
        if match := PAGE.search(text):
            if match[1] in injected:
                return sign(self.name, match[1], Level.OK, match[3], "a program asked for this memory failure")
            level = Level.WATCH if match[3] in ("Recovered", "Delayed") else Level.BAD
            return sign(self.name, match[1], level, match[3], f"memory failed: {match[2]}")
        if UNCORRECTED_LINES.match(text) and not record.at_boot:
            return sign(self.name, "log", Level.BAD, "", f"an uncorrected error: {text}")
        if CORRECTED_LINE.match(text) and not record.at_boot:
            return sign(self.name, "log", Level.WATCH, "", "the processor corrected an error")
        return None


def _matters(text: str) -> bool:
    return bool(
        LOGGED in text
        or BANK.search(text)
        or DECODED.search(text)
        or PAGE.search(text)
        or INJECTED.search(text)
        or TESTED.match(text)
        or UNCORRECTED_LINES.match(text)
        or CORRECTED_LINE.match(text)
    )


def _interrupts(rows: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Return the sums over processors of MCE (exceptions) and THR. MCP counts polls and grows on every healthy host."""
    for row in rows:
        words = row.split()
        if words and words[0] in ("MCE:", "THR:"):
            yield words[0][:-1], sum(int(word) for word in words[1:] if word.isascii() and word.isdigit())
