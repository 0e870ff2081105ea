"""Xen's own log. Xen owns the machine-check banks, so dom0's kernel often sees none of their errors.

Source: xen/arch/x86/cpu/mcheck/, xen/drivers/passthrough/, xen/common/ (watchdog) of Xen 4.17."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.mce import ENABLED, UNCORRECTED, bank_level
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

FAULTS = 3
GRAPHICS = ("0000:00:02.0", "00:02.0")  # Intel's: it faults at boot until its driver runs (Xen also has quirks for it)
GRAPHICS_FAULTS = 100
MARK = re.compile(r"\(XEN\) ?(?:\[[\d :.-]{1,40}\] ?)?(.*)", re.ASCII)
BANK = re.compile(r"(?:CPU\d+: )?Bank (\d{1,3}): ([0-9a-f]{16})", re.ASCII)
EXCEPTION = re.compile(
    r"(?:CPU ?#?\d+: )?Machine Check Exception:|MCE: Fatal|mce: .*[Ff]atal|Fatal machine check", re.ASCII
)
CORRECTED = re.compile(r"CMCI occurred on CPU|MCE: The hardware reports a non.?fatal, correctable incident", re.ASCII)
FAULT = re.compile(
    r"\[VT-D\](?:DMAR:)? ?\[DMA (?:Read|Write)\] Request device \[([0-9a-f:.]{1,20})\]|"
    r"AMD-Vi: (?:IO_PAGE_FAULT|Event).{0,40}?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])|"
    r"AMD-Vi: IO_PAGE_FAULT",
    re.ASCII,
)
STOPPED = re.compile(
    r"Watchdog timer (?:detects|fired for domain 0\b)|Hardware Dom0 (?:crashed|watchdog)|Panic on CPU|"
    r"NMI - (?:MEMORY|PCI system|I/O) ERROR|FATAL (?:TRAP|PAGE FAULT)",
    re.I,
)
HOT = re.compile(r"CPU(\d+): Temperature above threshold", re.ASCII)
COOL = re.compile(r"CPU(\d+): Temperature/speed normal", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """Xen's lines; None if the text has none."""

    log: tuple[str, ...] | None


class Xen:
    """The sensor of Xen's own log."""

    name = "xen"

    def read(self, source: Source) -> Reading | None:
        text = source.output("xl-dmesg")
        if text is None:
            return None
        found = tuple(match[1] for line in lines(text) if (match := MARK.match(line)))
        return Reading(found or None)

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        log = series.last.log
        if log is None:
            yield sign(self.name, "log", Level.UNKNOWN, "", "xl dmesg shows no line of Xen")
            return
        findings = [*_checks(log), *_faults(log), *_stops(log)]
        for part, level, value, said in findings:
            yield sign(self.name, part, level, value, said)
        if not findings:
            yield sign(self.name, "log", Level.OK, len(log), f"{len(log)} lines, none of an illness")


Found = tuple[str, Level, object, str]


def _checks(log: tuple[str, ...]) -> Iterator[Found]:
    banks = [(match[1], int(match[2], 16)) for text in log if (match := BANK.match(text))]
    for bank, status in banks:
        level = bank_level(status)
        kind = "an uncorrected" if status & UNCORRECTED else "a corrected"
        if level is not Level.OK:
            yield f"bank {bank}", level, f"{status:016x}", f"Xen saw {kind} machine check"
    exceptions = any(EXCEPTION.match(text) for text in log)
    if exceptions and not any(status & UNCORRECTED and status & ENABLED for _, status in banks):
        yield "processors", Level.BAD, "", "a machine check exception reached Xen"
    corrected = sum(bool(CORRECTED.match(text)) for text in log)
    if corrected and not banks:
        yield "processors", Level.WATCH, corrected, "Xen saw corrected machine checks"


def _faults(log: tuple[str, ...]) -> Iterator[Found]:
    found: dict[str, int] = {}
    for text in log:
        if match := FAULT.match(text):
            device = match[1] or match[2] or "a device"
            found[device] = found.get(device, 0) + 1
    for device, count in found.items():
        if count >= (GRAPHICS_FAULTS if device in GRAPHICS else FAULTS):
            yield device, Level.WATCH, count, "the device reads or writes where it may not"


def _stops(log: tuple[str, ...]) -> Iterator[Found]:
    for text in log:
        if STOPPED.match(text):
            yield "xen", Level.BAD, "", text
            break
    hot: dict[str, None] = {}
    for text in log:
        if match := HOT.match(text):
            hot[match[1]] = None
        elif match := COOL.match(text):
            hot.pop(match[1], None)
    if hot:
        yield "processors", Level.WATCH, len(hot), "processors slow down because they are hot"
