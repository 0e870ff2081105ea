"""Run a function in another network namespace without a new process: setns(2) moves one thread there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # setns(2)


def within(namespace: Path, work: Callable[[], T]) -> T:
    """Call `work` in a thread that has entered `namespace` (a file such as /run/netns/NAME), and return its result.

    A socket stays in the namespace in which it was made, so the caller may use it afterwards. The thread ends with the
    call. Raises OSError if the namespace does not exist, and whatever `work` raises."""

    def entered() -> T:
        with namespace.open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()
