"""The filesystems that the node writes to: read-only, shut down, full.

What the log says about a filesystem counts only while the mount table agrees: a filesystem that was repaired and
mounted again is well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from veery.health import kmsg, mounts
from veery.health.series import Series, same_disk
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, parsed, whole

WATCH_FREE, BAD_FREE = 0.15, 0.03  # of the filesystem
BAD_FREE_BYTES = 200 << 20
REMOUNTED = re.compile(
    r"(?:EXT[234]-fs|F2FS-fs|BTRFS[^(]{0,20}) ?\((?:device )?([\w!-]{1,32})[^)]{0,40}\): "
    r".*(?:Remounting filesystem read-only|forced readonly)",
    re.I,
)
SHUT = re.compile(r"XFS \(([\w!-]{1,32})\): .*(?:Shutting down filesystem|[Ff]ilesystem has been shut down)", re.ASCII)
DAMAGED = re.compile(
    r"EXT[234]-fs error \(device ([\w!-]{1,32})\)|BTRFS (?:error|critical) \(device ([\w!-]{1,32})|"
    r"XFS \(([\w!-]{1,32})\): (?:Corruption|Metadata corruption|[Mm]etadata I/O error|log I/O error)",
    re.ASCII,
)
OPENED = re.compile(
    r"(?:XFS|EXT4-fs) \(([\w!-]{1,32})\): (?:Mounting|Ending (?:clean mount|recovery)|mounted filesystem|re-mounted)"
)
TABLES = ("df", "df-P", "df-k", "df-Pk")  # blocks of 1024 bytes
NEVER_WRITTEN = frozenset({"squashfs", "iso9660", "erofs", "cramfs", "overlay"})


@dataclass(frozen=True, slots=True)
class Reading:
    """The mount table, the log, and the room by mount point: (bytes available, bytes in all)."""

    table: tuple[mounts.Mount, ...] | None
    log: tuple[kmsg.Record, ...]
    room: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Rootfs:
    """The sensor of the node's own filesystems."""

    name = "rootfs"

    def read(self, source: Source) -> Reading | None:
        log = tuple(
            record
            for record in kmsg.read(source) or ()
            if any(pattern.match(record.text) for pattern in (REMOUNTED, SHUT, OPENED, DAMAGED))
        )
        table, room = mounts.read(source), _room(source)
        return Reading(table, log, room) if table is not None or log or room else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last, paths = series.last, series.given.own_paths
        shut, remounted, damaged = _as_logged(kmsg.merged(moment.reading.log for moment in series.moments))
        luns = series.given.own_luns
        shut, remounted, damaged = (
            {name for name in names if not any(same_disk(name, lun) for lun in luns)}
            for names in (shut, remounted, damaged)
        )
        if last.table is None:
            for name in remounted:
                said = "the log says that it became read-only, and there is no mount table to compare"
                yield sign(self.name, name, Level.WATCH, "", said)
            for name in shut:
                yield sign(self.name, name, Level.WATCH, "", "the kernel shut this filesystem down")
            for name in damaged - shut - remounted:
                yield sign(self.name, name, Level.WATCH, "", "the filesystem is damaged or its disk fails")
        own = mounts.own(last.table or (), paths)
        for mount in own:
            turned = any(mount.is_of(name) for name in remounted) or _was_writable(series, mount)
            yield _mount(mount, shut, damaged - remounted, turned)
        for name in shut:
            if last.table is not None and not any(mount.is_of(name) for mount in own):
                said = "the kernel shut this filesystem down; the node keeps nothing there"
                yield sign(self.name, name, Level.OK, "", said)
        if last.table is not None and not own:
            yield sign(self.name, "mounts", Level.UNKNOWN, "", "the mount table does not show the node's own paths")
        for point in dict.fromkeys(_point(last.room, path) for path in paths or mounts.OWN_PATHS):
            if point:
                yield _judge_room(point, *last.room[point])


def _was_writable(series: Series[Reading], mount: mounts.Mount) -> bool:
    """Return True if an earlier reading shows the same mount without `ro`."""
    before = (each for reading in series.earlier for each in reading.table or ())
    return any(each.point == mount.point and "ro" not in each.options for each in before)


def _mount(mount: mounts.Mount, shut: set[str], damaged: set[str], turned: bool) -> Sign:
    if any(mount.is_of(name) for name in shut):
        return sign(Rootfs.name, mount.point, Level.BAD, mount.kind, "the kernel shut this filesystem down")
    is_read_only = mount.is_read_only or (turned and "ro" in mount.options)
    if is_read_only and mount.kind not in NEVER_WRITTEN:
        return sign(Rootfs.name, mount.point, Level.BAD, "ro", "the filesystem is read-only")
    if any(mount.is_of(name) for name in damaged):
        return sign(Rootfs.name, mount.point, Level.WATCH, mount.kind, "the filesystem is damaged or its disk fails")
    return sign(Rootfs.name, mount.point, Level.OK, mount.kind, "the filesystem can be written to")


def _point(room: Mapping[str, tuple[int, int]], path: str) -> str:
    """Return the mount point whose room is that of `path`; "" if it is unknown."""
    holding = [point for point in room if PurePosixPath(path).is_relative_to(point)]
    return max(holding, key=len, default="")


def _judge_room(point: str, free: int, size: int) -> Sign:
    share, shown = free / size, f"{100 * free / size:.1f} %"
    if share < BAD_FREE or (share < WATCH_FREE and free < BAD_FREE_BYTES):
        return sign(Rootfs.name, point, Level.BAD, shown, "almost nothing is free")
    if share < WATCH_FREE:
        return sign(Rootfs.name, point, Level.WATCH, shown, "little is free")
    return sign(Rootfs.name, point, Level.OK, shown, "enough is free")


def _as_logged(log: tuple[kmsg.Record, ...]) -> tuple[set[str], set[str], set[str]]:
    """Return the devices that, by the latest line of the log, are shut down, became read-only, or are damaged."""
    shut: set[str] = set()
    remounted: set[str] = set()
    damaged: set[str] = set()
    for record in log:
        if match := SHUT.match(record.text):
            shut.add(match[1])
        elif match := REMOUNTED.match(record.text):
            remounted.add(match[1])
        elif match := OPENED.match(record.text):
            for each in (shut, remounted, damaged):
                each.discard(match[1])
        elif match := DAMAGED.match(record.text):
            damaged.add(match[1] or match[2] or match[3])
    return shut, remounted, damaged


def _room(source: Source) -> dict[str, tuple[int, int]]:
    """Return (available bytes, all bytes) by mount point, from `df -P -k` as text or from statvfs as JSON."""
    found: dict[str, tuple[int, int]] = {}
    for line in (each for program in TABLES for each in lines(source.output(program))):
        words = line.split(None, 5)
        if len(words) == 6 and (size := whole(words[1])) and (free := whole(words[3])) is not None:
            found[words[5]] = max(free, 0) << 10, size << 10
    table: dict[str, Any] = parsed(source.output("statvfs") or "{}") or {}
    for point, row in list(table.items())[:64]:
        values = [row.get(key) if isinstance(row, dict) else None for key in ("f_bavail", "f_blocks", "f_frsize")]
        free_blocks, blocks, block = values
        if isinstance(free_blocks, int) and isinstance(blocks, int) and isinstance(block, int) and blocks * block > 0:
            found[point] = max(free_blocks, 0) * block, blocks * block
    return {point: room for point, room in found.items() if point.startswith("/") and 0 < room[1] < 1 << 70}
