"""`python -m bench.plan`: what `veery migrate --plan` foretells beside what then happens, for ten kinds of domains.

Each is booted, foretold and moved, there and back; the gap is seen by a client outside that asks every 2 ms."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import writers
from bench.figures import LATEST, Figures
from veery.client.address import lab_folder
from veery.errors import Failed, Refused, VeeryError
from veery.lab import guest as kernels
from veery.lab import hosts
from veery.lab.guest import Guest
from veery.lab.plan import CLIENT
from veery.lab.probe import Probe
from veery.lab.services import Lab

NODES = ("test1", "test2")
ADDRESS = "172.16.31.220"
NAME = "foretold"
MEMORY = 384  # MiB
BEFORE, AFTER = 0.3, 0.6  # seconds of probing around a move; QEMU announces for 0.5 s
SETTLED = 2.0
BOOT = 120.0
LINK = "512mbit"  # 61 MiB/s


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of domain: `words` for its kernel (bench.writers), `flags` of veery migrate, a narrow `link` or not."""

    name: str
    words: str = ""
    flags: tuple[str, ...] = ()
    link: str = ""


WORKLOADS = (
    Workload("idle"),
    Workload("idle, 128 MiB random in use", "set=128 chunk=1 pause=9000000 fill=random"),
    Workload("writes some, random", "set=64 chunk=1 pause=60000 fill=random"),
    Workload("writes more, random", "set=96 chunk=2 pause=20000 fill=random"),
    Workload("flat out, random", "set=64 chunk=4 pause=0 fill=random"),
    Workload("flat out, text", "set=96 chunk=4 pause=0 fill=text"),
    Workload("idle, narrow link", link=LINK),
    Workload("writes some, text, narrow link", "set=64 chunk=1 pause=60000 fill=text", link=LINK),
    Workload("writes more, random, --rate 64M", "set=48 chunk=2 pause=20000 fill=random", ("--rate", "64M")),
    Workload("flat out, random, --rate 64M", "set=48 chunk=4 pause=0 fill=random", ("--rate", "64M")),
)


@dataclass(slots=True)
class Pair:
    """One figure, foretold and seen, move by move; ms."""

    foretold: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """The median of foretold over seen; 1.0 is right."""
        return statistics.median(one / max(two, 0.1) for one, two in zip(self.foretold, self.seen, strict=True))


@contextlib.asynccontextmanager
async def running(lab: Lab, kernel: Guest, folder: Path, load: Workload) -> AsyncIterator[Probe]:
    """The domain, booted and at its work on the first node; gone afterwards."""
    ramdisk = folder / "initramfs"
    if not ramdisk.exists():
        writers.initramfs(kernel, ramdisk)
    path = folder / NAME
    path.write_text(writers.domain_file(kernel, ramdisk, name=NAME, address=ADDRESS, memory=MEMORY, words=load.words))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_destroy, lab)
        await lab.veery(NODES[0], "create", str(path))
        probe = await Probe.start(lambda argv: lab.enter(CLIENT, argv), (ADDRESS,), interval=0.002)
        stack.push_async_callback(probe.stop)
        await probe.answered(deadline=BOOT)
        if load.words:
            await _written_once(lab)
        await asyncio.sleep(SETTLED)
        yield probe


async def _written_once(lab: Lab) -> None:
    logs = lab.plan.home(NODES[0]) / "run" / "domains"
    async with asyncio.timeout(BOOT):
        while not any(b"written 1 " in one.read_bytes() for one in logs.glob("*/console.log")):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _destroy(lab: Lab) -> None:
    for node in NODES:
        await lab.veery(node, "destroy", NAME, check=False)


async def _narrow(lab: Lab, rate: str) -> None:
    for node in NODES:
        words = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
        await lab.run(node, words)


async def _widen(lab: Lab) -> None:
    for node in NODES:
        await lab.run(node, ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)


async def _once(lab: Lab, probe: Probe, load: Workload, way: int, into: tuple[Pair, Pair]) -> str:
    source, target = NODES[way], NODES[1 - way]
    plan = await lab.json(source, "migrate", "--plan", "--json", *load.flags, NAME, target)
    await probe.mark()
    await asyncio.sleep(BEFORE)
    report = await lab.json(source, "migrate", "--json", *load.flags, NAME, target)
    await asyncio.sleep(AFTER)
    reading = (await probe.read())[ADDRESS]
    if report["state"] != "done" or reading.gap_ms is None:
        raise Failed(f"{load.name}: the move ended as {report['state']}: {report['reason']}")
    found = plan["forecast"]
    for pair, foretold, seen in zip(
        into, (found["total_ms"], found["gap_ms"]), (report["total_ms"], reading.gap_ms), strict=True
    ):
        pair.foretold.append(foretold)
        pair.seen.append(seen)
    copy = report["phases"]["COPY"]
    return (
        f"  total {found['total_ms']:.0f}/{report['total_ms']:.0f} gap {found['gap_ms']:.0f}/{reading.gap_ms:.0f} "
        f"bytes {found['bytes'] >> 20}/{report['bytes'] >> 20} rounds {found['rounds']}/{report['rounds']} "
        f"downtime {report['downtime_ms']:.0f} copy {copy:.0f} rate {found['rate'] / 1048576:.0f} "
        f"probe {plan['link']['probed'] / 1048576:.0f} dirty {found['dirty_rate'] / 1048576:.0f} {found['steps']}"
    )


