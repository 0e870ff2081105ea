"""`python -m bench`: measure, print the table, write bench/latest.json."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from bench import daemon, many, moves, peers, plan
from bench.figures import LATEST, Figures
from veery.client.address import lab_folder
from veery.errors import Refused, VeeryError
from veery.lab import guest as kernels
from veery.lab import hosts
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.setup import Bar

PARTS = ("moves", "daemon", "peers", "many", "plan")  # the daemon's memory is read when it has moved domains
FORETOLD = 4  # moves of each kind in part "plan", at most


async def run(lab: Lab, kernel: Guest, arguments: argparse.Namespace) -> Figures:
    """Measure what `arguments` ask for in `lab`. A part that fails ends with its message, and the others go on;
    their names are in the figures' `failed`."""
    figures = Figures()
    for part in PARTS:
        if part in arguments.parts:
            # The folder goes with the lab, come what may.
            with tempfile.TemporaryDirectory(prefix="bench", dir=lab.plan.folder) as name:
                try:
                    await _part(part, lab, kernel, Path(name), figures=figures, arguments=arguments)
                except VeeryError as error:
                    _say(f"bench: part {part} failed: {error.message}")
                    figures.failed.append(part)
    return figures


async def _part(
    part: str, lab: Lab, kernel: Guest, folder: Path, *, figures: Figures, arguments: argparse.Namespace
) -> None:
    rounds, memory, count = arguments.rounds, arguments.memory, arguments.domains
    match part:
        case "moves":
            await moves.measure(
                lab, kernel, folder, figures, rounds=rounds, memory=memory, warm=arguments.warm, say=_say
            )
        case "daemon":
            await daemon.measure(lab, kernel, folder, figures, rounds=rounds, domains=count)
        case "peers":
            await peers.measure(
                lab,
                kernel,
                folder,
                figures,
                rounds=rounds,
                memory=memory,
                count=count,
                stages=arguments.stages,
                warm=arguments.warm,
                say=_say,
            )
        case "many":
            async with many.scene(lab, kernel, folder, count=count, memory=many.MEMORY) as stage:
                many.rows(figures, await many.measure(stage, -(-rounds // 4)))
        case "plan":
            await plan.measure(lab, kernel, folder, figures, rounds=min(rounds, FORETOLD), only="")


async def _main(arguments: argparse.Namespace) -> Figures:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _this_task().cancel)
    kernel = kernels.find()
    if kernel is None:
        raise Refused("there is no guest kernel", hint="make setup")
    if arguments.lab:
        lab = Lab.attach(arguments.lab)
        try:
            return await run(lab, kernel, arguments)
        finally:
            lab.leave()
    await hosts.sweep(lab_folder("bench").parent)
    bar = Bar("bench")
    lab = await Lab.up("bench", report=bar)
    bar.end("lab bench is up")
    try:
        return await run(lab, kernel, arguments)
    finally:
        await lab.down()


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def parser() -> argparse.ArgumentParser:
    """The command line; what it gives is what `run` wants."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="moves of each kind (20); less of what takes long"
    )
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="the moved domain's memory (512)")
    parser.add_argument("--no-warm-up", dest="warm", action="store_false", help="count the first moves, too")
    parser.add_argument(
        "--domains",
        type=int,
        default=6,
        metavar="N",
        help="domains of which many move, and that a daemon has while it is looked at (6)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    stages = list(peers.STAGES)
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages, help="what of part peers (all)")
    parser.add_argument("--lab", default="", metavar="NAME", help="a lab that is up; one is made where none is named")
    parser.add_argument(
        "--output", type=Path, default=LATEST, metavar="FILE", help="where to write (bench/latest.json)"
    )
    parser.add_argument("--json", action="store_true", help="print what is written, and no table")
    return parser


def main(words: list[str]) -> int:
    """Run with command line `words`; the exit status."""
    arguments = parser().parse_args(words)
    try:
        figures = asyncio.run(_main(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench: ended before its end; nothing is left of it\n")
        return 1
    except VeeryError as error:
        sys.stderr.write(f"bench: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return 1
    figures.write(arguments.output)
    if not figures.rows:
        return 1
    print(json.dumps(figures.plain(), indent=1) if arguments.json else figures.table())
    if not arguments.json:
        print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 1 if figures.failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
