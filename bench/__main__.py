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

from bench import daemon, moves
from bench.figures import Figures
from veery.client.address import lab_folder
from veery.errors import Refused, VeeryError
from veery.lab import guest as kernels
from veery.lab import hosts
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.setup import Bar

LATEST = Path(__file__).with_name("latest.json")
PARTS = ("moves", "daemon")  # the daemon's memory is read when it has moved domains


async def run(lab: Lab, kernel: Guest, arguments: argparse.Namespace) -> Figures:
    """Measure what `arguments` ask for in `lab`."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="bench", dir=lab.plan.folder) as name:  # goes with the lab, come what may
        folder = Path(name)
        if "moves" in arguments.parts:
            await moves.measure(
                lab,
                kernel,
                folder,
                figures,
                rounds=arguments.rounds,
                memory=arguments.memory,
                warm=arguments.warm,
                say=_say,
            )
        if "daemon" in arguments.parts:
            await daemon.measure(lab, kernel, folder, figures, rounds=arguments.rounds, domains=arguments.domains)
    return figures


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
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="moves of each kind (20)")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="the moved domain's memory (512)")
    parser.add_argument("--no-warm-up", dest="warm", action="store_false", help="count the first moves, too")
    parser.add_argument("--domains", type=int, default=6, metavar="N", help="domains while the daemon is looked at (6)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
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
    print(json.dumps(figures.plain(), indent=1) if arguments.json else figures.table())
    if not arguments.json:
        print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
