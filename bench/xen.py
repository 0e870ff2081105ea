"""`python -m bench.xen`: veery's move between Xen hosts beside `xl migrate`, in the nested lab.

Three domains of 128 MiB on a LUN each, moved in turn, there and back: one by `xl migrate` over ssh with Xen's own
hotplug scripts, what a user has without veery; one by `xl migrate` over one bare TCP connection with our scripts, the
least that xl can do; and veery's own, there with TLS and back, and the same without."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bench.figures import Comparison, Figures, phases
from veery.client.address import lab_folder
from veery.errors import VeeryError
from veery.lab import hosts
from veery.lab.plan import BRIDGE, CLIENT
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.setup import Bar
from veery.lab.xen import dom0
from veery.lab.xen.bare import Bare, allow_ssh
from veery.lab.xen.terminal import terminal

OUTPUT = Path(__file__).with_name("xen.json")
NODES = ("test1", "test2")
SSH, BARE, OURS = "xl over ssh", "xl, bare TCP", "veery"
PLAIN = "veery --no-tls"
ADDRESSES = {SSH: "172.16.31.51", BARE: "172.16.31.52", OURS: "172.16.31.53"}
COMPARISONS = (
    Comparison("move, of xl's over ssh", f"{OURS}: move", f"{SSH}: move", 0.25),
    Comparison("move without TLS, of xl's over ssh", f"{PLAIN}: move", f"{SSH}: move", 0.25),
    Comparison("move without TLS, of the bare one", f"{PLAIN}: move", f"{BARE}: move", 1.15),
    Comparison("gap, of xl's over ssh", f"{OURS}: gap", f"{SSH}: gap", 0.3),
    Comparison("gap without TLS, of xl's over ssh", f"{PLAIN}: gap", f"{SSH}: gap", 0.3),
    Comparison("gap without TLS, of the bare one", f"{PLAIN}: gap", f"{BARE}: gap", 1.15),
)

_FILE = f"""\
name = "{{name}}"
kernel = "{dom0.GUEST}/vmlinuz"
ramdisk = "{dom0.GUEST}/initramfs"
memory = 128
type = "pv"
disk = ["volume={{name}},xvda,w"]
vif = ["mac={{mac}},bridge={BRIDGE}"]
root = "/dev/xvda rw"
extra = "console=hvc0 init=/sbin/init quiet"
"""

Mover = Callable[[str, str], Awaitable[object]]
Phases = dict[str, float]


async def run(lab: Lab, rounds: int) -> Figures:
    """`rounds` moves of each kind in `lab`, alternating. Raises Failed."""
    parts: dict[str, list[Phases]] = {OURS: [], PLAIN: []}
    movers = await _domains(lab, parts)
    probe = await Probe.start(partial(lab.enter, CLIENT), list(ADDRESSES.values()), interval=0.05)
    spent: dict[str, list[float]] = {kind: [] for kind in (SSH, BARE, OURS, PLAIN)}
    gaps: dict[str, list[float]] = {kind: [] for kind in spent}
    try:
        await probe.answered(deadline=120)
        for number in range(rounds):
            there, back = NODES if number % 2 == 0 else NODES[::-1]
            turns = [(SSH, there, back), (BARE, there, back), (OURS, *NODES), (PLAIN, *NODES[::-1])]
            for kind, source, target in turns:
                seconds, gap = await _move(probe, movers[kind], kind, source, target)
                spent[kind].append(seconds * 1e3)
                gaps[kind].append(gap)
                _say(f"round {number + 1} of {rounds}: {kind}: {seconds:.1f} s, gap {gap / 1e3:.1f} s")
    finally:
        await probe.stop()
    figures = Figures()
    for kind, took in spent.items():
        figures.add(f"{kind}: move", "ms", took)
        figures.add(f"{kind}: gap", "ms", gaps[kind])
        for phase, values in phases(parts.get(kind, [])).items():
            figures.add(f"{kind}: {phase}", "ms", values)
    figures.tell(COMPARISONS)
    return figures


async def _move(probe: Probe, mover: Mover, kind: str, source: str, target: str) -> tuple[float, float]:
    """Seconds of the whole command, and the gap that a client saw, in milliseconds."""
    address = ADDRESSES[OURS if kind == PLAIN else kind]
    await probe.mark()
    begun = time.monotonic()
    await mover(source, target)
    took = time.monotonic() - begun
    await probe.answered(deadline=60)
    gap = (await probe.read())[address].gap_ms
    assert gap is not None
    return took, gap


async def _domains(lab: Lab, parts: dict[str, list[Phases]]) -> dict[str, Mover]:
    """The three domains on the first node, each with its address; by kind, what moves one. What veery says of
    the phases of its moves goes to `parts`."""
    await allow_ssh(lab, NODES)
    names = {SSH: "ssh", BARE: "bare", OURS: "ours"}
    for number, (kind, name) in enumerate(names.items()):
        mac = f"00:16:3e:31:01:{number:02x}"
        await lab.veery("stor", "volume", "create", name, "128M")
        await lab.veery("stor", "image", "build", "busybox", "--volume", name)
        if kind == OURS:
            path = f"{dom0.STATE}/{name}.cfg"
            await lab.run(NODES[0], ["tee", path], stdin=_FILE.format(name=name, mac=mac).encode())
            await lab.veery(NODES[0], "create", path, deadline=60)
        else:
            await _bare(lab, kind, name, mac).create(NODES[0])
        words = ["veery" if kind == OURS else "xl", "console", name]
        async with terminal(lab.nested(NODES[0]), words) as shell:
            await shell.type("\n")
            await shell.ready()
            await shell.run(f"ifconfig eth0 {ADDRESSES[kind]} up")
    return {
        SSH: _bare(lab, SSH, names[SSH], "").move_by_ssh,
        BARE: _bare(lab, BARE, names[BARE], "").move,
        OURS: partial(_ours, lab, (names[OURS],), parts[OURS]),
        PLAIN: partial(_ours, lab, ("--no-tls", names[OURS]), parts[PLAIN]),
    }


def _bare(lab: Lab, kind: str, name: str, mac: str) -> Bare:
    return Bare(lab, name, mac, fast=kind == BARE)


async def _ours(lab: Lab, options: tuple[str, ...], parts: list[Phases], source: str, target: str) -> None:
    parts.append((await lab.json(source, "migrate", "--json", *options, target, deadline=120))["phases"])


async def _main(arguments: argparse.Namespace) -> Figures:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the lab is taken down then, too
    await hosts.sweep(lab_folder("benchxen").parent)
    bar = Bar("bench")
    lab = await Lab.up("benchxen", driver="xen", report=bar)
    bar.end("lab benchxen is up")
    try:
        return await run(lab, arguments.rounds)
    finally:
        await lab.down()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Measure, print the table, write the file; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.xen", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="moves of each kind (8)")
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
    figures.write(arguments.output)
    print(figures.table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
