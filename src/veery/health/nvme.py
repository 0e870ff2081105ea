"""NVMe: the health log of each controller.

Source: NVM Express Base Specification 2.0, 5.16.1.3 (SMART / Health Information): the bits of the critical warning. The
percentage used may pass 100 and stops at 255; 101 to 255 are reserved for the spare and its threshold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from veery.health.series import Series
from veery.health.sign import Level, Sign, real_serial, sign, worst
from veery.health.smartlog import Disk, disk, of_one
from veery.health.source import Source

SPARE, TEMPERATURE, RELIABILITY, READ_ONLY, BACKUP, REGION = (1 << bit for bit in range(6))
KNOWN_BITS = 0x3F
WORN_PERCENT = 90
WORN_OUT_PERCENT = 100  # some vendors set the reliability bit for this alone
CONTROLLER = re.compile(r"(?<=\d)n\d+$")  # of nvme0n1: nvme0
MEDIA_ERRORS_MANY = 100  # for a disk that is read for the first time

Log = Mapping[str, int]
Found = tuple[Level, object, str]


class Nvme:
    """The sensor of NVMe disks."""

    name = "nvme"

    def read(self, source: Source) -> dict[str, Disk | None] | None:
        found: dict[str, Disk | None] = {}
        for part, text in source.outputs("nvme-smart-log").items():
            each = disk(text)
            if each and each.is_nvme and not each.serial:  # nvme smart-log does not print it
                each.serial = real_serial(source.word(f"sys/class/nvme/{CONTROLLER.sub('', part)}/serial") or "")
            found[part] = each if each and each.is_nvme else None
        for part, text in source.outputs("smartctl").items():
            each = disk(text)
            if each and each.is_nvme and (part not in found or each.answered):
                found[part] = each
        return found or None

    def judge(self, series: Series[dict[str, Disk | None]]) -> Iterator[Sign]:
        for part in dict.fromkeys(part for reading in series.earlier for part in reading if part not in series.last):
            yield sign(self.name, part, Level.WATCH, "", "the disk was there before, and is gone")
        for part, last in series.last.items():
            serial = last.serial if last else ""
            if last is None or "critical_warning" not in last.nvme:
                level = Level.BAD if last and last.passed is False else Level.UNKNOWN
                said = "the disk says that it fails" if level is Level.BAD else "the disk's health log cannot be read"
                yield sign(self.name, part, level, last.said if last else "", said, serial=serial)
            elif _is_garbage(last.nvme):
                yield sign(self.name, part, Level.UNKNOWN, "", "the health log holds reserved values")
            else:
                findings = list(_findings(series, part, last))
                level = worst(found[0] for found in findings) if findings else Level.OK
                if not findings:
                    yield sign(self.name, part, level, last.nvme["critical_warning"], "no warning", serial=serial)
                for found_level, value, said in findings:
                    if found_level is level:
                        yield sign(self.name, part, level, value, said, serial=serial)


def _is_garbage(log: Log) -> bool:
    return (
        log.get("available_spare", 0) > 100
        or log.get("available_spare_threshold", 0) > 100
        or bool(log["critical_warning"] & ~KNOWN_BITS)
    )


def _findings(series: Series[dict[str, Disk | None]], part: str, last: Disk) -> Iterator[Found]:
    log: Log = last.nvme
    warning, used = log["critical_warning"], log.get("percentage_used", 0)
    spare, threshold = log.get("available_spare"), log.get("available_spare_threshold")
    is_low = spare is not None and threshold is not None and spare < threshold
    errors = log.get("media_errors", 0)

    def media_errors(reading: dict[str, Disk | None]) -> int | None:
        found = of_one(reading, part, last.serial)
        return found.nvme.get("media_errors") if found else None

    grown = series.growth(media_errors)
    if is_low or (warning & SPARE and (spare is None or threshold is None)):
        yield Level.BAD, "?" if spare is None else f"{spare} %", "the spare is below its threshold"
    elif warning & SPARE:
        yield Level.WATCH, f"{spare} %", "the disk warns of its spare, which is above the threshold"
    if warning & READ_ONLY:
        yield Level.BAD, f"0x{warning:02x}", "the disk takes no more writes"
    if warning & RELIABILITY:
        if used >= WORN_OUT_PERCENT and not grown:
            yield Level.WATCH, f"{used} %", "the disk is past the wear that it is made for, and nothing else"
        else:
            yield Level.BAD, f"0x{warning:02x}", "the disk says that it is not reliable, and wear does not explain it"
    if warning & TEMPERATURE:
        yield Level.WATCH, f"0x{warning:02x}", "the disk is out of its temperature range"
    if warning & BACKUP:
        yield Level.WATCH, f"0x{warning:02x}", "the disk's protection against a loss of power has failed"
    if warning & REGION:
        yield Level.WATCH, f"0x{warning:02x}", "the disk's persistent memory region is not reliable"
    if used >= WORN_PERCENT and not warning & RELIABILITY:
        yield Level.WATCH, f"{used} %", "the disk is worn"
    if grown or (grown is None and errors >= MEDIA_ERRORS_MANY):
        yield Level.WATCH, errors, f"{errors} errors of the medium"
