"""Software RAID: how many more losses each array survives.

Source: Documentation/admin-guide/md.rst. A check, a reshape, spares of an external container and mismatches of mirrors
are routine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

HEAD = re.compile(
    r"(md\S{0,40}) : (active|inactive|broken)(?: \([\w-]{1,20}\))?(?: (raid\d{1,2}|linear|multipath|faulty))? ?(.*)",
    re.ASCII,
)
COUNT = re.compile(r"\[(\d{1,4})/(\d{1,4})\] \[([U_]{1,400})\]", re.ASCII)
REBUILDING = re.compile(r"\b(recovery|recover|resync|reshape)\s*=", re.ASCII)
RESYNCING = re.compile(r"\bresync\s*=\s*[\d.]+%", re.ASCII)
MEMBER = re.compile(r"\S{1,40}\[\d{1,4}\](\([WJFSR]\))*", re.ASCII)
PARITY = {"raid4": 1, "raid5": 1, "raid6": 2, "raid10": 1}
"""Losses that a level survives; with raid10 the second loss may already be fatal."""
MIRROR = "raid1"
NO_REDUNDANCY = ("raid0", "linear", "faulty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """One array. `disks`: how many it should have. `missing`: how many are missing."""

    active: bool
    level: str = ""
    disks: int = 0
    missing: int = 0
    rebuilding: bool = False
    resyncing: bool = False  # all disks are present, and their contents are being synchronised
    only_spares: bool = False
    broken: bool = False
    failed: bool = False  # True if a member is marked as faulty
    mismatches: int = 0

    @property
    def spare_losses(self) -> int:
        """Return how many more disks may be lost; negative if too many are missing."""
        stands = self.disks - 1 if self.level == MIRROR else PARITY.get(self.level, 0)
        return stands - self.missing


@dataclass(frozen=True, slots=True)
class Reading:
    """The arrays by name; None if /proc/mdstat cannot be parsed."""

    arrays: dict[str, Array] | None


class Md:
    """The sensor of software RAID."""

    name = "md"

    def read(self, source: Source) -> Reading | None:
        text = source.text("proc/mdstat")
        arrays = dict(_mdstat(lines(text)))
        for folder in source.paths("sys/block/md*/md"):
            name = folder.parent.name
            if found := _sysfs(source, str(folder.relative_to(source.root))):
                arrays[name] = _both(arrays.get(name), found)
        if text and not arrays and "Personalities" not in text and "unused devices" not in text:
            return Reading(None)
        return Reading(arrays) if text or arrays else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        if series.last.arrays is None:
            yield sign(self.name, "mdstat", Level.UNKNOWN, "", "/proc/mdstat cannot be understood")
            return
        if not series.last.arrays:
            yield sign(self.name, "mdstat", Level.OK, 0, "there is no array")
        for name, array in series.last.arrays.items():
            level, said = _judged(array)
            yield sign(self.name, name, level, f"{array.disks - array.missing}/{array.disks}", said)


def _judged(array: Array) -> tuple[Level, str]:
    if array.broken:
        return Level.BAD, "the array is broken"
    if not array.active:
        if array.only_spares:
            return Level.OK, "a container of other arrays"
        if array.failed:
            return Level.BAD, "the array is not started, and a disk has failed"
        return Level.WATCH, "the array is not started"
    if array.missing > 0 and array.level not in NO_REDUNDANCY:
        if array.spare_losses < 0:
            return Level.BAD, f"missing disks: {array.missing}, more than the array stands"
        if array.rebuilding:
            return Level.WATCH, "a disk is missing, and the array is rebuilt"
        if array.spare_losses == 0:
            return Level.BAD, f"missing disks: {array.missing}; nothing is rebuilt, and the next loss is the end"
        return Level.WATCH, f"missing disks: {array.missing}; the array stands {array.spare_losses} more"
    if array.resyncing:
        return Level.WATCH, "all disks are in; their contents are made equal again"
    if array.mismatches and array.level in PARITY and array.level != "raid10":
        return Level.WATCH, f"{array.mismatches} sectors do not fit their parity"
    return Level.OK, "all disks are in"


def _mdstat(rows: list[str]) -> Iterator[tuple[str, Array]]:
    for index, row in enumerate(rows):
        if not (match := HEAD.match(row)):
            continue
        body = " ".join(line for line in _indented(rows, index))
        count = COUNT.search(body)
        members = [found[0] for found in MEMBER.finditer(match[4])]
        disks = int(count[1]) if count else len(members)
        yield (
            match[1],
            Array(
                active=match[2] == "active",
                level=match[3] or "",
                disks=disks,
                missing=count[3].count("_") if count else 0,
                rebuilding=bool(REBUILDING.search(body)),
                resyncing=bool(RESYNCING.search(body)),
                only_spares=bool(members) and all("(S)" in each for each in members) and "external:" in body,
                broken=match[2] == "broken",
                failed=any("(F)" in each for each in members),
            ),
        )


def _indented(rows: list[str], index: int) -> Iterator[str]:
    for row in rows[index + 1 : index + 12]:
        if not row.startswith((" ", "\t")):
            return
        yield row


def _sysfs(source: Source, folder: str) -> Array | None:
    state, level = source.word(f"{folder}/array_state"), source.word(f"{folder}/level")
    disks, degraded = source.number(f"{folder}/raid_disks"), source.number(f"{folder}/degraded")
    if state is None and degraded is None:
        return None
    return Array(
        active=state not in ("inactive", "clear"),
        level=level or "",
        disks=disks or 0,
        missing=degraded or 0,
        rebuilding=source.word(f"{folder}/sync_action") in ("recover", "resync", "reshape"),
        resyncing=source.word(f"{folder}/sync_action") == "resync",
        only_spares=level == "container" or (source.word(f"{folder}/metadata_version") or "").startswith("external:"),
        broken=state == "broken",
        mismatches=source.number(f"{folder}/mismatch_cnt") or 0,
    )


def _both(table: Array | None, found: Array) -> Array:
    """Merge one array's row in the table with its folder in sysfs."""
    if table is None:
        return found
    return Array(
        active=table.active,
        level=table.level or found.level,
        disks=table.disks or found.disks,
        missing=max(table.missing, found.missing),
        rebuilding=table.rebuilding or found.rebuilding,
        resyncing=table.resyncing,
        only_spares=table.only_spares or found.only_spares,
        broken=table.broken or found.broken,
        failed=table.failed,
        mismatches=found.mismatches,
    )
