"""Lost nodes and drained ones: from a power cut to the domain's answering a client outside, and a drain of six domains.

`python -m bench.ha`: N power cuts, each with its breakdown (detect, fence, place, boot), told apart by the brain's own
events; every fence is proven at the storage, and in the end the disk is judged. Then a node with six domains is drained
and filled again. Writes bench/ha.json."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.figures import Figures
from veery.client.address import lab_folder
from veery.errors import Failed, Refused, VeeryError
from veery.lab import faults, hosts, ledger
from veery.lab import guest as kernels
from veery.lab.guest import Guest
from veery.lab.ledger import Collector, Ledger
from veery.lab.probe import Probe
from veery.lab.services import Lab

NAME, ADDRESS = "kept", "172.16.31.61"
MANY = 6
INTERVAL = 0.01
DEADLINE = 180.0  # seconds for one thing to happen
MEDIAN_AIM, WORST_AIM = 10.0, 15.0  # seconds
DRAIN_AIM, GAP_AIM = 1.2, 1.5
PARTS = ("power", "drain")
OUTPUT = Path(__file__).with_name("ha.json")


@dataclass(slots=True)
class Cuts:
    """What the power cuts came to, seconds."""

    total: list[float] = field(default_factory=list)
    detect: list[float] = field(default_factory=list)
    fence: list[float] = field(default_factory=list)
    place: list[float] = field(default_factory=list)
    boot: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)  # runnable tasks, a minute's mean


@dataclass(slots=True)
class Scene:
    """The lab, and the client's ears in it."""

    lab: Lab
    kernel: Guest
    folder: Path
    collector: Collector
    ramdisk: Path

    async def get(self, path: str) -> Any:
        """GET of the storage node, which leads and never dies here."""
        return await asyncio.to_thread(self.lab.client("stor", deadline=20).get, path)

    async def post(self, path: str, body: object) -> Any:
        """POST, likewise."""
        return await asyncio.to_thread(self.lab.client("stor", deadline=20).post, path, body)

    async def until(self, check: Callable[[], Awaitable[bool]], what: str) -> None:
        """Return once `check` holds. Raises Failed."""
        ends = time.monotonic() + DEADLINE
        while time.monotonic() < ends:
            try:
                if await check():
                    return
            except VeeryError:
                pass
            await asyncio.sleep(0.1)
        raise Failed(f"not within {DEADLINE:g} s: {what}")

    async def rest(self) -> None:
        """Return when every node is well."""

        async def well() -> bool:
            rows = (await self.get("/v1/cluster"))["nodes"]
            for row in rows:
                if row["state"] == "damped":  # fenced three times within an hour
                    await self.post(f"/v1/nodes/{row['name']}/resume", {})
            return {row["state"] for row in rows} == {"present"} and not await self.get("/v1/fences")

        await self.lab.healthy()
        await self.until(well, "every node is well")


async def power(scene: Scene, figures: Figures, *, rounds: int) -> None:
    """Cut the power of the domain's node, `rounds` times. Raises Failed where the disk has something against it."""
    kept = Ledger(NAME, ADDRESS, size=32)
    await kept.make(scene.lab, scene.kernel, scene.ramdisk, scene.folder, node="test1")
    probe = await Probe.start(lambda argv: scene.lab.enter("client", argv), [ADDRESS], interval=INTERVAL)
    cuts = Cuts()
    try:
        for number in range(1, rounds + 1):
            await scene.rest()
            await scene.post(f"/v1/ha/{NAME}", {"policy": "restart"})  # earlier tries are forgotten, and their pauses
            before = await scene.collector.next(NAME, deadline=DEADLINE)
            await cut(scene, probe, cuts, before.boot)
            parts = ", ".join(f"{name} {getattr(cuts, name)[-1]:.1f}" for name in ("detect", "fence", "place", "boot"))
            _say(f"cut {number} of {rounds}: {cuts.total[-1]:.1f} s ({parts})")
        wrong = await kept.judged(scene.lab, scene.collector)
        if wrong:
            raise Failed(f"the disk: {wrong[0]}")
    finally:
        await probe.stop()
        _rows(figures, cuts)
        await end(scene, [NAME])


async def cut(scene: Scene, probe: Probe, cuts: Cuts, boot: str) -> None:
    """One power cut, and its figures."""
    node = (await scene.get(f"/v1/ha/{NAME}"))["node"]
    await probe.mark()
    await asyncio.sleep(0.3)
    begun = time.time()
    await faults.power_off(scene.lab, node)
    try:
        await scene.collector.next(NAME, but=boot, deadline=DEADLINE)
        reading = (await probe.read())[ADDRESS]
        events = {
            (event["what"], event["subject"]): event["at"]
            for event in await scene.get("/v1/events?count=200")
            if event["at"] >= begun
        }
    finally:
        await faults.power_on(scene.lab, node)
    if reading.gap_at is None or reading.gap_ms is None:
        raise Failed("the probe heard nothing")
    answered = reading.gap_at + reading.gap_ms / 1e3
    fence, proven = events["fence", f"node/{node}"], events["fence.done", f"node/{node}"]
    start = events["start", f"domain/{NAME}"]
    cuts.total.append(answered - begun)
    cuts.detect.append(fence - begun)
    cuts.fence.append(proven - fence)
    cuts.place.append(start - proven)
    cuts.boot.append(answered - start)
    cuts.load.append(os.getloadavg()[0])


