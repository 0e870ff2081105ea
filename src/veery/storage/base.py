"""The contract of a store for the bytes of volumes on a storage node. `file.FileStore` and `lvm.LvmStore` pass the same
tests (tests/unit/storage/test_stores.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from veery.model.units import MIB


def whole_mib(size: int) -> int:
    """Round `size` up to whole MiB, the unit of every volume: tgtd then shows every growth (tgtoutput.shown_size)."""
    return -(-size // MIB) * MIB


class BytesStore(Protocol):
    """Raw bytes by volume name; sizes in bytes. Methods raise Refused if an operation is impossible (no such folder or
    volume group, no space), Failed with the system's own words."""

    def path(self, name: str) -> Path:
        """Return the path of volume `name`, which need not exist."""
        ...

    async def size(self, name: str) -> int | None:
        """Return the volume's size; None if it does not exist."""
        ...

    async def free(self) -> int:
        """Return the free bytes."""
        ...

    async def create(self, name: str, size: int) -> int:
        """Make the volume, all zeros; return its real size (at least `size`). On failure nothing of it is left. Raises
        Refused if it exists already or there is no space."""
        ...

    async def grow(self, name: str, size: int) -> int:
        """Grow the volume to at least `size` with zeros; return its real size."""
        ...

    async def clear(self, name: str) -> None:
        """Overwrite the whole volume with zeros."""
        ...

    async def set_aside(self, name: str, word: str) -> Path:
        """Rename the volume to its name and `.word`, replacing an older one of that name; return the new path.
        Idempotent."""
        ...

    async def delete(self, name: str) -> None:
        """Delete the volume. It is no error if it does not exist."""
        ...
