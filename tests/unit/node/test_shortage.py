"""Too few descriptors, or too little memory: veeryd goes on, and takes nothing for dead that it cannot see."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from veery.daemon import PERIODIC, lasting
from veery.errors import Failed
from veery.host.process import Process
from veery.host.shortage import is_shortage

NO_MORE = OSError(errno.EMFILE, "Too many open files")

BLIND = """
import os, resource
from veery.errors import Failed
from veery.host.process import Process, start_ticks
me = Process(os.getpid(), start_ticks(os.getpid()))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    print("alive" if me.alive() else "dead")
except Failed as error:
    print("not known:", error.message)
"""


def test_what_a_shortage_is() -> None:
    assert is_shortage(NO_MORE)
    assert is_shortage(MemoryError())
    assert is_shortage(ExceptionGroup("two", [NO_MORE, ExceptionGroup("deep", [OSError(errno.ENOMEM, "")])]))
    assert not is_shortage(ExceptionGroup("two", [NO_MORE, ValueError()]))
    assert not is_shortage(OSError(errno.EIO, "broken disk"))
    caused = Failed("not seen")
    caused.__cause__ = NO_MORE
    assert is_shortage(caused)
    assert not is_shortage(Failed("not seen"))


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead() -> None:
    told = subprocess.run([sys.executable, "-c", BLIND], capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.startswith("not known: /proc/"), told


@pytest.mark.parametrize("name", sorted(PERIODIC))
async def test_a_part_that_looks_again_and_again_outlives_a_shortage(name: str) -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ExceptionGroup("tasks", [NO_MORE])

    await asyncio.wait_for(lasting(name, work, pause=0.0), 10)
    assert begun == 2


@pytest.mark.parametrize(
    ("name", "error"), [("settler", NO_MORE), ("guard", OSError(errno.EIO, "")), ("guard", ValueError())]
)
async def test_any_other_end_is_the_daemons(name: str, error: Exception) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)):
        await asyncio.wait_for(lasting(name, work, pause=0.0), 10)


def test_a_programs_log_is_read_by_root_alone(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.touch(mode=0o644)
    process = Process.spawn(["true"], log_file=log)
    assert log.stat().st_mode & 0o777 == 0o600
    asyncio.run(process.stop(grace=5))
