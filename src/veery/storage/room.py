"""Room for volumes, and the reserve of it that veery's own files need.

etcd's log, the copies of the store and served.json are in the state folder. Where the pool is on the same filesystem,
guests that fill their volumes would fill that too, so volumes may not promise more there than leaves the reserve."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from veery.model.units import GIB

RESERVE, RESERVE_PART = 2 * GIB, 0.1  # what is left to the state folder: so much, on a small disk this part of it


@dataclass(frozen=True, slots=True)
class Usage:
    """A pool in bytes: its filesystem's room, and what its files were promised and have taken. `shared`: the state
    folder is on the same filesystem."""

    total: int
    free: int
    promised: int
    taken: int
    shared: bool

    @property
    def left(self) -> int:
        """What may still be promised, where the filesystem is shared."""
        reserve = min(RESERVE, int(RESERVE_PART * self.total))
        return max(self.free - (self.promised - self.taken) - reserve, 0)


def shares(pool: Path, state: Path) -> bool:
    """Whether `pool` is, or would be made, on the filesystem of `state`. Raises OSError."""
    return _existing(pool).stat().st_dev == state.stat().st_dev


def _existing(folder: Path) -> Path:
    """It, or the nearest folder above that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def read(pool: Path, state: Path) -> Usage:
    """How the files in `pool` stand; it need not be there yet. Raises OSError."""
    promised = taken = 0
    for path in pool.glob("*.img*"):
        stat = path.lstat()
        promised += max(stat.st_size, stat.st_blocks * 512)
        taken += stat.st_blocks * 512
    system = os.statvfs(_existing(pool))
    return Usage(
        total=system.f_blocks * system.f_frsize,
        free=system.f_bavail * system.f_frsize,
        promised=promised,
        taken=taken,
        shared=shares(pool, state),
    )
