"""Processes found by their network namespace or by a mark in their environment, never by name."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed
from veery.host.process import Process, start_ticks


@dataclass(frozen=True, slots=True)
class Member:
    """One running process; `words` is its command line."""

    process: Process
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """Return the name of its program: "qemu-system-x86_64", "etcd"; for a Python script, the script's name."""
        names = [Path(word).name for word in self.words[:3]]
        if names and names[0].startswith("python"):
            named = [name for name in names[1:] if not name.startswith("-")]
            return named[0] if named else names[0]
        return names[0] if names else ""

    def standing(self) -> bool:
        """Return whether all its threads are stopped or have ended: proc(5), state T, Z or X."""
        states = []
        with suppress(OSError):  # a thread has just ended
            for stat in Path(f"/proc/{self.process.pid}/task").glob("*/stat"):
                states.append(stat.read_text().rpartition(")")[2].split()[0])
            return all(state in "TZX" for state in states)
        return False


def members(namespaces: Collection[Path]) -> tuple[Member, ...]:
    """Return the running processes in the network namespaces of these files; missing files are skipped. A zombie has
    left its namespace already."""
    wanted = set()
    for path in namespaces:
        with suppress(FileNotFoundError):
            wanted.add(_identity(path))

    def inside(folder: Path) -> bool:
        return _identity(folder / "ns/net") in wanted

    return _living(inside)


def marked(name: str, value: str) -> tuple[Member, ...]:
    """Return the other running processes that were started with `name`=`value` in their environment."""
    wanted = f"{name}={value}".encode()

    def has(folder: Path) -> bool:
        return wanted in (folder / "environ").read_bytes().split(b"\0")

    return _living(has)


async def kill(find: Callable[[], tuple[Member, ...]], *, deadline: float = 20.0) -> tuple[Member, ...]:
    """Send SIGKILL to all processes that `find` returns, until it returns none; return all of them. Raises Failed after
    `deadline` seconds."""
    killed: tuple[Member, ...] = ()
    try:
        async with asyncio.timeout(deadline):
            while found := find():
                killed += found
                await end(found)
    except TimeoutError as error:
        names = ", ".join(f"{member.program} ({member.process.pid})" for member in find())
        raise Failed(f"{names} did not end within {deadline:g} s", hint="they hang in the kernel") from error
    return killed


async def end(processes: Sequence[Member]) -> None:
    """Send SIGKILL to `processes` and wait for their end."""
    for member in processes:
        member.process.send(signal.SIGKILL)
    await asyncio.gather(*(member.process.gone() for member in processes))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _living(chosen: Callable[[Path], bool]) -> tuple[Member, ...]:
    """Return the other running processes whose folder in /proc is `chosen`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name == str(os.getpid()):
            continue
        with suppress(OSError):  # the process has just ended
            if chosen(folder):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                pid = int(folder.name)
                found.append(Member(Process(pid, start_ticks(pid)), tuple(words[:-1])))
    return tuple(member for member in found if member.process.ticks)
