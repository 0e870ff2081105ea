"""What answers inside a nested node, tried in a namespace of its own: commands, their ends, processes, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from veery.host.process import Process
from veery.host.run import Result, run
from veery.lab.hosts import enter
from veery.lab.lock import LabLock
from veery.lab.plan import NAMESPACES
from veery.lab.xen import agent, talk


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    """A namespace with a living agent in it."""
    name = f"vy-a{os.getpid()}-test1"
    claim = LabLock(f"a{os.getpid()}")  # or another run, which sweeps what the dead have left, would take it
    process = None
    try:
        await run(["ip", "netns", "add", name], deadline=30)
        for words in (["link", "set", "lo", "up"], ["addr", "add", f"{agent.THERE}/32", "dev", "lo"]):
            await run(["ip", "-n", name, *words], deadline=30)
        process = Process.spawn(enter(name, [sys.executable, agent.__file__, "-" * 600]), log_file=tmp_path / "log")
        await talk.answers(NAMESPACES / name, deadline=60)
        yield NAMESPACES / name
    finally:
        if process is not None:
            await process.stop(grace=0)
        await run(["ip", "netns", "delete", name], deadline=30, check=False)
        claim.forget()


async def call(place: Path, *argv: str, stdin: bytes | None = None, deadline: float = 60.0) -> Result:
    words = enter(place.name, [sys.executable, "-m", "veery.lab.xen.call", *argv])
    return await run(words, deadline=deadline, check=False, stdin=stdin)


async def test_output_input_and_exit_status_are_the_commands_own(place: Path) -> None:
    said = await call(place, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (said.code, said.out, said.err) == (5, "out\n", "err\n")
    assert (await call(place, "wc", "-c", stdin=bytes(3_000_000))).out.strip() == "3000000"
    assert (await call(place, "sh", "-c", "kill -9 $$")).code == 128 + signal.SIGKILL
    missing = await call(place, "nosuch")
    assert (missing.code, missing.err) == (127, "nosuch: No such file or directory\n")


async def test_a_command_ends_with_who_asked_for_it(place: Path) -> None:
    argv = [str(word) for word in enter(place.name, [sys.executable, "-m", "veery.lab.xen.call", "sleep", "1234.5"])]
    asker = await asyncio.create_subprocess_exec(*argv)
    try:
        assert await until(place, "1234.5", there=True)
    finally:
        asker.kill()
        await asker.wait()
    assert not await until(place, "1234.5", there=False)


async def test_a_signal_reaches_the_process_it_was_meant_for(place: Path) -> None:
    running = asyncio.ensure_future(call(place, "sleep", "1234.7"))
    (sleep,) = await until(place, "1234.7", there=True)
    await talk.send(place, Process(sleep.pid, sleep.ticks + 1), signal.SIGKILL)  # its pid, used again
    assert await until(place, "1234.7", there=True)
    await talk.send(place, sleep, signal.SIGKILL)
    assert (await running).code == 128 + signal.SIGKILL


async def until(place: Path, word: str, *, there: bool) -> list[Process]:
    """The `sleep`s with `word` on their command line, once there are some (or none)."""
    async with asyncio.timeout(60):
        while True:
            found = [each.process for each in await talk.members(place) if each.words == ("sleep", word)]
            if bool(found) == there:
                return found
            await asyncio.sleep(0.1)
