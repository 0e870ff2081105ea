"""The kernel's log: records in the format of /dev/kmsg, and lines in the format of dmesg(1).

Format: Documentation/ABI/testing/dev-kmsg: `level,sequence,microseconds,flags;text`. A line that begins with a blank
continues the record before it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veery.health.source import Source, lines, read_text

LOG_MAX = 2 << 20  # bytes of a log; the newest are kept
RECORD = re.compile(r"(\d{1,6}),(\d{1,18}),(\d{1,18}),[^;]{0,80};(.*)", re.ASCII)
DMESG = re.compile(r"(?:<\d{1,3}>)?\[\s*(\d{1,12})\.(\d{6})\](?:\[[^\]]{0,20}\])? ?(.*)", re.ASCII)
SYSLOG = re.compile(r"[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S{1,64} kernel: (?:\[\s*\d{1,12}\.\d{6}\] )?(.*)", re.ASCII)
BOOT_S = 30.0  # lines logged earlier than this describe the firmware and the previous boot


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log. `at`: seconds after boot, None if the line has no time."""

    at: float | None
    text: str

    @property
    def at_boot(self) -> bool:
        """Return True if the kernel logged it while it started."""
        return self.at is not None and self.at < BOOT_S


def read(source: Source) -> tuple[Record, ...] | None:
    """Return the log from the root's kmsg.txt, or from the output `kmsg` or `dmesg`; None if there is none."""
    if "kmsg" not in source.kept:
        text = read_text(source.root / "kmsg.txt", LOG_MAX, tail=True)
        if text is None:
            text = source.output("kmsg") or source.output("dmesg")
        source.kept["kmsg"] = None if text is None else parse(text)
    found: tuple[Record, ...] | None = source.kept["kmsg"]
    return found


def parse(text: str) -> tuple[Record, ...]:
    """Return the records of a log's text."""
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
    """Return one log from several readings of it. A record that an earlier reading had counts once."""
    found: list[Record] = []
    known: set[Record] = set()
    for log in logs:
        fresh = [record for record in log or () if record not in known]
        found.extend(fresh)
        known.update(fresh)
    return tuple(found)


def most_within(records: Sequence[Record], seconds: float) -> int:
    """Return the largest number of records within so many seconds. A record without a time counts everywhere."""
    times = sorted(record.at for record in records if record.at is not None)
    most = start = 0
    for end, at in enumerate(times):
        while at - times[start] > seconds:
            start += 1
        most = max(most, end - start + 1)
    return most + len(records) - len(times)