async def measure(lab: Lab, kernel: Guest, folder: Path, figures: Figures, *, rounds: int, only: str) -> None:
    """Add the rows of every workload to `figures`."""
    seen: dict[str, tuple[Pair, Pair]] = {}
    async with running(lab, kernel, folder, WORKLOADS[0]) as probe:  # the first moves of a lab are not counted
        for way in (0, 1, 0, 1):
            await _once(lab, probe, WORKLOADS[0], way, (Pair(), Pair()))
    for load in WORKLOADS:
        if only not in load.name:
            continue
        pairs = seen[load.name] = (Pair(), Pair())
        async with contextlib.AsyncExitStack() as stack:
            probe = await stack.enter_async_context(running(lab, kernel, folder, load))
            if load.link:
                stack.push_async_callback(_widen, lab)
                await _narrow(lab, load.link)
            for number in range(rounds):
                line = await _once(lab, probe, load, number % 2, pairs)
                sys.stderr.write(f"{load.name}: {line}\n")
    for name, pairs in seen.items():
        for what, pair in zip(("total", "gap"), pairs, strict=True):
            figures.add(f"{name}: {what} foretold", "ms", pair.foretold)
            figures.add(f"{name}: {what} seen", "ms", pair.seen)
    for name in seen:
        for what in ("total", "gap"):
            figures.compare(f"{name}: {what}", f"{name}: {what} foretold", f"{name}: {what} seen", 2.0)


def table(figures: Figures) -> str:
    """Foretold beside seen, for people and docs/moves.md."""
    rows = {row.name: row for row in figures.rows}
    ratios = {ratio.name: ratio.value for ratio in figures.ratios}
    lines = [
        "| workload | time foretold | seen, ms | ratio | gap foretold | seen, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    good = {"total": 0, "gap": 0}
    names = [name.removesuffix(": total") for name in ratios if name.endswith(": total")]
    for name in names:
        cells = [name]
        for what in ("total", "gap"):
            ratio = ratios[f"{name}: {what}"]
            good[what] += 0.5 <= ratio <= 2.0
            seen = rows[f"{name}: {what} seen"]
            cells += [
                f"{rows[f'{name}: {what} foretold'].median:.0f}",
                f"{seen.median:.0f} [{seen.min:.0f}..{seen.max:.0f}]",
                f"{ratio:.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nWithin 2x: time {good['total']} of {len(names)}, gap {good['gap']} of {len(names)}.")
    return "\n".join(lines)


async def _main(arguments: argparse.Namespace) -> Figures:
    kernel = kernels.find()
    if kernel is None:
        raise Refused("there is no guest kernel", hint="make setup")
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="veery-bench-") as name:
        if arguments.lab:
            lab = Lab.attach(arguments.lab)
            try:
                await measure(lab, kernel, Path(name), figures, rounds=arguments.rounds, only=arguments.only)
            finally:
                lab.leave()
            return figures
        await hosts.sweep(lab_folder("plan").parent)
        lab = await Lab.up("plan")
        try:
            await measure(lab, kernel, Path(name), figures, rounds=arguments.rounds, only=arguments.only)
        finally:
            await lab.down()
    return figures


def main(words: list[str]) -> int:
    """Run with command line `words`; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="moves of each kind (4)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the workloads with this in their names")
    parser.add_argument("--lab", default="", metavar="NAME", help="a lab that is up; one is made where none is named")
    parser.add_argument(
        "--output", type=Path, default=LATEST, metavar="FILE", help="where to write (bench/latest.json)"
    )
    parser.add_argument("--json", action="store_true", help="print what is written, and no table")
    arguments = parser.parse_args(words)
    try:
        figures = asyncio.run(_main(arguments))
    except VeeryError as error:
        sys.stderr.write(f"bench: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return 1
    figures.write(arguments.output)
    print(json.dumps(figures.plain(), indent=1) if arguments.json else table(figures))
    if not arguments.json:
        print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
