"""Processes found by the network namespace they are in or by a mark in their environment, never by name."""

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
    """One living process; `words` is its command line."""

    process: Process
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """The name of what it runs: "qemu-system-x86_64", "etcd"; of a Python script, the script's."""
        names = [Path(word).name for word in self.words[:3]]
        if names and names[0].startswith("python"):
            named = [name for name in names[1:] if not name.startswith("-")]
            return named[0] if named else names[0]
        return names[0] if names else ""

    def standing(self) -> bool:
        """Whether every thread of it is stopped (or ended): proc(5), state T, Z or X."""
        states = []
        with suppress(OSError):  # a thread ended while we looked
            for stat in Path(f"/proc/{self.process.pid}/task").glob("*/stat"):
                states.append(stat.read_text().rpartition(")")[2].split()[0])
            return all(state in "TZX" for state in states)
        return False


def members(namespaces: Collection[Path]) -> tuple[Member, ...]:
    """The living processes inside the network namespaces that these files name (missing files are passed over).
    A zombie has left its namespace already."""
    wanted = set()
    for path in namespaces:
        with suppress(FileNotFoundError):
            wanted.add(_identity(path))

    def inside(folder: Path) -> bool:
        return _identity(folder / "ns/net") in wanted

    return _living(inside)


def marked(name: str, value: str) -> tuple[Member, ...]:
    """The living processes, but for this one, that have `name`=`value` in the environment they were started with."""
    wanted = f"{name}={value}".encode()

    def has(folder: Path) -> bool:
        return wanted in (folder / "environ").read_bytes().split(b"\0")

    return _living(has)


async def kill(find: Callable[[], tuple[Member, ...]], *, deadline: float = 20.0) -> tuple[Member, ...]:
    """SIGKILL all that `find` finds, again until it finds nothing; those that there were. Raises Failed after
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
    """SIGKILL `processes` and wait for their end."""
    for member in processes:
        member.process.send(signal.SIGKILL)
    await asyncio.gather(*(member.process.gone() for member in processes))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _living(chosen: Callable[[Path], bool]) -> tuple[Member, ...]:
    """The living processes whose folder in /proc is `chosen`, but for this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it ended while we looked
            if chosen(folder):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                pid = int(folder.name)
                found.append(Member(Process(pid, start_ticks(pid)), tuple(words[:-1])))
    return tuple(member for member in found if member.process.ticks)
