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


def read(pool: Path, state: Path) -> Usage:
    """How the files in `pool` stand. Raises OSError."""
    promised = taken = 0
    with os.scandir(pool) as entries:
        for entry in entries:
            if ".img" in entry.name and entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                promised += max(stat.st_size, stat.st_blocks * 512)
                taken += stat.st_blocks * 512
    system = os.statvfs(pool)
    return Usage(
        total=system.f_blocks * system.f_frsize,
        free=system.f_bavail * system.f_frsize,
        promised=promised,
        taken=taken,
        shared=pool.stat().st_dev == state.stat().st_dev,
    )
