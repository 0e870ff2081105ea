"""The data and the holes of a volume's bytes: a copy transfers the data only."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 64 << 10  # a piece of this size that is all zeros is not written
HOLE_MIN_BYTES = 1 << 20  # a smaller hole between two extents is read with them

Extent = tuple[int, int]
"""Offset and length in bytes."""


def extents(path: Path, size: int) -> tuple[Extent, ...]:
    """Return the data extents in the first `size` bytes of a file, in order (lseek(2), SEEK_DATA); for a device all of
    it. Raises OSError."""
    found: list[Extent] = []
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        while at < size:
            try:
                begin = os.lseek(handle, at, os.SEEK_DATA)
                end = min(os.lseek(handle, begin, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole remains
                    break
                if error.errno == errno.EINVAL:  # this filesystem or device does not report holes
                    begin, end = at, size
                else:
                    raise
            if begin >= size:
                break
            if found and begin - sum(found[-1]) < HOLE_MIN_BYTES:
                begin = found.pop()[0]
            found.append((begin, end - begin))
            at = end
    finally:
        os.close(handle)
    return tuple(found)


def write_sparse(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write `data` at `offset` of an all-zero file, and leave holes where it is zero. Raises OSError."""
    zeros, view = bytes(PIECE_BYTES), memoryview(data)
    for at in range(0, len(data), PIECE_BYTES):
        piece = view[at : at + PIECE_BYTES]
        if piece != zeros[: len(piece)]:
            done = 0
            while done < len(piece):
                done += os.pwrite(file.fileno(), piece[done:], offset + at + done)


def sync(path: Path) -> None:
    """Flush all writes to `path` to its disk. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
