"""A running domain's memory, sampled from outside: how much of it is not zero, how fast it changes, how well it
compresses. Pages are read at random from QEMU's memory (proc(5), /proc/PID/mem); the guest does not notice.

QEMU's calc-dirty-rate (page-sampling) does the same for one window, and so cannot distinguish a slow writer over much
memory from a quick one over little. Its other mode reads the dirty bitmap, which stays empty under TCG."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

from veery.errors import Failed
from veery.model.plan import MemoryReading

PAGE = 4096
PAGES = 2048
PACKED = 96  # pages of the sample to compress
WINDOWS = (0.05, 0.2, 0.8)
"""Seconds after the first reading at which the same pages are read again."""
_ZERO = bytes(PAGE)


def sample(pid: int, size: int, *, seed: int = 0, windows: Sequence[float] = WINDOWS) -> MemoryReading:
    """Read the guest's memory of `size` bytes in process `pid`. Blocks for the last of `windows`; call it in a thread.
    Raises Failed when the process has gone."""
    try:
        start = _place(pid, size)
        handle = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except OSError as error:
        raise Failed(f"the memory of process {pid} cannot be read: {error.strerror}") from error
    try:
        return _sample(handle, start, size, Random(seed or None), windows)
    except OSError as error:
        raise Failed(f"process {pid} has ended") from error
    finally:
        os.close(handle)


def _place(pid: int, size: int) -> int:
    """Return where guest memory begins in the process: its largest writable mapping. Raises Failed where that is too
    small."""
    best = (0, 0)
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, flags = line.split()[:2]
        if flags.startswith("rw"):
            first, last = (int(word, 16) for word in span.split("-"))
            best = max(best, (last - first, first))
    if best[0] < size:
        raise Failed(f"process {pid} has no mapping of {size} bytes")
    return best[1]


def _sample(handle: int, start: int, size: int, random: Random, windows: Sequence[float]) -> MemoryReading:
    count = size // PAGE
    pages = sorted(random.sample(range(count), min(PAGES, count)))
    share = size / len(pages)  # bytes that one page of the sample represents
    begun = time.monotonic()
    first: list[int] = []
    kept: list[bytes] = []
    used = 0
    for page in pages:
        data = os.pread(handle, PAGE, start + page * PAGE)
        first.append(zlib.crc32(data))
        if data != _ZERO:
            used += 1
            kept.append(data)
    chosen = random.sample(kept, min(PACKED, len(kept)))
    packed = sum(len(zlib.compress(data, 1)) for data in chosen) / (PAGE * len(chosen)) if chosen else 1.0
    dirtied: list[tuple[float, float]] = []
    for window in windows:
        time.sleep(max(0.0, begun + window - time.monotonic()))
        looked = time.monotonic() - begun
        changed = sum(
            zlib.crc32(os.pread(handle, PAGE, start + page * PAGE)) != before
            for page, before in zip(pages, first, strict=True)
        )
        dirtied.append((round(looked, 4), changed * share))
    return MemoryReading(total=size, used=int(used * share), dirtied=tuple(dirtied), packed=round(min(packed, 1.0), 3))
