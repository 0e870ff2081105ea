"""The same domain moved by veery and by hand, in turns: how long it took, and how long it was away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import guest as guests
from bench.bare import PORT, Bare, Host
from bench.figures import Comparison, Figures, phases
from veery.client.address import lab_folder
from veery.config.domain import parse_domain
from veery.config.settings import Qemu
from veery.errors import Failed
from veery.hypervisor.qemu import build, machine
from veery.lab.guest import Guest
from veery.lab.plan import CLIENT
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.model import codec
from veery.model.domain import DomainSpec
from veery.model.volume import AttachedDisk, Attachments, Initiator, IscsiLun

NODES = ("test1", "test2")
INTERVAL = 0.002  # seconds between two probes
BEFORE, AFTER = 0.3, 0.6  # seconds of probing around a move
SETTLED = 3.0  # seconds after the first answer, until a domain is idle
BOOT = 120.0
NAMES = {"veery": "byveery", "bare": "byhand"}
ADDRESSES = {"veery": "172.16.31.201", "bare": "172.16.31.202"}
TOTAL_AIM, GAP_AIM = 1.5, 1.2
KINDS = ("bare", "veery --no-tls", "bare TLS", "veery")
RATIOS = tuple(
    Comparison(f"{what}: veery over bare, both {words}", f"{upper}: {what}", f"{lower}: {what}", aim)
    for what, aim in (("total", TOTAL_AIM), ("gap", GAP_AIM))
    for words, upper, lower in (("with TLS", "veery", "bare TLS"), ("without", "veery --no-tls", "bare"))
)
AIMS = {each.name: each.aim for each in RATIOS}
RECORDS = Path(__file__).with_name("records.py")

Say = Callable[[str], None]


@dataclass(slots=True)
class Samples:
    """What the moves of one kind came to; milliseconds."""

    total: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    downtime: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)  # MiB
    phases: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """Both domains, running, the probe of both, and the node that each is on."""

    lab: Lab
    probe: Probe
    bare: Bare
    hosts: dict[str, Host]
    at: dict[str, str]


async def measure(
    lab: Lab, kernel: Guest, folder: Path, figures: Figures, *, rounds: int, memory: int, warm: bool, say: Say
) -> None:
    """Add the rows of `rounds` moves of each kind to `figures`; `say` hears of each move. With `warm`, one move of each
    kind each way comes before, and is not counted."""
    async with scene(lab, kernel, folder, memory) as stage:
        await asyncio.sleep(SETTLED if warm else 0.0)
        kinds: dict[str, Callable[[Samples], Awaitable[None]]] = {
            "bare": lambda into: by_hand(stage, into, tls=False),
            "veery --no-tls": lambda into: by_veery(stage, into, tls=False),
            "bare TLS": lambda into: by_hand(stage, into, tls=True),
            "veery": lambda into: by_veery(stage, into, tls=True),
        }
        samples = {name: Samples() for name in kinds}
        for name in (*kinds, *reversed(kinds)) if warm else ():
            await kinds[name](Samples())
        for number in range(rounds):
            # The other way round in every other round, so that no kind always follows the same one, or always
            # goes the same way.
            for name in kinds if number % 2 == 0 else reversed(kinds):
                await kinds[name](samples[name])
                say(_line(number + 1, name, samples[name]))
    _rows(figures, samples)


@contextlib.asynccontextmanager
async def scene(lab: Lab, kernel: Guest, folder: Path, memory: int) -> AsyncIterator[Scene]:
    """Both domains booted on the first node; gone afterwards, with their volumes."""
    async with contextlib.AsyncExitStack() as stack:
        for name in NAMES.values():
            stack.push_async_callback(lab.veery, "stor", "volume", "delete", name, check=False)
            await guests.make_volume(lab, name)
        hosts = hosts_of(lab)
        texts = {who: guests.domain_file(kernel, name, memory=memory) for who, name in NAMES.items()}
        bare = await by_hand_domain(lab, NAMES["bare"], texts["bare"], folder)
        stack.push_async_callback(asyncio.to_thread, bare.stop)
        await asyncio.to_thread(bare.start, hosts[NODES[0]])
        stack.push_async_callback(_forget, lab)
        path = guests.write(folder, NAMES["veery"], texts["veery"])
        await lab.veery(NODES[0], "create", str(path), deadline=BOOT)
        async with Shell(lab.client(NODES[0]).address, NAMES["veery"]) as shell:
            await shell.ready()
            await shell.run(guests.address_line(ADDRESSES["veery"]))
        await asyncio.to_thread(bare.type, guests.address_line(ADDRESSES["bare"]))
        probe = await Probe.start(lambda argv: lab.enter(CLIENT, argv), tuple(ADDRESSES.values()), interval=INTERVAL)
        stack.push_async_callback(probe.stop)
        await probe.answered(deadline=BOOT)
        yield Scene(lab, probe, bare, hosts, dict.fromkeys(NAMES, NODES[0]))


def hosts_of(lab: Lab) -> dict[str, Host]:
    """The nodes as a bare QEMU needs them."""
    return {
        name: Host(name, lab.plan.namespace(name), lab.plan.node(name).address, lab.plan.home(name) / "lib" / "tls")
        for name in NODES
    }


async def by_hand(stage: Scene, into: Samples, *, tls: bool) -> None:
    """One move by the bare script."""
    target = other(stage.at["bare"])
    async with _watched(stage, "bare", into):
        told = await asyncio.to_thread(stage.bare.move, stage.hosts[target], tls=tls)
    stage.at["bare"] = target
    into.total.append(told["total"])
    into.downtime.append(told["downtime"])
    into.sent.append(told["bytes"] / (1 << 20))
    into.phases.append({key: told[key] for key in ("spawn", "copy", "end")})


async def by_veery(stage: Scene, into: Samples, *, tls: bool) -> None:
    """One move by `veery migrate`."""
    here = stage.at["veery"]
    target = other(here)
    words = ["migrate", "--json", NAMES["veery"], target] + ([] if tls else ["--no-tls"])
    async with _watched(stage, "veery", into):
        begun = time.perf_counter()
        result = await stage.lab.veery(here, *words)
        into.command.append((time.perf_counter() - begun) * 1e3)
    report: dict[str, Any] = json.loads(result.out)
    if report["state"] != "done" or report["reason"]:
        raise Failed(f"a move by veery ended as {report['state']}: {report['reason']}")
    stage.at["veery"] = target
    into.total.append(report["total_ms"])
    into.downtime.append(report["downtime_ms"])
    into.sent.append(report["bytes"] / (1 << 20))
    into.phases.append(report["phases"])


def other(node: str) -> str:
    """The other node."""
    return NODES[1 - NODES.index(node)]


@contextlib.asynccontextmanager
async def _watched(stage: Scene, who: str, into: Samples) -> AsyncIterator[None]:
    """The gap that the client sees while the body runs. Raises Failed when the domain is lost."""
    await stage.probe.mark()
    await asyncio.sleep(BEFORE)
    yield
    await asyncio.sleep(AFTER)
    reading = (await stage.probe.read())[ADDRESSES[who]]
    if reading.gap_ms is None or reading.age_ms is None or reading.age_ms > 400:
        raise Failed(f"domain {NAMES[who]} does not answer after a move", hint="look at its console")
    into.gap.append(reading.gap_ms)


async def by_hand_domain(lab: Lab, name: str, text: str, folder: Path, *, number: int = 0) -> Bare:
    """The domain of `text` on volume `name` as the driver would build it, with its LUN as each node reaches it.
    `number` tells those that there are at the same time apart."""
    spec, plan, binary = await built(text, number)
    luns = await reached(lab, name)
    disks = {node: tuple(AttachedDisk(spec=disk, source=lun) for disk in spec.disks) for node, lun in luns.items()}
    attachments = {node: Attachments(disks=each) for node, each in disks.items()}
    return Bare.of(binary, spec, plan, attachments, folder / f"b{number}", port=PORT + number)


async def built(text: str, number: int) -> tuple[DomainSpec, build.Build, str]:
    """The domain of `text`, its machine as the driver would lay it out, and the QEMU that runs it."""
    spec = parse_domain(text, "bench").spec
    vifs = tuple(replace(vif, mac=f"00:16:3e:62:61:{number:02x}") for vif in spec.vifs)
    spec = replace(spec, uuid=str(uuid.uuid4()), vifs=vifs)
    qemu = await machine.find(Qemu(), lab_folder().parent.parent / "qemu.json")
    plan = build.lay_out(spec, machine=build.MACHINE, accel=qemu.accel, started=0.0)
    return spec, plan, shutil.which(qemu.binary) or qemu.binary


async def reached(lab: Lab, name: str) -> dict[str, IscsiLun]:
    """How each node reaches the volume `name`."""
    volume = (await lab.json("stor", "volume", "show", name, "--json"))["volume"]
    told = await lab.run("stor", [sys.executable, RECORDS, lab.plan.settings("stor")])
    initiators = codec.decode(told.out.encode(), dict[str, Initiator])
    where = {"portal": volume["portal"], "iqn": volume["iqn"], "lun": 1}
    mine = {node: initiators[node] for node in NODES}
    return {
        node: IscsiLun(**where, initiator=each.iqn, user=each.user, password=each.password)
        for node, each in mine.items()
    }


async def _forget(lab: Lab) -> None:
    for node in NODES:
        await lab.veery(node, "destroy", NAMES["veery"], check=False)
    await lab.veery(NODES[0], "delete", NAMES["veery"], check=False)


def _rows(figures: Figures, samples: dict[str, Samples]) -> None:
    for name, each in samples.items():
        figures.add(f"{name}: total", "ms", each.total)
        figures.add(f"{name}: gap", "ms", each.gap)
        figures.add(f"{name}: downtime by QEMU", "ms", each.downtime)
        figures.add(f"{name}: whole command", "ms", each.command)
        figures.add(f"{name}: sent", "MiB", each.sent)
    for name, each in samples.items():
        for phase, values in phases(each.phases).items():
            figures.add(f"{name}: {phase}", "ms", values)
    figures.tell(RATIOS)


def _line(number: int, name: str, each: Samples) -> str:
    parts = " ".join(f"{key} {value:.0f}" for key, value in each.phases[-1].items())
    return f"{number:>3} {name:<15} total {each.total[-1]:>5.0f}  gap {each.gap[-1]:>5.1f}  {parts}"
