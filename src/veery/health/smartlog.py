"""Parses the output of smartctl(8) and nvme(1) into one form: their JSON, and the text that people send in.

Exit status of smartctl (smartctl(8), EXIT STATUS): bit 0 command line, 1 open failed, 2 a command failed, 3 the disk
fails, 4 a prefail attribute is at its threshold, 5 it was in the past, 6 the error log has entries, 7 the self-test log
has errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from veery.health.sign import real_serial
from veery.health.source import lines, parsed

OPEN_FAILED, COMMAND_FAILED, FAILING, PREFAIL_NOW, SELFTEST = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 7
FAILED_TESTS = range(3, 9)  # self-test status: 0 passed, 1 and 2 aborted, 15 under way
PASSED_TEST = 0
SURFACE_ERRORS = re.compile(r"\b(UNC|IDNF|AMNF|ICRC)\b", re.ASCII)
ROWS_MAX = 256
BIGGEST = 1 << 62

ATTRIBUTE = re.compile(
    r"\s{0,3}(\d{1,3}) ([\w-]{1,40})\s+0x[0-9a-f]{4}\s+(\d{1,3})\s+\d{1,3}\s+(\d{1,3}|---)\s+"
    r"\S+\s+\S+\s+(\S+)\s+(\d{1,18})",
    re.ASCII,
)
TEST = re.compile(
    r"# ?\d{1,3}\s+\w.{0,24}?\s{2,}(Completed|Aborted|Interrupted|Fatal|Failed)(\S.{0,40}|.{0,40}?)\s{2,}(.*)"
)
UNCORRECTED_ROW = re.compile(r"(read|write|verify):\s+(.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One ATA attribute; `raw` is its plain count."""

    name: str
    raw: int
    value: int
    threshold: int
    failing_now: bool
    prefail: bool


@dataclass(slots=True, kw_only=True)
class Disk:
    """One disk's health, as far as its tool reports it."""

    answered: bool = False  # True if any health information was read
    passed: bool | None = None
    status: int = 0
    is_nvme: bool = False
    rotates: bool | None = None
    said: str = ""
    hours: int | None = None
    attributes: dict[int, Attribute] = field(default_factory=dict)
    tests: list[tuple[bool, int | None]] = field(default_factory=list)  # newest first: (failed, hour of the test)
    logged_errors: int | None = None
    surface_errors: bool | None = None  # True if the error log shows errors of the medium or the cable
    defects: int | None = None  # SCSI: grown
    uncorrected: int | None = None  # SCSI: of reads, writes and verifies
    celsius: int | None = None
    trip_celsius: int | None = None
    endurance_used: int | None = None
    nvme: dict[str, int] = field(default_factory=dict)  # by smartctl's names
    serial: str = ""


def disk(text: str) -> Disk | None:
    """Parse a text of smartctl or nvme; return None if it is neither."""
    if text.lstrip()[:1] == "{":
        found = parsed(text)
        return None if found is None else _of_json(found)
    return _of_text(text)


def of_one(reading: Mapping[str, Disk | None], part: str, serial: str) -> Disk | None:
    """Return the disk of a reading at `part`; None if it is another one than that of `serial`."""
    found = reading.get(part)
    return found if found and (not serial or found.serial in ("", serial)) else None


def number(found: object) -> int | None:
    """Return a count from a number or from its text."""
    if isinstance(found, bool):
        return None
    if isinstance(found, float) and found.is_integer():
        found = int(found) if abs(found) < BIGGEST else None
    if isinstance(found, int):
        return found if found >= 0 else None
    if isinstance(found, str) and re.fullmatch(r"0x[0-9a-fA-F]{1,8}", found):
        return int(found, 16)
    if isinstance(found, str) and re.fullmatch(r"[0-9][0-9,.’'\s]{0,40}", found):
        return int(re.sub(r"[^0-9]", "", found))
    return None


