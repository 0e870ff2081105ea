"""Six domains moved away from one node: one after the other, at once, and at once with turns to switch over.

`python -m bench.many`: alternating rounds in one run; the wall time of the whole command, and what a client outside
saw of each domain (its gap, by ICMP echo every 10 ms). Writes bench/many.json."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figures
from veery.errors import Refused
from veery.lab import guest as kernels
from veery.lab.guest import Guest
from veery.lab.plan import BRIDGE
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell

NODES = ("test1", "test2")
INTERVAL = 0.01
MEMORY = 128  # MiB
BEFORE, AFTER = 0.5, 0.8  # seconds of probing around each round
WALL_AIM = 1500.0  # ms: half of what virsh took for six at once
MEDIAN_AIM, WORST_AIM = 1.2, 1.5  # times a single move's
OUTPUT = Path(__file__).with_name("many.json")


@dataclass(slots=True)
class Seen:
    """What the rounds of one kind came to, ms."""

    wall: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    downtimes: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """The domains (name: address), where they all are, and their probe."""

    lab: Lab
    addresses: dict[str, str]
    probe: Probe
    flags: tuple[str, ...] = ()  # of every `veery migrate`
    at: str = "test1"

    def other(self) -> str:
        """The node that they go to."""
        return NODES[1 - NODES.index(self.at)]


def file_of(guest: Guest, name: str, memory: int) -> str:
    """A domain whose root is the volume `name`."""
    return "\n".join(
        [
            f'name = "{name}"',
            f'kernel = "{guest.kernel}"',
            f'ramdisk = "{guest.ramdisk}"',
            f"memory = {memory}",
            f"vif = ['bridge={BRIDGE}']",
            f"disk = ['volume={name},xvda,w']",
            'root = "/dev/xvda rw"',
            'extra = "quiet"',
            "",
        ]
    )


@contextlib.asynccontextmanager
async def scene(
    lab: Lab, kernel: Guest, folder: Path, *, count: int, memory: int, flags: tuple[str, ...] = ()
) -> AsyncIterator[Scene]:
    """All domains up on test1, each with an address, and probed."""
    addresses = {f"many{number}": f"172.16.31.{120 + number}" for number in range(count)}
    probe: Probe | None = None
    try:
        for name, address in addresses.items():
            (folder / name).write_text(file_of(kernel, name, memory))
            await lab.veery("stor", "volume", "create", name, "64M")
            await lab.veery("stor", "image", "build", "busybox", "--volume", name, deadline=180)
            await lab.veery("test1", "create", str(folder / name), deadline=120)
            async with Shell(lab.client("test1").address, name) as shell:
                await shell.ready()
                await shell.run(f"ifconfig eth0 {address} netmask 255.255.0.0 up; ping -c 1 -W 1 172.16.31.1")
        probe = await Probe.start(lambda argv: lab.enter("client", argv), list(addresses.values()), interval=INTERVAL)
        await probe.answered(deadline=60)
        yield Scene(lab, addresses, probe, flags)
    finally:
        if probe is not None:
            await probe.stop()
        for name in addresses:
            for node in NODES:
                await lab.veery(node, "destroy", name, check=False)
            await lab.veery("test1", "volume", "delete", name, check=False)


async def watched(stage: Scene, into: Seen, move: Callable[[], Awaitable[None]], names: list[str]) -> None:
    """Do `move` under the probe; what it came to goes to `into`."""
    await asyncio.sleep(BEFORE)
    await stage.probe.mark()
    begun = time.monotonic()
    await move()
    into.wall.append((time.monotonic() - begun) * 1000)
    await asyncio.sleep(AFTER)
    readings = await stage.probe.read()
    for name in names:
        gap = readings[stage.addresses[name]].gap_ms
        if gap is None:
            raise Refused(f"{name} does not answer any more", hint="look at its console")
        into.gaps.append(gap)


async def single(stage: Scene, into: Seen) -> None:
    """One domain there and back, the others idle."""
    name = next(iter(stage.addresses))
    for here, there in ((stage.at, stage.other()), (stage.other(), stage.at)):

        async def move(here: str = here, there: str = there) -> None:
            await stage.lab.veery(here, "migrate", "-q", *stage.flags, name, there)

        await watched(stage, into, move, [name])


async def serial(stage: Scene, into: Seen) -> None:
    """One after the other."""

    async def move() -> None:
        for name in stage.addresses:
            await stage.lab.veery(stage.at, "migrate", "-q", *stage.flags, name, stage.other())

    await watched(stage, into, move, list(stage.addresses))
    stage.at = stage.other()


async def together(stage: Scene, into: Seen, *options: str) -> None:
    """All in one order."""

    async def move() -> None:
        words = ("migrate", "-q", "--to", stage.other(), *stage.flags, *options, *stage.addresses)
        await stage.lab.veery(stage.at, *words)

    await watched(stage, into, move, list(stage.addresses))
    stage.at = stage.other()


def median(values: list[float]) -> float:
    """The middle one."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