def _rows(figures: Figures, cuts: Cuts) -> None:
    figures.add("power cut to answer", "s", cuts.total)
    figures.add("  detect: to the fence's begin", "s", cuts.detect)
    figures.add("  fence, with its proof", "s", cuts.fence)
    figures.add("  place: proof to the order", "s", cuts.place)
    figures.add("  boot: order to first answer", "s", cuts.boot)
    figures.add("load of the machine meanwhile", "", cuts.load)
    figures.hold("power cut to answer over 10 s", "power cut to answer", MEDIAN_AIM)
    if cuts.total:
        figures.add("power cut to answer, worst", "s", [max(cuts.total)])
        figures.hold("worst over 15 s", "power cut to answer, worst", WORST_AIM)


async def drain(scene: Scene, figures: Figures, *, rounds: int) -> None:
    """Drain a node with six domains and bring them home, and move each alone beside it."""
    names = {f"many{number}": f"172.16.31.{70 + number}" for number in range(1, MANY + 1)}
    try:
        for name, address in names.items():
            one = Ledger(name, address, size=8)
            await one.make(scene.lab, scene.kernel, scene.ramdisk, scene.folder, node="test1", pause=0.5)
        for name in names:
            await scene.collector.next(name, deadline=DEADLINE)
        probe = await Probe.start(lambda argv: scene.lab.enter("client", argv), list(names.values()), interval=INTERVAL)
        try:
            await _drains(scene, probe, names, figures, rounds)
        finally:
            await probe.stop()
    finally:
        await end(scene, list(names))


async def _drains(scene: Scene, probe: Probe, names: dict[str, str], figures: Figures, rounds: int) -> None:
    single: list[float] = []
    gaps: list[float] = []
    walls: list[float] = []
    copies: list[float] = []
    worst: list[float] = []
    load: list[float] = []
    between: list[float] = []
    for number in range(1, rounds + 1):
        await scene.rest()
        for name, address in names.items():
            await probe.mark()
            await scene.lab.veery("test1", "migrate", "--live", name, "test2", deadline=DEADLINE)
            await asyncio.sleep(0.3)
            single.append((await probe.read())[address].gap_ms or 0.0)
            await scene.lab.veery("test2", "migrate", "--live", name, "test1", deadline=DEADLINE)
        await probe.mark()
        begun, wall = time.time(), time.monotonic()
        await scene.lab.veery("stor", "node", "drain", "test1", deadline=DEADLINE * 4)
        walls.append(time.monotonic() - wall)
        seen = await probe.read()
        gaps += [reading.gap_ms or 0.0 for reading in seen.values()]
        worst.append(max(gaps[-MANY:]))
        moves = await asyncio.to_thread(scene.lab.client("test1").get, "/v1/moves")
        spans = sorted((move["started"], move["total_ms"] / 1e3) for move in moves if move["started"] >= begun)
        copies.append(sum(total for _, total in spans))
        between += [(next_[0] - last[0] - last[1]) * 1e3 for last, next_ in pairwise(spans)]
        load.append(os.getloadavg()[0])
        await scene.lab.veery("stor", "node", "resume", "test1", "--home", deadline=DEADLINE * 4)
        _say(f"drain {number} of {rounds}: {walls[-1]:.1f} s, copies {copies[-1]:.1f} s")
    figures.add(f"drain of {MANY} domains, whole command", "s", walls)
    figures.add(f"sum of the {MANY} moves' own times", "s", copies)
    figures.add("from one move's end to the next one's begin", "ms", between)
    figures.add("gap of a domain drained", "ms", gaps)
    figures.add("gap of a domain drained, worst of each drain", "ms", worst)
    figures.add("gap of a domain moved alone", "ms", single)
    figures.add("load of the machine at a drain's end", "", load)
    figures.compare(
        "drain over the sum of its moves",
        f"drain of {MANY} domains, whole command",
        f"sum of the {MANY} moves' own times",
        DRAIN_AIM,
    )
    figures.compare(
        "worst gap over a single move's",
        "gap of a domain drained, worst of each drain",
        "gap of a domain moved alone",
        GAP_AIM,
    )


async def end(scene: Scene, names: list[str]) -> None:
    """Nothing of the domains is left, as far as that can be done."""
    for name in names:
        for node in ("test1", "test2"):
            await scene.lab.veery(node, "destroy", name, check=False)
        await scene.lab.veery("stor", "delete", name, check=False)
        await scene.lab.veery("stor", "volume", "delete", name, check=False)


async def run(lab: Lab, kernel: Guest, arguments: argparse.Namespace) -> Figures:
    """Measure what `arguments` ask for; a part that fails is told, and the others go on."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="bench", dir=lab.plan.folder) as name:
        folder = Path(name)
        collector = await Collector.start(lab, folder)
        try:
            scene = Scene(lab, kernel, folder, collector, ledger.initramfs(kernel, folder / "initramfs"))
            for part in arguments.parts:
                try:
                    if part == "power":
                        await power(scene, figures, rounds=arguments.rounds)
                    else:
                        await drain(scene, figures, rounds=max(1, arguments.rounds // 7))
                except VeeryError as error:
                    figures.failed.append(part)
                    _say(f"bench: {part}: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
        finally:
            await collector.stop()
    return figures


async def _main(arguments: argparse.Namespace) -> Figures:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the lab is taken down then, too
    kernel = kernels.find()
    if kernel is None:
        raise Refused("there is no guest kernel", hint="make setup")
    await hosts.sweep(lab_folder("benchha").parent)
    lab = await Lab.up("benchha")
    try:
        return await run(lab, kernel, arguments)
    finally:
        await lab.down()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Measure, print the table, write the file; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.ha", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="power cuts (20); of drains a seventh")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write the figures")
    arguments = parser.parse_args()
    try:
        figures = asyncio.run(_main(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("bench: ended before its end; nothing is left of it")
        return 1
    except VeeryError as error:
        _say(f"bench: {error.message}")
        return 1
    if not figures.rows:
        return 1
    figures.write(arguments.output)
    print(figures.table())
    return 1 if figures.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
