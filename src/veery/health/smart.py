"""SMART of SATA and SAS disks.

PASSED means little by itself: attributes 197 and 198 have the threshold 0 and can never trip. Bits 5 and 6 of
smartctl's exit status stay set forever. Old defects that do not grow are no reason to move domains."""

from __future__ import annotations

import re
from collections.abc import Iterator

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign, worst
from veery.health.smartlog import COMMAND_FAILED, FAILING, OPEN_FAILED, PREFAIL_NOW, SELFTEST, Disk, disk, of_one
from veery.health.source import Source

REALLOCATED, REPORTED, PENDING, UNREADABLE, CABLE = 5, 187, 197, 198, 199
PENDING_BAD = 10  # sectors, if the number grows
REALLOCATED_MANY = 1000  # sectors, for a disk that is read for the first time
DEFECTS_MANY = 1000
WORN_PERCENT = 90
OLD_TEST_HOURS = 90 * 24
HOT_CELSIUS = 65  # of a rotating disk; vendors allow 60
WEAR = re.compile(r"media_wearout|wear_leveling|ssd_life_left|lifetime_remain|remaining_lifetime|percent_life", re.I)
LEAST_LIFE = 10  # of the normalised value

Found = tuple[Level, object, str]


class Smart:
    """The sensor of the SMART health of disks."""

    name = "smart"

    def read(self, source: Source) -> dict[str, Disk | None] | None:
        found = {part: disk(text) for part, text in source.outputs("smartctl").items()}
        return {part: each for part, each in found.items() if each is None or not each.is_nvme} or None

    def judge(self, series: Series[dict[str, Disk | None]]) -> Iterator[Sign]:
        for part in dict.fromkeys(part for reading in series.earlier for part in reading if part not in series.last):
            yield sign(self.name, part, Level.WATCH, "", "the disk was there before, and is gone")
        for part, last in series.last.items():
            serial = last.serial if last else ""
            if last is not None and "STANDBY" in last.said:
                yield sign(self.name, part, Level.OK, "standby", "the disk sleeps, and was not woken", serial=serial)
                continue
            if last is None or not last.answered:
                said = "smartctl could not read the disk's health"
                value = last.said if last else "unreadable"
                yield sign(self.name, part, Level.UNKNOWN, value, said)
                continue
            findings = [*_latched(last), *_grown(series, part, last)]
            if not findings:
                yield sign(
                    self.name, part, Level.OK, "passed" if last.passed else "", "no sign of failure", serial=serial
                )
                continue
            level = worst(found[0] for found in findings)
            for found_level, shown, said in findings:
                if found_level is level:
                    yield sign(self.name, part, level, shown, said, serial=serial)


def _latched(last: Disk) -> Iterator[Found]:
    """Yield the findings of a single reading."""
    if last.passed is False or last.status & FAILING:
        yield Level.BAD, last.said or "FAILED", "the disk says that it fails"
    elif last.passed is None and last.status & (OPEN_FAILED | COMMAND_FAILED):
        yield Level.UNKNOWN, last.status, "smartctl could not read all of the disk's health"
    now = [each for each in last.attributes.values() if each.failing_now and each.prefail]
    if now:
        yield Level.WATCH, now[0].name, "an attribute that foretells failure is at its threshold"
    elif last.status & PREFAIL_NOW:
        yield Level.WATCH, last.status, "an attribute that foretells failure is at its threshold"
    yield from _selftests(last)
    if last.trip_celsius and last.celsius and last.celsius >= last.trip_celsius:
        yield Level.WATCH, last.celsius, f"the disk is at its trip temperature of {last.trip_celsius} C"
    elif last.rotates and last.celsius and HOT_CELSIUS <= last.celsius < 100:
        yield Level.WATCH, last.celsius, "the disk is hot"
    worn = [each for each in last.attributes.values() if WEAR.search(each.name) and 0 < each.value <= LEAST_LIFE]
    if (last.endurance_used or 0) >= WORN_PERCENT or worn:
        yield Level.WATCH, worn[0].value if worn else last.endurance_used, "the disk is worn"


def _selftests(last: Disk) -> Iterator[Found]:
    if not last.tests:
        if last.status & SELFTEST:
            yield Level.WATCH, last.status, "the self-test log holds a failed test"
        return
    failed, hour = last.tests[0]
    if failed and last.hours is not None and hour is not None and last.hours - hour > OLD_TEST_HOURS:
        yield Level.WATCH, hour, "the last self-test failed, and long ago"
    elif failed:
        yield Level.BAD, "" if hour is None else hour, "the last self-test failed"
    elif last.status & SELFTEST:  # smartctl leaves out tests that a newer long test has superseded
        yield Level.WATCH, "", "an earlier self-test failed, the last one did not"


def _grown(series: Series[dict[str, Disk | None]], part: str, last: Disk) -> Iterator[Found]:
    """Yield the findings of counters, by their growth if there is more than one reading."""

    def growth(key: int) -> int | None:
        def counter(reading: dict[str, Disk | None]) -> int | None:
            found = of_one(reading, part, last.serial)
            attribute = found.attributes.get(key) if found else None
            return attribute.raw if attribute else None

        return series.growth(counter)

    def raw(key: int) -> int:
        attribute = last.attributes.get(key)
        return attribute.raw if attribute else 0

    pending = max(raw(PENDING), raw(UNREADABLE))
    bogus = pending == raw(PENDING) == 1 and last.rotates is False  # firmware of some SSDs shows 1 and withdraws it
    grows = max(growth(PENDING) or 0, growth(UNREADABLE) or 0) > 0
    if pending > PENDING_BAD and grows:
        yield Level.BAD, pending, f"{pending} sectors cannot be read, and they become more"
    elif pending and not bogus:
        yield Level.WATCH, pending, f"{pending} sectors cannot be read"
    reallocated = growth(REALLOCATED)
    if reallocated or (reallocated is None and raw(REALLOCATED) >= REALLOCATED_MANY):
        yield Level.WATCH, raw(REALLOCATED), f"{raw(REALLOCATED)} sectors are reallocated"
    if growth(REPORTED):
        yield Level.WATCH, raw(REPORTED), "the disk gave up on reads"
    if growth(CABLE):
        yield Level.WATCH, raw(CABLE), "transfers are damaged: look at the cable"
    yield from _scsi(series, part, last)


def _scsi(series: Series[dict[str, Disk | None]], part: str, last: Disk) -> Iterator[Found]:
    def growth(field: str) -> int | None:
        def counter(reading: dict[str, Disk | None]) -> int | None:
            found = of_one(reading, part, last.serial)
            count = getattr(found, field) if found else None
            return count if isinstance(count, int) else None

        return series.growth(counter)

    uncorrected, defects = growth("uncorrected"), growth("defects")
    if uncorrected or (uncorrected is None and last.uncorrected):
        yield Level.WATCH, last.uncorrected, "the disk could not correct errors"
    if defects or (defects is None and (last.defects or 0) >= DEFECTS_MANY):
        yield Level.WATCH, last.defects, f"{last.defects} defects have grown"
    if growth("logged_errors") and last.surface_errors is not False:
        yield Level.WATCH, last.logged_errors, "the disk's error log grows"
