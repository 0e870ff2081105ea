"""etcd on this node: how long the disk takes to write the store.

Source: etcd's /metrics; docs/metrics in etcd: wal_fsync_duration_seconds. Its alert rules (contrib/mixin) take a 99th
percentile over half a second as too slow. A slow disk delays every decision of the cluster. The domains do not depend
on it, so it is never bad."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, real

WINDOW_S = 600.0
SLOW_S = 0.5
SLOW_SHARE = 0.01  # of all writes
SLOW_LEAST = 3
ROW = re.compile(
    r'etcd_disk_wal_fsync_duration_seconds_(?:bucket\{le="([0-9.+a-zA-Z]{1,20})"\}|(count)) ([0-9.e+]{1,24})', re.ASCII
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Writes since etcd started, and those that took longer than SLOW_S or a little more; None if the text has none."""

    writes: int | None = None
    slow: int | None = None


class Etcd:
    """The sensor of etcd's disk."""

    name = "etcd"

    def read(self, source: Source) -> Reading | None:
        text = source.output("etcd-metrics")
        return None if text is None else _reading(text)

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.moments[-1].at
        recent = tuple(each for each in series.moments if each.at is None or last is None or last - each.at <= WINDOW_S)
        window = Series(recent, series.given)
        if window.last.writes is None:
            yield sign(self.name, "disk", Level.UNKNOWN, "", "etcd does not say how long its writes take")
            return
        if len(series.moments) > 1 and len(recent) < 2:
            yield sign(self.name, "disk", Level.OK, "", "not known yet")
            return
        writes, slow = window.growth(lambda each: each.writes), window.growth(lambda each: each.slow)
        if writes is None or slow is None:
            writes, slow = window.last.writes, window.last.slow or 0
        shown = f"{slow} of {writes}"
        if slow >= SLOW_LEAST and slow > SLOW_SHARE * writes:
            yield sign(self.name, "disk", Level.WATCH, shown, "writes of the store take over half a second")
        else:
            yield sign(self.name, "disk", Level.OK, shown, "the store is written in time")


def _reading(text: str) -> Reading:
    count: int | None = None
    fast: dict[float, int] = {}
    for row in lines(text):
        if not (match := ROW.fullmatch(row)):
            continue
        value = _whole(match[3])
        if value is None:
            continue
        if match[2]:
            count = value
        elif (limit := real(match[1])) is not None:
            fast[limit] = value
    limits = [limit for limit in fast if limit >= SLOW_S]
    if count is None or not limits:
        return Reading()
    return Reading(count, max(0, count - fast[min(limits)]))


def _whole(text: str) -> int | None:
    """Return a count. Prometheus clients print large ones as 1.234567e+06."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if 0 <= value < 1 << 53 else None
