"""Space for volumes, and the reserve that veery's own files need.

etcd's log, the copies of the store and served.json are in the state folder. If the pool is on the same filesystem,
guests that fill their volumes could fill it. So the promised sizes of the volumes must leave the reserve free there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from veery.model.units import GIB

RESERVE_BYTES, RESERVE_FRACTION = 2 * GIB, 0.1  # for the state folder; on a small disk the fraction of it


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of a pool in bytes: its filesystem's space, and the promised and used sizes of its files. `shared`: the
    state folder is on the same filesystem."""

    total: int
    free: int
    promised: int
    taken: int
    shared: bool

    @property
    def left(self) -> int:
        """Return the bytes that may still be promised on a shared filesystem."""
        reserve = min(RESERVE_BYTES, int(RESERVE_FRACTION * self.total))
        return max(self.free - (self.promised - self.taken) - reserve, 0)


def shares(pool: Path, state: Path) -> bool:
    """Return whether `pool` is, or would be made, on the filesystem of `state`. Raises OSError."""
    return _existing(pool).stat().st_dev == state.stat().st_dev


def _existing(folder: Path) -> Path:
    """Return `folder`, or its nearest existing parent."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def read(pool: Path, state: Path) -> Usage:
    """Return the use of `pool`, which need not exist yet. Raises OSError."""
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
