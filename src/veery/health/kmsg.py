"""The kernel's log: records as /dev/kmsg gives them, and lines as dmesg(1) prints them.

Format: Documentation/ABI/testing/dev-kmsg: `level,sequence,microseconds,flags;text`; a line that begins with a blank
continues the record before it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veery.health.source import Source, lines, read_text

LOG_MAX = 2 << 20  # bytes of a log, its newest
RECORD = re.compile(r"(\d{1,6}),(\d{1,18}),(\d{1,18}),[^;]{0,80};(.*)", re.ASCII)
DMESG = re.compile(r"(?:<\d{1,3}>)?\[\s*(\d{1,12})\.(\d{6})\](?:\[[^\]]{0,20}\])? ?(.*)", re.ASCII)
SYSLOG = re.compile(r"[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S{1,64} kernel: (?:\[\s*\d{1,12}\.\d{6}\] )?(.*)", re.ASCII)
BOOT_S = 30.0  # what the kernel logs so early tells of the firmware and of the boot before


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log; `at` in seconds after boot, None where the line tells no time."""

    at: float | None
    text: str

    @property
    def at_boot(self) -> bool:
        """Whether the kernel logged it while it started."""
        return self.at is not None and self.at < BOOT_S


def read(source: Source) -> tuple[Record, ...] | None:
    """The log under the root's kmsg.txt, or what the Outputs have as `kmsg`; None where there is none."""
    if "kmsg" not in source.kept:
        text = read_text(source.root / "kmsg.txt", LOG_MAX, tail=True)
        if text is None:
            text = source.output("kmsg") or source.output("dmesg")
        source.kept["kmsg"] = None if text is None else parse(text)
    found: tuple[Record, ...] | None = source.kept["kmsg"]
    return found


def parse(text: str) -> tuple[Record, ...]:
    """The records of a log's text."""
    found: list[Record] = []
    for line in lines(text, tail=True):
        if match := RECORD.match(line):
            found.append(Record(int(match[3]) / 1e6, match[4]))
        elif match := DMESG.match(line):
            found.append(Record(int(match[1]) + int(match[2]) / 1e6, match[3]))
        elif match := SYSLOG.match(line):
            found.append(Record(None, match[1]))
        elif line.strip() and not line.startswith(" "):
            found.append(Record(None, line))
    return tuple(found)


def merged(logs: Iterable[Sequence[Record] | None]) -> tuple[Record, ...]:
    """One log of several readings of it: a record that an earlier reading had counts once."""
    found: list[Record] = []
    known: set[Record] = set()
    for log in logs:
        fresh = [record for record in log or () if record not in known]
        found.extend(fresh)
        known.update(fresh)
    return tuple(found)


def most_within(records: Sequence[Record], seconds: float) -> int:
    """The most records that lie within so many seconds; a record without a time is within all of them."""
    times = sorted(record.at for record in records if record.at is not None)
    most = start = 0
    for end, at in enumerate(times):
        while at - times[start] > seconds:
            start += 1
        most = max(most, end - start + 1)
    return most + len(records) - len(times)
