"""The heap of a process whose threads allocate: seen in glibc's own account of it, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from veery.host import heap

THREADS = 6
ALLOCATE = f"""
import ctypes, sys, threading
from veery.host import heap
if sys.argv[1] == "small":
    assert heap.hold_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
together = threading.Barrier({THREADS})
def work():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[2].encode(), b"w")
assert libc.malloc_info(0, file) == 0
libc.fclose(file)
"""


def arenas(how: str, path: Path) -> int:
    subprocess.run([sys.executable, "-c", ALLOCATE, how, path], check=True, timeout=60)
    return len(re.findall(r"<heap nr=", path.read_text()))


def test_threads_share_few_arenas(tmp_path: Path) -> None:
    assert arenas("as it is", tmp_path / "before") > heap.ARENAS  # what is held back is there
    assert arenas("small", tmp_path / "after") <= heap.ARENAS
