"""Looking at a process' memory by samples: what is in use, what changes, what compresses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from veery.errors import Failed
from veery.hypervisor.qemu.sample import sample
from veery.model.units import MIB

SIZE = 64 * MIB
WRITER = """
import mmap, os, sys
memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[: 16 << 20] = eval(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while True:
    for place in range(0, 8 << 20, 4096):
        memory[place] = (memory[place] + 1) % 256
"""


@contextmanager
def writer(fill: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", WRITER, fill]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("fill", "low", "high"), [("os.urandom(16 << 20)", 0.9, 1.0), ("b'veery ' * 2796202 + b'    '", 0.0, 0.2)]
)
def test_use_and_compression(fill: str, low: float, high: float) -> None:
    with writer(fill) as process:
        reading = sample(process.pid, SIZE, seed=1, windows=(0.01,))
        assert reading.total == SIZE
        assert 12 * MIB < reading.used < 20 * MIB
        assert low <= reading.packed <= high
        assert reading.dirtied[0][1] == 0


def test_what_changes_is_seen() -> None:
    with writer("os.urandom(16 << 20)") as process:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        reading = sample(process.pid, SIZE, seed=1, windows=(0.01, 1.0))
        assert 4 * MIB < reading.dirtied[1][1] < 12 * MIB


def test_a_process_that_is_gone() -> None:
    with writer("os.urandom(16 << 20)") as process:
        process.kill()
        process.wait()
        with pytest.raises(Failed):
            sample(process.pid, SIZE)
