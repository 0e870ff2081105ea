"""The readings of one sensor over time, and what the node knows in addition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from veery.health.sign import Sign
from veery.health.source import Source

T = TypeVar("T")
NAMES_MAX = 256  # names in one list of given.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the node knows and no sensor can read; None if unknown."""

    uplinks: frozenset[str] | None = None  # the interfaces of guests' bridges
    storage_nics: frozenset[str] | None = None
    own_paths: tuple[str, ...] | None = None  # folders that the node writes to
    own_luns: frozenset[str] = frozenset()  # disks that are volumes of domains: errors there do not belong to this host
    host_disks: frozenset[str] | None = None
    maps_in_use: frozenset[str] | None = None  # multipath maps
    now: datetime | None = None  # the wall clock of the running node, for records that carry dates

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Given:
        """Return what a given.json says. Other keys, and values of another form, are ignored."""

        def names(key: str) -> frozenset[str] | None:
            value = found.get(key)
            if not isinstance(value, list):
                return None
            return frozenset(name.removeprefix("/dev/") for name in value[:NAMES_MAX] if isinstance(name, str))

        paths = found.get("own_paths")
        return cls(
            uplinks=names("uplinks"),
            storage_nics=names("storage_nics"),
            own_paths=tuple(path for path in paths[:NAMES_MAX] if isinstance(path, str))
            if isinstance(paths, list)
            else None,
            own_luns=names("own_luns") or frozenset(),
            host_disks=names("host_disks"),
            maps_in_use=names("maps_in_use"),
        )

    def is_ours(self, disk: str) -> bool:
        """Return True if a disk's errors belong to this host. `disk` may be a partition or an NVMe controller."""
        if any(same_disk(disk, lun) for lun in self.own_luns):
            return False
        return self.host_disks is None or any(same_disk(disk, host) for host in self.host_disks)


def same_disk(part: str, disk: str) -> bool:
    """Return True if `part` is `disk`, its controller (nvme0 of nvme0n1) or a partition of it (sda1, nvme0n1p2)."""
    if part == disk:
        return True
    if disk.startswith(part) and disk[len(part) :].startswith("n") and part.startswith("nvme"):
        return True
    rest = part.removeprefix(disk)
    return rest != part and (rest.isdigit() or (rest.startswith("p") and rest[1:].isdigit()))


@dataclass(frozen=True, slots=True)
class Moment(Generic[T]):
    """One reading. `at`: seconds from any start, None if unknown."""

    at: float | None
    reading: T


@dataclass(frozen=True, slots=True)
class Series(Generic[T]):
    """Readings, oldest first, at least one. A single reading is treated as a lasting state, and its counters as counts
    since boot."""

    moments: tuple[Moment[T], ...]
    given: Given

    @property
    def last(self) -> T:
        """Return the newest reading."""
        return self.moments[-1].reading

    @property
    def earlier(self) -> tuple[T, ...]:
        """Return all readings but the newest."""
        return tuple(moment.reading for moment in self.moments[:-1])

    @property
    def span_s(self) -> float | None:
        """Return the seconds from the first reading to the last; None for a single reading, or if times are unknown."""
        first, last = self.moments[0].at, self.moments[-1].at
        return last - first if len(self.moments) > 1 and first is not None and last is not None else None

    def held(self, is_so: Callable[[T], bool], seconds: float) -> bool:
        """Return True if the newest readings have shown the condition for so many seconds. A condition that all
        readings show is treated as lasting."""
        since: float | None = None
        for moment in reversed(self.moments):
            if not is_so(moment.reading):
                break
            since = moment.at
        else:
            return True
        last = self.moments[-1].at
        return is_so(self.last) and (last is None or since is None or last - since >= seconds)

    def growth(self, counter: Callable[[T], int | None]) -> int | None:
        """Return by how much a counter grew, across resets; None if it was read less than twice."""
        values = [value for moment in self.moments if (value := counter(moment.reading)) is not None]
        if len(values) < 2:
            return None
        return sum(new - old if new >= old else new for old, new in itertools.pairwise(values))

    def rate(self, counter: Callable[[T], int | None], seconds: float) -> float | None:
        """Return the growth in `seconds`; over a shorter time, the growth so far. None if `growth` is None."""
        grown = self.growth(counter)
        if grown is None:
            return None
        return grown * seconds / max(self.span_s or 0.0, seconds)


class Sensor(Protocol):
    """One sensor: it reads, and it judges its readings.

    `read` returns None if the host has nothing of the kind. `judge` is pure. Neither has to be careful: any exception
    turns the sensor unknown (see looking.py)."""

    @property
    def name(self) -> str:
        """The sensor's name, in signs and settings."""

    def read(self, source: Source) -> Any:
        """Return what the source shows now."""

    def judge(self, series: Series[Any]) -> Iterable[Sign]:
        """Return the signs that follow from the readings."""