async def measure(stage: Scene, rounds: int) -> dict[str, Seen]:
    """All kinds in turns; one round before is not counted."""
    kinds: dict[str, Callable[[Seen], Awaitable[None]]] = {
        "single": lambda into: single(stage, into),
        "serial": lambda into: serial(stage, into),
        "at once, no turns": lambda into: together(stage, into, "--no-turns"),
        "at once, in turns": lambda into: together(stage, into),
    }
    seen = {name: Seen() for name in kinds}
    for number in range(rounds + 1):
        for name, work in kinds.items():
            await work(seen[name] if number else Seen())
            last = seen[name]
            if number:
                sys.stderr.write(f"{number} {name}: {last.wall[-1]:.0f} ms, worst gap {max(last.gaps[-6:]):.0f} ms\n")
    return seen


def rows(figures: Figures, seen: dict[str, Seen]) -> None:
    """What was seen as rows and ratios."""
    for name, each in seen.items():
        figures.add(f"many, {name}: wall", "ms", each.wall)
        figures.add(f"many, {name}: gap", "ms", each.gaps)
    figures.compare("many, gap: in turns over single", "many, at once, in turns: gap", "many, single: gap", MEDIAN_AIM)


def told(seen: dict[str, Seen]) -> str:
    """The table, and how far the aims are."""
    lines = [f"{'':20} {'wall ms':>8} {'gap ms: median':>15} {'worst':>6} {'n':>4}"]
    for name, each in seen.items():
        lines.append(
            f"{name:20} {median(each.wall):8.0f} {median(each.gaps):15.0f} {max(each.gaps):6.0f} {len(each.gaps):4}"
        )
    one, turns = seen["single"], seen["at once, in turns"]
    for text, value, aim in (
        ("wall of half of virsh's 3.0 s", median(turns.wall) / WALL_AIM, 1.0),
        ("median gap of a single move's", median(turns.gaps) / median(one.gaps), MEDIAN_AIM),
        ("worst gap of a single move's median", max(turns.gaps) / median(one.gaps), WORST_AIM),
        ("worst gap of a single move's worst", max(turns.gaps) / max(one.gaps), WORST_AIM),
    ):
        lines.append(f"{text:36} {value:5.2f}  aim {aim}{'' if value <= aim else '  missed'}")
    return "\n".join(lines)


async def _main(arguments: argparse.Namespace) -> None:
    kernel = kernels.find()
    if kernel is None:
        raise Refused("there is no guest kernel", hint="make setup")
    lab = Lab.attach(arguments.lab) if arguments.lab else await Lab.up("benchmany")
    try:
        with tempfile.TemporaryDirectory(prefix="veery-bench-") as folder:
            flags = ("--no-tls",) if arguments.no_tls else ()
            count, memory = arguments.domains, arguments.memory
            async with scene(lab, kernel, Path(folder), count=count, memory=memory, flags=flags) as stage:
                seen = await measure(stage, arguments.rounds)
    finally:
        if arguments.lab:
            lab.leave()
        else:
            await lab.down()
    print(told(seen))
    kept = {name: {"wall": each.wall, "gaps": each.gaps} for name, each in seen.items()}
    OUTPUT.write_text(json.dumps(kept, indent=1) + "\n")


def main(words: list[str]) -> int:
    """Run with command line `words`."""
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each kind (5)")
    parser.add_argument("--domains", type=int, default=6, metavar="N", help="how many domains (6)")
    parser.add_argument("--memory", type=int, default=MEMORY, metavar="MIB", help="memory of each (128)")
    parser.add_argument("--no-tls", action="store_true", help="do not encrypt, as virsh does not")
    parser.add_argument("--lab", default="", metavar="NAME", help="a lab that is up; one is made where none is named")
    asyncio.run(_main(parser.parse_args(words)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
