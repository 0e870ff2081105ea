"""What of a volume's bytes is data, and what is a hole: copied and not copied."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

PIECE = 64 << 10  # bytes: what is all zeros in this grain is not written
NEAR = 1 << 20  # bytes: a smaller hole between two extents is read with them

Extent = tuple[int, int]
"""Offset and length in bytes."""


def extents(path: Path, size: int) -> tuple[Extent, ...]:
    """The data among the first `size` bytes of a file, in order (lseek(2), SEEK_DATA); all of a device. Raises
    OSError."""
    found: list[Extent] = []
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        while at < size:
            try:
                begin = os.lseek(handle, at, os.SEEK_DATA)
                end = min(os.lseek(handle, begin, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                if error.errno == errno.EINVAL:  # this filesystem or device does not tell
                    begin, end = at, size
                else:
                    raise
            if begin >= size:
                break
            if found and begin - sum(found[-1]) < NEAR:
                begin = found.pop()[0]
            found.append((begin, end - begin))
            at = end
    finally:
        os.close(handle)
    return tuple(found)


def write_sparse(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write `data` at `offset` of an all-zero file, leaving holes where it is zero. Raises OSError."""
    zeros, view = bytes(PIECE), memoryview(data)
    for at in range(0, len(data), PIECE):
        piece = view[at : at + PIECE]
        if piece != zeros[: len(piece)]:
            done = 0
            while done < len(piece):
                done += os.pwrite(file.fileno(), piece[done:], offset + at + done)


def sync(path: Path) -> None:
    """Have all that was written to `path` on its disk. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
