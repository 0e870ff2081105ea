"""A lab whose hypervisors are real Xen hosts, nested in QEMU's software emulation."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from crossing import at_home

from veery.lab.services import Lab

_MEMORY = 4 << 20  # KiB that two outer QEMUs, and what is beside them, want


@pytest.fixture(scope="session")
def xen() -> Iterator[Lab]:
    """stor and the client as always; test1 and test2 nested."""
    if why := _cannot():
        pytest.skip(f"THE NESTED XEN LAB DOES NOT RUN HERE: {why}")
    made: Lab = _aside(lambda: Lab.up(f"n{os.getpid()}", driver="xen"))
    try:
        yield made
    finally:
        _aside(made.down)


@pytest.fixture
async def domain(xen: Lab) -> AsyncIterator[str]:
    """busybox on test1, answering; its boot id."""
    async with at_home(xen) as boot:
        yield boot


def _cannot() -> str:
    """What this machine lacks, "" if nothing."""
    if missing := [name for name in ("mmdebstrap", "qemu-system-x86_64", "mke2fs") if shutil.which(name) is None]:
        return f"no {', '.join(missing)}"
    free = next(row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable"))
    if int(free.split()[1]) < _MEMORY:
        return f"{free.split()[1]} KiB of memory are available, {_MEMORY} are wanted"
    return ""


def _aside(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `work` in an event loop of its own, away from the tests' one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
