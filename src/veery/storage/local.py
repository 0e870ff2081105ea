"""Disks that are files of one node only: made at the target of a move, put aside or removed at its source."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.files import keep_synced
from veery.host.run import run
from veery.model.domain import DiskFormat
from veery.model.plan import Blocker, Obstacle
from veery.model.units import format_size
from veery.model.volume import CarriedDisk

FORMATS = frozenset({DiskFormat.RAW, DiskFormat.QCOW2})
"""The formats that can be made empty at the target."""
FOLDER_HINT = "name another folder of the target for its disks: --disk-dir"
QEMU_IMG_TIMEOUT_S = 60.0
SYNC_INTERVAL_S = 0.5

log = logging.getLogger(__name__)


def choose(disks: Sequence[CarriedDisk], folder: str, domain: str) -> tuple[CarriedDisk, ...]:
    """Return `disks`, each with its file on this node: DOMAIN-VDEV.FORMAT in `folder`, or the same path if that is "".
    Raises Refused if a name would lead out of the folder."""
    for name in (domain, *(disk.vdev for disk in disks)):
        if "/" in name or "\0" in name:
            raise Refused(f"{name!r} cannot be part of a file's name", hint=FOLDER_HINT)
    return tuple(
        replace(disk, target=f"{folder.rstrip('/')}/{domain}-{disk.vdev}.{disk.format.value}" if folder else disk.path)
        for disk in disks
    )


def blockers(disks: Sequence[CarriedDisk]) -> tuple[Blocker, ...]:
    """Return every reason why the files of `disks` cannot be made here; nothing is changed."""
    reasons: list[str] = []
    room: dict[int, list[int]] = {}  # by filesystem: the free and the needed bytes
    for disk in disks:
        path = Path(disk.target)
        if disk.format not in FORMATS:
            reasons.append(f"{disk.vdev} is {disk.format.value}, only raw and qcow2 files move with their domain")
        elif not path.is_absolute() or ".." in path.parts:
            reasons.append(f"{path} is not an absolute path without ..")
        elif disk.block and disk.target == disk.path:
            reasons.append(f"{disk.vdev} is the device {path}, but arrives as a file")
        elif not path.parent.is_dir():
            reasons.append(f"there is no folder {path.parent}")
        elif path.exists() or path.is_symlink():
            reasons.append(f"{path} exists already")
        else:
            stat = os.statvfs(path.parent)
            known = room.setdefault(path.parent.stat().st_dev, [stat.f_bavail * stat.f_frsize, 0])
            known[1] += disk.allocated
    reasons += [
        f"its disks need {format_size(wanted)}, {format_size(free)} are free"
        for free, wanted in room.values()
        if wanted > free
    ]
    return tuple(Blocker(kind=Obstacle.STORAGE, reason=reason, hint=FOLDER_HINT) for reason in reasons)


def take(disk: CarriedDisk) -> CarriedDisk:
    """Reserve the free name disk.target by an empty file; return the disk with its inode. Raises Failed."""
    path = Path(disk.target)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            return replace(disk, inode=os.fstat(handle).st_ino)
        finally:
            os.close(handle)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", hint=FOLDER_HINT) from error


async def form(disk: CarriedDisk) -> None:
    """Give the reserved file its size and format; it uses hardly any space yet. Raises Failed."""
    if disk.format is not DiskFormat.RAW:
        command = ["qemu-img", "create", "-q", "-f", disk.format.value, disk.target, str(disk.size)]
        await run(command, deadline=QEMU_IMG_TIMEOUT_S)
        return
    try:
        os.truncate(disk.target, disk.size)
    except OSError as error:
        raise Failed(f"{disk.target}: {error.strerror}", hint=FOLDER_HINT) from error


async def sync(disks: Sequence[CarriedDisk]) -> None:
    """Flush the files to their disk at intervals, until cancelled. The last flush, for which the domain is paused, then
    has little to do, and the page cache does not fill with the incoming data."""
    await keep_synced([disk.target for disk in disks], SYNC_INTERVAL_S)


def unmake(disk: CarriedDisk) -> None:
    """Remove the file that was reserved for a disk, and no other. If its inode was not yet recorded, remove only an
    empty file. Idempotent. Raises Failed."""
    path = Path(disk.target)
    try:
        stat = path.stat()
        if disk.inode == stat.st_ino or (not disk.inode and stat.st_size == 0):
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", hint="remove it by hand") from error


def aside(disk: CarriedDisk, node: str) -> Path:
    """Return the path for the source's copy of a disk that moved to `node`."""
    return Path(f"{disk.path}.moved-to-{node}")


def put_aside(disk: CarriedDisk, node: str, *, remove: bool) -> None:
    """Rename the source's copy of a disk that moved to `node` (over an older copy of the same disk), or remove it.

    A device stays unchanged. Another file of that name is left alone. Idempotent. Raises Failed."""
    path = Path(disk.path)
    if disk.block:
        return
    try:
        if path.exists() and path.stat().st_ino == disk.inode:
            path.unlink() if remove else path.replace(aside(disk, node))
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", hint=f"this file is stale: the disk is on {node} now") from error
