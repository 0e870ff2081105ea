"""Where the bytes of volumes are on a storage node. `file.FileStore` and `lvm.LvmStore` keep the same promises
(tests/unit/storage/test_stores.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from veery.model.units import MIB


def whole(size: int) -> int:
    """`size` rounded up to whole MiB, the unit of every volume: tgtd then shows every growth (tgtoutput.shown_size)."""
    return -(-size // MIB) * MIB


class BytesStore(Protocol):
    """Raw bytes by volume name. Sizes in bytes. Methods raise Refused where nothing can be done (no such folder
    or volume group, no room), Failed with the system's own words."""

    def path(self, name: str) -> Path:
        """Where volume `name` is, or would be."""
        ...

    async def size(self, name: str) -> int | None:
        """How large it is; None if it is not there."""
        ...

    async def free(self) -> int:
        """Bytes left."""
        ...

    async def create(self, name: str, size: int) -> int:
        """Make it, all zeros; its real size (at least `size`). On failure nothing of it is left. Raises Refused
        where it is there already or there is no room."""
        ...

    async def grow(self, name: str, size: int) -> int:
        """Make it at least `size` large, what is added being zeros; its real size."""
        ...

    async def clear(self, name: str) -> None:
        """Make it all zeros."""
        ...

    async def set_aside(self, name: str, word: str) -> Path:
        """Keep its bytes under its name and `.word`, where an older one of that name gives way; where they are then.
        Idempotent."""
        ...

    async def delete(self, name: str) -> None:
        """Remove it. Not an error if it is not there."""
        ...
