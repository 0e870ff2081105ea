"""The event log of the management controller (SEL).

Its ids and counts cannot be trusted: a full log wraps around, and tools list old records again. An event is new if no
earlier reading had it and it is not older than the events of that reading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

RECENT = timedelta(hours=24)  # for a first reading: events at most this much older than the newest one
EVENTS_MAX = 20_000
BAD_EVENT = re.compile(
    r"uncorrectable|\bIERR\b|CATERR|thermal trip|bus fatal|PCI SERR|upper critical going high"
    r"|upper non-recoverable going high|fatal error|transition to non-recoverable"
    r"|undetermined system hardware failure",
    re.I,
)
WATCH_EVENT = re.compile(
    r"\bcorrectable|logging limit|power supply (failure|AC lost|input lost)|failure detected|power supply.*(lost|fail)"
    r"|redundancy (lost|degraded)|drive fault|fault status|predictive"
    r"|lower (critical|non-recoverable) going low|bus uncorrectable"
    r"|PCI PERR|throttled|transition to critical|battery.*(low|fail)",
    re.I,
)
DATES = ("%m/%d/%Y %H:%M:%S", "%m/%d/%y %H:%M:%S", "%b-%d-%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%d-%b-%Y %H:%M:%S")


@dataclass(frozen=True, slots=True)
class Event:
    """One record, without its id. `at` is None if the controller had no time."""

    at: datetime | None
    sensor: str
    said: str
    is_over: bool  # True if the record withdraws its event
    reading: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.sensor, self.said


@dataclass(frozen=True, slots=True)
class Reading:
    """The events; None if the tool's answer could not be parsed."""

    events: tuple[Event, ...] | None


class Sel:
    """The sensor of the management controller's event log."""

    name = "sel"

    def read(self, source: Source) -> Reading | None:
        texts = [
            text
            for program in ("ipmitool-sel", "ipmitool-sel-elist", "ipmi-sel")
            for text in source.outputs(program).values()
        ]
        if not texts:
            return None
        found = tuple(event for text in texts for event in _events(lines(text)))[-EVENTS_MAX:]
        is_empty = any("no entries" in text[:2000].lower() or not text.strip() for text in texts)
        return Reading(found if found or is_empty else None)

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last.events
        if last is None:
            yield sign(self.name, "log", Level.UNKNOWN, "", "the event log cannot be read")
            return
        fresh = _fresh(series)
        standing: dict[tuple[str, str], Event] = {}
        for event in fresh:
            if event.is_over:
                standing.pop(event.key, None)
            else:
                standing[event.key] = event
        told = 0
        for event in standing.values():
            text = f"{event.sensor} {event.said}"
            if _is_glitch(event):
                continue
            if BAD_EVENT.search(text):
                level = Level.BAD
            elif WATCH_EVENT.search(text):
                level = Level.WATCH
            else:
                continue
            told += 1
            yield sign(self.name, event.sensor, level, event.at or "", event.said)
        if not told:
            yield sign(self.name, "log", Level.OK, len(fresh), f"{len(fresh)} new events, none of a failure")


def _is_glitch(event: Event) -> bool:
    """Return True if the controller lost a reading: no part of a machine is at 0 C or 0 V. Fans can stop, however."""
    if "going low" not in event.said.lower() or event.sensor.lower().startswith("fan"):
        return False
    return event.sensor.lower().startswith("temperature") or event.reading.startswith("Reading 0 ")


def _fresh(series: Series[Reading]) -> list[Event]:
    """Return the events that are new since the first reading; of a single reading, the recent ones."""
    earlier = [event for reading in series.earlier for event in reading.events or ()]
    last = series.last.events or ()
    if not series.earlier:
        times = [event.at for event in last if event.at]
        times += [series.given.now] if series.given.now else []
        newest = max(times, default=None)
        return [event for event in last if not event.at or not newest or newest - event.at <= RECENT]
    first = series.moments[0].reading.events or ()
    known = {(event.at, event.key, event.is_over) for event in first}
    newest = max((event.at for event in first if event.at), default=None)
    return [
        event
        for event in dict.fromkeys([*earlier, *last])
        if (event.at, event.key, event.is_over) not in known and not (event.at and newest and event.at < newest)
    ]


def _events(rows: Sequence[str]) -> Iterator[Event]:
    """Parse ipmitool sel list and elist (id | date | time | sensor | event | direction | reading), and ipmi-sel (ID |
    Date | Time | Name | Type | Event, separated by bars or commas)."""
    for row in rows:
        cells = [cell.strip() for cell in (row.split("|") if "|" in row else row.split(","))]
        if len(cells) < 5 or not re.fullmatch(r"[0-9a-fA-F]{1,8}", cells[0]):
            continue
        direction = next((cell.lower() for cell in cells[5:] if cell.lower() in ("asserted", "deasserted")), "")
        if direction or len(cells) == 5:
            sensor, said = cells[3], cells[4]
        else:
            sensor, said = f"{cells[4]} {cells[3]}", ", ".join(cells[5:])
        is_over = direction == "deasserted" or "deassert" in said.lower()
        yield Event(_time(cells[1], cells[2]), sensor, said, is_over, cells[-1] if direction else "")


def _time(date: str, time: str) -> datetime | None:
    text = f"{date} {time[:8]}"
    for form in DATES:
        try:
            return datetime.strptime(text, form)  # the controller's own clock, compared only with itself
        except ValueError:
            continue
    return None