def _table(found: object, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _rows(found: object) -> Iterator[Mapping[str, Any]]:
    yield from (row for row in (found if isinstance(found, list) else [])[:ROWS_MAX] if isinstance(row, dict))


def _of_json(found: dict[str, Any]) -> Disk:
    log = _table(found, "nvme_smart_health_information_log")
    if not log and "critical_warning" in found:
        log = found  # the answer of nvme smart-log itself
    passed = _table(found, "smart_status").get("passed")
    result = Disk(
        passed=passed if isinstance(passed, bool) else None,
        status=number(_table(found, "smartctl").get("exit_status")) or 0,
        is_nvme=bool(log) or _table(found, "device").get("protocol") == "NVMe",
        said=_message(found),
        serial=real_serial(str(found.get("serial_number") or "")),
        hours=number(_table(found, "power_on_time").get("hours")),
        celsius=number(_table(found, "temperature").get("current")),
        trip_celsius=number(_table(found, "temperature").get("drive_trip")),
        endurance_used=number(_table(found, "endurance_used").get("current_percent")),
        defects=number(found.get("scsi_grown_defect_list")),
    )
    if result.endurance_used is None:
        result.endurance_used = number(found.get("scsi_percentage_used_endurance_indicator"))
    turns = number(found.get("rotation_rate"))
    result.rotates = None if turns is None else turns > 0
    _attributes(result, found)
    _tests(result, found)
    _error_log(result, found)
    counters = [
        count
        for way in ("read", "write", "verify")
        if (count := number(_table(found, "scsi_error_counter_log", way).get("total_uncorrected_errors"))) is not None
    ]
    result.uncorrected = sum(counters) if counters else None
    result.nvme = _nvme(log)
    warning = number(_table(found, "smart_status", "nvme").get("value"))
    if warning is not None:
        result.nvme.setdefault("critical_warning", warning)
    result.answered = bool(
        result.passed is not None
        or result.attributes
        or result.tests
        or counters
        or "critical_warning" in result.nvme
        or result.status & (FAILING | PREFAIL_NOW | SELFTEST)
    )
    return result


def _message(found: dict[str, Any]) -> str:
    for row in _rows(_table(found, "smartctl").get("messages")):
        if isinstance(row.get("string"), str):
            return str(row["string"])
    return ""


def _attributes(result: Disk, found: dict[str, Any]) -> None:
    for row in _rows(_table(found, "ata_smart_attributes").get("table")):
        key, shown = number(row.get("id")), _table(row, "raw").get("string")
        raw = _first_number(shown) if isinstance(shown, str) else None
        if raw is None:
            raw = number(_table(row, "raw").get("value"))
        if key is None or raw is None:
            continue
        result.attributes[key] = Attribute(
            str(row.get("name", ""))[:40],
            raw,
            number(row.get("value")) or 0,
            number(row.get("thresh")) or 0,
            row.get("when_failed") == "now",
            _table(row, "flags").get("prefailure") is True,
        )


def _first_number(text: str) -> int | None:
    """Return the leading count of a field into which some disks pack more: `36 (Min/Max 0/51)`."""
    match = re.match(r"\s*([0-9]{1,18})", text, re.ASCII)
    return int(match[1]) if match else None


def _tests(result: Disk, found: dict[str, Any]) -> None:
    for kind in ("standard", "extended"):
        for row in _rows(_table(found, "ata_smart_self_test_log", kind).get("table")):
            code = number(_table(row, "status").get("value"))
            if code is not None and (code >> 4 == PASSED_TEST or code >> 4 in FAILED_TESTS):
                result.tests.append((code >> 4 in FAILED_TESTS, number(row.get("lifetime_hours"))))
    for index in range(20):
        row = _table(found, f"scsi_self_test_{index}")
        code = number(_table(row, "result").get("value"))
        if code is not None and (code == PASSED_TEST or code in range(3, 8)):
            result.tests.append((code in range(3, 8), number(_table(row, "power_on_time").get("hours"))))
    for row in _rows(_table(found, "nvme_self_test_log").get("table")):
        code = number(_table(row, "self_test_result").get("value"))
        if code is not None and (code == PASSED_TEST or code in range(5, 8)):
            result.tests.append((code in range(5, 8), number(row.get("power_on_hours"))))


def _error_log(result: Disk, found: dict[str, Any]) -> None:
    for kind in ("extended", "summary"):
        log = _table(found, "ata_smart_error_log", kind)
        if (count := number(log.get("count"))) is not None:
            result.logged_errors = count
            told = [str(row.get("error_description", "")) for row in _rows(log.get("table"))]
            result.surface_errors = any(SURFACE_ERRORS.search(each) for each in told) if told else None
            return


NVME_NAMES = {
    "critical_warning": ("critical_warning",),
    "available_spare": ("available_spare", "avail_spare"),
    "available_spare_threshold": ("available_spare_threshold", "spare_thresh"),
    "percentage_used": ("percentage_used", "percent_used"),
    "media_errors": ("media_errors",),
}


def _nvme(log: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, spellings in NVME_NAMES.items():
        for spelling in spellings:
            value = log.get(spelling)
            if isinstance(value, dict):  # nvme-cli from 2.10 on
                value = value.get("value")
            if (count := number(value)) is not None:
                found[name] = count
    return found


NVME_LINES = {
    "critical warning": "critical_warning",
    "available spare": "available_spare",
    "available spare threshold": "available_spare_threshold",
    "percentage used": "percentage_used",
    "media and data integrity errors": "media_errors",
    "media_errors": "media_errors",
    "critical_warning": "critical_warning",
    "available_spare": "available_spare",
    "available_spare_threshold": "available_spare_threshold",
    "percentage_used": "percentage_used",
}


def _leading(text: str) -> int | None:
    """Return the leading count of a text, with any separator of thousands: `8’382`, `1,024 [512 GB]`, `3%`."""
    match = re.match(r"0x[0-9a-fA-F]{1,8}|[0-9][0-9,.’'\s]{0,40}", text)
    return number(match[0].strip()) if match else None


def _of_text(text: str) -> Disk | None:
    result = Disk()
    for line in lines(text):
        key, colon, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if match := ATTRIBUTE.match(line):
            threshold = int(match[4]) if match[4].isdigit() else 0
            now = match[5] == "FAILING_NOW"
            result.attributes[int(match[1])] = Attribute(
                match[2], int(match[6]), int(match[3]), threshold, now, "Pre-fail" in line
            )
        elif line.startswith("#") and (match := TEST.match(line)):
            hour = next((word for word in reversed(match[3].split()[:2]) if word.isdigit()), None)
            failed = match[1] in ("Fatal", "Failed") or "fail" in match[2]
            if failed or match[1] == "Completed":
                result.tests.append((failed, int(hour) if hour else None))
        elif colon and (key.startswith(("smart overall-health", "smart health status"))):
            result.passed = value in ("PASSED", "OK")
            result.said = value
        elif colon and key == "serial number":
            result.serial = real_serial(value)
        elif colon and key in NVME_LINES and (count := _leading(value)) is not None:
            result.nvme[NVME_LINES[key]] = count
            result.is_nvme = True
        elif colon and key == "elements in grown defect list":
            result.defects = number(value)
        elif colon and key == "percentage used endurance indicator":
            result.endurance_used = _leading(value)
        elif match := UNCORRECTED_ROW.match(line):
            count = number(match[2].split()[-1])
            result.uncorrected = (result.uncorrected or 0) + (count or 0)
    hours = result.attributes.get(9)
    result.hours = hours.raw if hours else None
    result.answered = bool(
        result.passed is not None or result.attributes or result.tests or "critical_warning" in result.nvme
    )
    return result if result.answered or "smartctl" in text[:200] else None
