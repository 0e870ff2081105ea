"""Multipath maps: how many paths each has left.

Source: multipath(8), `multipath -ll`: its path groups follow each map. A path shows the state of device-mapper, of the
checker and of the disk. A map that is not in use is a leftover, and its paths do not matter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from veery.health.series import Given, Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

MAP = re.compile(r"(?:\w{1,20}: )?(\S{1,128})(?: \((\S{1,128})\))? (dm-\d{1,6}) ?(.*)", re.ASCII)
PATH = re.compile(
    r"[\s|`+\\_-]{1,40}(?:[\d#]+:[\d#]+:[\d#]+:[\d#]+) (\S{1,40})\s+([\d#]+:[\d#]+)\s+"
    r"\[?(\w+)\]?\s*\[?([\w/]+(?: pending)?)\]?(?:\s+(\w+))?",
    re.ASCII,
)
GONE = ("-", "##")
GOOD = ("ready", "ghost", "delayed")


@dataclass(slots=True)
class Map:
    """One map: its other names, and its paths: True if up, False if lost, None if no checker reports."""

    names: frozenset[str]
    paths: dict[str, bool | None] = field(default_factory=dict)
    gone: int = 0  # paths whose disks no longer exist

    def is_used(self, given: Given) -> bool:
        return given.maps_in_use is None or bool(self.names & given.maps_in_use)


class Multipath:
    """The sensor of paths to shared disks."""

    name = "multipath"

    def read(self, source: Source) -> dict[str, Map] | str | None:
        texts = list(source.outputs("multipath-ll").values())
        if not texts:
            return None
        found: dict[str, Map] = {}
        for text in texts:
            found.update(_maps(lines(text)))
        if found:
            return found
        return "nothing in it can be understood" if any(text.strip() for text in texts) else None

    def judge(self, series: Series[dict[str, Map] | str]) -> Iterator[Sign]:
        if isinstance(series.last, str):
            yield sign(self.name, "maps", Level.UNKNOWN, "", f"multipath's answer: {series.last}")
            return
        for name, each in series.last.items():
            level, said = _judged(each, series.given)
            up = sum(path is True for path in each.paths.values())
            yield sign(self.name, name, level, f"{up}/{len(each.paths)}", said)


def _judged(each: Map, given: Given) -> tuple[Level, str]:
    lost = [path for path, up in each.paths.items() if up is False]
    if not each.is_used(given):
        return Level.OK, "no domain uses the map"
    if not each.paths:
        return Level.WATCH, "the map has no path at all"
    if each.gone == len(each.paths) and given.maps_in_use is None:
        return Level.WATCH, "the disks of all paths are gone: it may be a left-over"
    if len(lost) == len(each.paths):
        return Level.BAD, "all paths are lost"
    if lost:
        return Level.WATCH, f"lost: {', '.join(lost)}"
    if any(up is None for up in each.paths.values()):
        return Level.UNKNOWN, "no checker tells of the paths"
    return Level.OK, "all paths are up"


def _maps(rows: list[str]) -> dict[str, Map]:
    found: dict[str, Map] = {}
    current: Map | None = None
    for row in rows:
        if match := PATH.match(row):
            if current is not None:
                name = match[2] if match[1] in GONE else match[1]
                current.paths[name] = _is_up(match[3], match[4], match[5] or "running")
                current.gone += match[1] in GONE
        elif not row.startswith((" ", "|", "`", "+", "\\", "size=", "[")) and (match := MAP.match(row)):
            names = frozenset(name for name in (match[1], match[2], match[3]) if name)
            current = found.setdefault(match[1], Map(names))
    return found


def _is_up(mapper: str, checker: str, disk: str) -> bool | None:
    if mapper == "failed" or checker in ("faulty", "down", "shaky") or disk not in ("running", "undef", "unknown"):
        return False
    return True if checker in GOOD or checker.startswith("i/o") else None
