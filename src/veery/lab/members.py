"""The processes of network namespaces: found by membership, not by name, so that none is missed or mistaken."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Sequence
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


def members(namespaces: Collection[Path]) -> tuple[Member, ...]:
    """The living processes inside the network namespaces that these files name (missing files are passed over).
    A zombie has left its namespace already."""
    wanted = set()
    for path in namespaces:
        with suppress(FileNotFoundError):
            wanted.add(_identity(path))
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):  # it ended while we looked
            if _identity(folder / "ns/net") in wanted:
                pid = int(folder.name)
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found.append(Member(Process(pid, start_ticks(pid)), tuple(words[:-1])))
    return tuple(member for member in found if member.process.ticks and member.process.pid != os.getpid())


async def kill(namespaces: Collection[Path], *, deadline: float = 20.0) -> int:
    """SIGKILL everything inside, again until nothing is left; how many there were. Raises Failed after
    `deadline` seconds."""
    count = 0
    try:
        async with asyncio.timeout(deadline):
            while inside := members(namespaces):
                count += len(inside)
                await end(inside)
    except TimeoutError as error:
        raise Failed(
            f"processes of the lab do not end within {deadline:g} s", hint="they hang in the kernel"
        ) from error
    return count


async def end(processes: Sequence[Member]) -> None:
    """SIGKILL `processes` and wait for their end."""
    for member in processes:
        member.process.send(signal.SIGKILL)
    await asyncio.gather(*(member.process.gone() for member in processes))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
