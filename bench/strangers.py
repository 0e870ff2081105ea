"""Moves and lost nodes while strangers throng at the ports: `python -m bench.strangers`.

In each round a domain moves there and back and its node's power is cut, first in quiet and then with the strangers of
bench/crowd.py: 2,000 idle and 200 busy ones at ports 8001 and 8002 of all nodes. The power cut is that of bench.ha.
Writes bench/strangers.json."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ha
from bench.figures import Figures
from bench.ha import ADDRESS, DEADLINE, INTERVAL, NAME, Cuts, Scene
from veery.client.address import lab_folder
from veery.errors import Failed, Refused, VeeryError
from veery.lab import guest as kernels
from veery.lab import hosts, ledger
from veery.lab.guest import Guest
from veery.lab.ledger import Collector, Ledger
from veery.lab.probe import Probe
from veery.lab.services import Lab

KINDS = ("quiet", "strangers")
PORTS = (8001, 8002)
SOURCES = [f"172.16.40.{number}" for number in range(1, 65)]  # a port lets few in from any one address
SETTLE_S = 10.0  # until all strangers have come
LONGEST_S = 900.0  # for which the strangers of one round stay, should this process not end them
SLOWER_AIM = 1.0  # seconds by which a failover may take longer with strangers
OUTPUT = Path(__file__).with_name("strangers.json")


@dataclass(slots=True)
class Seen:
    """What the rounds of one kind came to. ms; the cuts in seconds."""

    total: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    cuts: Cuts = field(default_factory=Cuts)


@contextlib.asynccontextmanager
async def strangers(lab: Lab, idle: int, busy: int, told: list[dict[str, Any]]) -> AsyncIterator[None]:
    """While this lasts they are there; what they counted is added to `told`."""
    for source in SOURCES:
        await lab.run("client", ["ip", "address", "replace", f"{source}/16", "dev", "eth0"])
    places = [f"{node.address}:{port}" for node in lab.plan.nodes for port in PORTS]
    words = [sys.executable, "-m", "bench.crowd", str(idle), str(busy), str(LONGEST_S), *places]
    argv = lab.enter("client", ["env", f"CROWD_FROM={','.join(SOURCES)}", *words])
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdin=pipe, stdout=pipe, cwd=Path(__file__).parent.parent
    )
    try:
        await asyncio.sleep(SETTLE_S)
        yield
    finally:
        try:
            async with asyncio.timeout(60):
                said, _ = await process.communicate(b"")
            told.append(json.loads(said))
        except (TimeoutError, ValueError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            _say("bench: the strangers did not say what they saw")


async def _moves(scene: Scene, probe: Probe, seen: Seen, moves: int) -> None:
    """Move the domain, `moves` times."""
    for _ in range(moves):
        node = str((await scene.get(f"/v1/ha/{NAME}"))["node"])
        other = "test2" if node == "test1" else "test1"
        await probe.mark()
        begun = time.time()
        await scene.lab.veery(node, "migrate", "--live", NAME, other, deadline=DEADLINE)
        await asyncio.sleep(0.5)
        gap = (await probe.read())[ADDRESS].gap_ms
        if gap is None:
            raise Failed(f"{NAME} does not answer any more", hint="look at its console")
        seen.gap.append(gap)
        rows = await asyncio.to_thread(scene.lab.client(node).get, "/v1/moves")
        seen.total += [row["total_ms"] for row in rows if row["started"] >= begun and row["total_ms"]]


async def _round(scene: Scene, probe: Probe, seen: Seen, moves: int) -> None:
    """Some moves, and one power cut."""
    await scene.rest()
    await scene.post(f"/v1/ha/{NAME}", {"policy": "restart"})  # earlier tries are forgotten, and their pauses
    before = await scene.collector.next(NAME, deadline=DEADLINE)
    await _moves(scene, probe, seen, moves)
    await ha.cut(scene, probe, seen.cuts, before.boot)


async def measure(scene: Scene, figures: Figures, arguments: argparse.Namespace) -> None:
    """All rounds. Raises Failed where the disk has something against it."""
    kept = Ledger(NAME, ADDRESS, size=32)
    await kept.make(scene.lab, scene.kernel, scene.ramdisk, scene.folder, node="test1")
    probe = await Probe.start(lambda argv: scene.lab.enter("client", argv), [ADDRESS], interval=INTERVAL)
    seen = {kind: Seen() for kind in KINDS}
    told: list[dict[str, Any]] = []
    try:
        await scene.collector.next(NAME, deadline=DEADLINE)
        for number in range(1, arguments.rounds + 1):
            await _round(scene, probe, seen["quiet"], arguments.moves)
            async with strangers(scene.lab, arguments.idle, arguments.busy, told):
                await _round(scene, probe, seen["strangers"], arguments.moves)
            totals = ", ".join(f"{kind} {seen[kind].cuts.total[-1]:.1f} s" for kind in KINDS)
            _say(f"round {number} of {arguments.rounds}: power cut to answer: {totals}")
        wrong = await kept.judged(scene.lab, scene.collector)
        if wrong:
            raise Failed(f"the disk: {wrong[0]}")
    finally:
        await probe.stop()
        rows(figures, seen, told, arguments)
        await ha.end(scene, [NAME])


def rows(figures: Figures, seen: dict[str, Seen], told: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The rows and ratios of what was seen."""
    for kind, each in seen.items():
        figures.add(f"{kind}: total", "ms", each.total)
        figures.add(f"{kind}: gap", "ms", each.gap)
        figures.add(f"{kind}: power cut to answer", "s", each.cuts.total)
        figures.add(f"{kind}: detect", "s", each.cuts.detect)
        figures.add(f"{kind}: boot", "s", each.cuts.boot)
        figures.add(f"{kind}: load", "", each.cuts.load)
    figures.add("strangers: idle ones wanted", "", [arguments.idle])
    figures.add("strangers: busy ones", "", [arguments.busy])
    figures.add("strangers: most idle connections at a time", "", [one["most"] for one in told])
    answers = [sum(n for what, n in one["counts"].items() if what.startswith(("answers", "cut"))) for one in told]
    figures.add("strangers: requests answered or cut off", "", answers)
    later = [a - b for a, b in zip(seen["strangers"].cuts.total, seen["quiet"].cuts.total, strict=False)]
    figures.add("failover later with strangers", "s", later)
    figures.hold("failover later with strangers over 1 s", "failover later with strangers", SLOWER_AIM)
    figures.compare("total: strangers over quiet", "strangers: total", "quiet: total")
    figures.compare("gap: strangers over quiet", "strangers: gap", "quiet: gap")


async def run(lab: Lab, kernel: Guest, arguments: argparse.Namespace) -> Figures:
    """Measure in `lab`."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="bench", dir=lab.plan.folder) as name:
        folder = Path(name)
        collector = await Collector.start(lab, folder)
        try:
            scene = Scene(lab, kernel, folder, collector, ledger.initramfs(kernel, folder / "initramfs"))
            await measure(scene, figures, arguments)
        except VeeryError as error:
            figures.failed.append("strangers")
            _say(f"bench: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
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
    await hosts.sweep(lab_folder("benchstr").parent)
    lab = await Lab.up("benchstr")
    try:
        return await run(lab, kernel, arguments)
    finally:
        await lab.down()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Measure, print the table, write the file; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.strangers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each kind (3)")
    parser.add_argument("--moves", type=int, default=6, metavar="N", help="moves in a round (6)")
    parser.add_argument("--idle", type=int, default=2000, metavar="N", help="strangers that say nothing (2000)")
    parser.add_argument("--busy", type=int, default=200, metavar="N", help="strangers that send something (200)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write the figures")
    try:
        figures = asyncio.run(_main(arguments := parser.parse_args()))
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
