"""What veery costs when nothing moves: the time of a command, the memory of a daemon."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from bench import guest as guests
from bench.figures import Figures
from veery.errors import Failed
from veery.host.run import run
from veery.lab.guest import Guest
from veery.lab.services import Lab

NODE = "test1"
MEMORY = 96  # MiB each
BOOT = 120.0
LIST_AIM, RSS_AIM = 150.0, 80.0  # ms, MiB


async def measure(lab: Lab, kernel: Guest, folder: Path, figures: Figures, *, rounds: int, domains: int) -> None:
    """Add the rows to `figures`; `domains` run meanwhile."""
    names = [f"small{number}" for number in range(1, domains + 1)]
    resident = f"veeryd with {domains} domain{'s' if domains != 1 else ''}, resident"
    try:
        for name in names:
            path = guests.write(folder, name, guests.small_file(kernel, name, memory=MEMORY))
            await lab.veery(NODE, "create", str(path), deadline=120.0)
        await _idle(lab)
        for words in (["list"], ["--help"]):
            times = [await _timed(lab, words) for _ in range(rounds + 2)][2:]  # two to warm the caches
            figures.add(f"veery {' '.join(words)}, whole process", "ms", times)
        memory = []
        for _ in range(3):
            memory.append(_resident(lab))
            await asyncio.sleep(0.5)
        figures.add(resident, "MiB", memory)
    finally:
        for name in names:
            await lab.veery(NODE, "destroy", name, check=False)
            await lab.veery(NODE, "delete", name, check=False)
    figures.hold("veery list over 150 ms", "veery list, whole process", LIST_AIM)
    figures.hold("daemon over 80 MiB", resident, RSS_AIM)


async def _idle(lab: Lab) -> None:
    """Return when every domain has booted and has nothing to do. Raises Failed after BOOT seconds."""
    ends = time.monotonic() + BOOT
    client = lab.client(NODE)
    while time.monotonic() < ends:
        await asyncio.sleep(1.0)  # what a domain did is told of the time since it was last asked
        told = await asyncio.to_thread(client.get, "/v1/domains")
        if all(reading["state"] == "blocked" for reading in told["domains"] if reading["domid"]):
            return
    raise Failed(f"the domains on {NODE} are not idle after {BOOT:g} s", hint="is the machine busy?")


async def _timed(lab: Lab, words: list[str]) -> float:
    """Milliseconds from the start of `veery WORDS` to its end."""
    argv: list[str | Path] = [Path(sys.executable).with_name("veery"), "--lab", lab.plan.lab, "--node", NODE, *words]
    begun = time.perf_counter()
    await run(argv, deadline=60.0)
    return (time.perf_counter() - begun) * 1e3


def _resident(lab: Lab) -> float:
    """MiB of the daemon's memory that are in the machine's (proc(5), statm)."""
    for member in lab.members(NODE):
        if member.program == "veeryd":
            pages = int(Path(f"/proc/{member.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    raise Failed(f"no veeryd runs on {NODE}", hint=f"see {lab.log(NODE)}")
