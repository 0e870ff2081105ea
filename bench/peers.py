"""veery beside its peers: a script over QMP and `virsh migrate`, with domains of one kind, in turns.

Three stages. One: a domain of each, moved there and back; the whole command, what the mover itself tells, the gap.
Six: as many domains of each, moved away from their node. Writers: a domain that writes faster than the copy may go."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import contenders, libvirt, writers
from bench import guest as guests
from bench.contenders import ByHand, ByVeery, ByVirsh, Contender
from bench.figures import Comparison, Figures
from bench.moves import NODES, SETTLED
from bench.virsh import TUNED, Peer
from veery.errors import Failed, VeeryError
from veery.lab.guest import Guest
from veery.lab.plan import CLIENT
from veery.lab.probe import Probe
from veery.lab.services import Lab

ONE_INTERVAL, SIX_INTERVAL = 0.002, 0.01  # seconds between two probes; probing is load, too
BEFORE, AFTER = 0.3, 0.8  # seconds of probing around a move
BOOT = 120.0
LOST = 20.0  # seconds of silence after a move that mean that a domain is lost
SMALL = 128  # MiB, each of six
TUNED_PAUSE = 50  # ms, as veery's and the script's
CAP = 64  # MiB/s
PATIENCE = 60.0  # seconds, then a move is aborted
SET, PASSES = 128, 3  # MiB; how often it is written while its rate is measured
_WRITTEN = re.compile(r"^written \d+ at ([\d.]+)\r?$", re.MULTILINE)
RATES = {"100 MiB/s": "rate=100", "flat out": "pause=0"}
WRITER, ADDRESS, WRITES = "writer", "172.16.31.199", f"set={SET} chunk=8 fill=random"

WHOLE_AIM, GAP_AIM = 0.5, 0.6  # of virsh's default
BARE_GAP_AIM, INSIDE_AIM = 1.1, 1.3  # of the script's
WALL_AIM, MEDIAN_AIM, WORST_AIM = 0.5, 1.2, 1.5  # six: of virsh all at once; of a single move's gap
WRITER_AIM = 15_000.0  # ms

ONE_RATIOS = (
    *(
        Comparison(f"one, {what}: {name} over {peer}", f"one, {name}: {what}", f"one, {peer}: {what}", aim)
        for name, bare in (("veery --no-tls", "bare"), ("veery", "bare TLS"))
        for what, peer, aim in (
            ("whole command", "virsh", WHOLE_AIM),
            ("whole command", "virsh tuned", None),
            ("gap", "virsh", GAP_AIM),
            ("gap", bare, BARE_GAP_AIM),
            ("inside", bare, INSIDE_AIM),
        )
    ),
    *(
        Comparison(f"one, {what}: TLS's cost", f"one, veery: {what}", f"one, veery --no-tls: {what}")
        for what in ("whole command", "inside", "gap")
    ),
)
_SINGLE = "six, veery --no-tls single: gap"
SIX_RATIOS = tuple(
    Comparison(f"six, {what}: {name} over {words}", f"six, {name}: {row}", lower, aim)
    for name in ("veery --no-tls at once", "veery at once")
    for what, words, row, lower, aim in (
        ("wall", "virsh at once", "wall", "six, virsh at once: wall", WALL_AIM),
        ("gap", "a single move's", "gap", _SINGLE, MEDIAN_AIM),
        ("worst gap", "a single move's", "worst gap of a round", _SINGLE, WORST_AIM),
    )
)
WRITER_RATIOS = {
    f"writer {rate}, veery {policy} over {WRITER_AIM / 1e3:g} s": f"writer {rate}, veery {policy}: whole command"
    for rate in RATES
    for policy in ("balanced", "must-finish")
}
AIMS = {each.name: each.aim for each in (*ONE_RATIOS, *SIX_RATIOS)} | dict.fromkeys(WRITER_RATIOS, 1.0)
STAGES = ("one", "six", "writers")

Say = Callable[[str], None]


@dataclass(slots=True)
class Samples:
    """What the moves of one kind came to, ms; `gaps` of every domain, `worst` of every round, `ended` 1.0 or 0.0;
    `rate` MiB/s that the domain wrote before."""

    whole: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to move: `work` does it and returns what the mover tells of its time (0: nothing). `prepare` comes
    before the clock starts."""

    name: str
    of: Contender
    work: Callable[[], Awaitable[float]]
    names: tuple[str, ...]
    prepare: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it happens."""

    lab: Lab
    kernel: Guest
    folder: Path
    peer: Peer | None
    say: Say


async def measure(
    lab: Lab,
    kernel: Guest,
    folder: Path,
    figures: Figures,
    *,
    rounds: int,
    memory: int,
    count: int,
    stages: Sequence[str],
    warm: bool,
    say: Say,
) -> None:
    """Add the rows of all stages; `rounds` moves of each kind with one domain, half as many with `count`, at most four
    of each writer. Where libvirt cannot be had `say` hears why, and its rows are left out."""
    async with contextlib.AsyncExitStack() as stack:
        peer = await _peer(lab, say)
        if peer is not None:
            stack.push_async_callback(peer.stop)
        stage = Stage(lab, kernel, folder, peer, say)
        if "one" in stages:
            with _rows(figures, _one_rows) as samples:
                await _one(stage, samples, rounds=rounds, memory=memory, warm=warm)
        if "six" in stages:
            with _rows(figures, _six_rows) as samples:
                await _six(stage, samples, rounds=-(-rounds // 2), count=count)
        if "writers" in stages:
            with _rows(figures, _writer_rows) as samples:
                await _writers(stage, samples, rounds=min(rounds, 4), memory=memory)


@contextlib.contextmanager
def _rows(figures: Figures, add: Callable[[Figures, dict[str, Samples]], None]) -> Iterator[dict[str, Samples]]:
    """Samples to fill; they become rows even where the body fails half-way."""
    samples: dict[str, Samples] = {}
    try:
        yield samples
    finally:
        add(figures, samples)


async def _peer(lab: Lab, say: Say) -> Peer | None:
    try:
        tree = await asyncio.to_thread(libvirt.fetch, lambda text, _: say(text))
        peer = await Peer.start(lab, tree, NODES)
    except VeeryError as error:
        say(f"peers: without libvirt: {error.message}")
        return None
    say(f"peers: libvirt {libvirt.version(tree)}")
    return peer


# ---- one domain each


async def _one(stage: Stage, samples: dict[str, Samples], *, rounds: int, memory: int, warm: bool) -> None:
    async with _field(stage, "one", count=1, memory=memory) as (hand, virsh, veery):
        kinds = [
            _alone("bare", hand, "hand0"),
            _alone("bare TLS", hand, "hand0", "TLS"),
            *_virsh_kinds(virsh),
            _alone("veery --no-tls", veery, "veery0", "--no-tls"),
            _alone("veery", veery, "veery0"),
        ]
        await asyncio.sleep(SETTLED if warm else 0.0)
        for kind in (*kinds, *reversed(kinds)) if warm else ():
            await _watched(stage.lab, kind, Samples(), ONE_INTERVAL)
        await _in_turns(stage, kinds, samples, rounds, ONE_INTERVAL)


def _alone(name: str, of: Contender, domain: str, *options: str) -> Kind:
    return Kind(name, of, lambda: of.move(domain, *options), (domain,))


def _virsh_kinds(virsh: ByVirsh | None) -> list[Kind]:
    if virsh is None:
        return []
    tuned = Kind(
        "virsh tuned",
        virsh,
        lambda: virsh.move("virsh0", *TUNED),
        ("virsh0",),
        lambda: virsh.limit("virsh0", TUNED_PAUSE),
    )
    return [_alone("virsh", virsh, "virsh0"), tuned]


def _one_rows(figures: Figures, samples: dict[str, Samples]) -> None:
    for name, each in samples.items():
        figures.add(f"one, {name}: whole command", "ms", each.whole)
        figures.add(f"one, {name}: inside", "ms", each.inside)
        figures.add(f"one, {name}: gap", "ms", each.gaps)
    figures.tell(ONE_RATIOS)


# ---- six at once


async def _six(stage: Stage, samples: dict[str, Samples], *, rounds: int, count: int) -> None:
    async with _field(stage, "six", count=count, memory=SMALL) as (hand, virsh, veery):
        kinds = [*_both("bare", hand)]
        if virsh is not None:
            kinds += [*_both("virsh", virsh), *_both("virsh tuned", virsh, *TUNED, prepare=_limits(virsh))]
        kinds += [
            Kind("veery --no-tls single", veery, lambda: _there_and_back(veery, "veery0", "--no-tls"), ("veery0",)),
            *_both("veery --no-tls", veery, "--no-tls")[:1],
            _order("veery --no-tls at once, no turns", veery, "--no-tls", "--no-turns"),
            _order("veery --no-tls at once", veery, "--no-tls"),
            _order("veery at once", veery),
        ]
        await asyncio.sleep(SETTLED)
        await _in_turns(stage, kinds, samples, rounds, SIX_INTERVAL)


def _both(
    name: str, of: Contender, *options: str, prepare: Callable[[], Awaitable[None]] | None = None
) -> tuple[Kind, Kind]:
    """One after the other, and all at once by as many commands."""

    async def serial() -> float:
        for domain in of.at:
            await of.move(domain, *options)
        return 0.0

    async def at_once() -> float:
        try:
            async with asyncio.TaskGroup() as group:
                for domain in of.at:
                    group.create_task(_as_task(of.move(domain, *options)))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return 0.0

    names = tuple(of.at)
    return Kind(f"{name} serial", of, serial, names, prepare), Kind(f"{name} at once", of, at_once, names, prepare)


async def _as_task(work: Awaitable[float]) -> None:
    await work


def _limits(virsh: ByVirsh) -> Callable[[], Awaitable[None]]:
    async def all_of_them() -> None:
        for domain in virsh.at:
            await virsh.limit(domain, TUNED_PAUSE)

    return all_of_them


def _order(name: str, veery: ByVeery, *options: str) -> Kind:
    async def evacuate() -> float:
        await veery.evacuate(*options)
        return 0.0

    return Kind(name, veery, evacuate, tuple(veery.at))


async def _there_and_back(veery: ByVeery, domain: str, *options: str) -> float:
    """A single move among as many domains; all are on one node again afterwards."""
    await veery.move(domain, *options)
    await asyncio.sleep(AFTER)
    await veery.move(domain, *options)
    return 0.0


def _six_rows(figures: Figures, samples: dict[str, Samples]) -> None:
    for name, each in samples.items():
        if "single" not in name:
            figures.add(f"six, {name}: wall", "ms", each.whole)
        figures.add(f"six, {name}: gap", "ms", each.gaps)
        figures.add(f"six, {name}: worst gap of a round", "ms", each.worst)
    figures.tell(SIX_RATIOS)


# ---- writers


async def _writers(stage: Stage, samples: dict[str, Samples], *, rounds: int, memory: int) -> None:
    """Every move has a domain of its own, freshly booted: no writer disturbs another."""
    place = stage.folder / "writers"
    place.mkdir()
    ramdisk = await asyncio.to_thread(writers.initramfs, stage.kernel, place / "initramfs")
    names = [*(("virsh",) if stage.peer else ()), "veery balanced", "veery must-finish"]
    for number in range(rounds):
        for rate, words in RATES.items():
            text = writers.domain_file(
                stage.kernel, ramdisk, name=WRITER, address=ADDRESS, memory=memory, words=f"{WRITES} {words}"
            )
            for name in names if number % 2 == 0 else reversed(names):
                into = samples.setdefault(f"{rate}, {name}", Samples())
                peer = stage.peer if name == "virsh" else None
                of: Contender = ByVirsh(peer, place) if peer else ByVeery(stage.lab, place)
                async with contextlib.AsyncExitStack() as stack:
                    stack.push_async_callback(of.end)
                    await of.boot(WRITER, text, ADDRESS)
                    into.rate.append(await _writes(stage.lab, of))
                    await _write(stage.lab, of, name, into)
                said = f"{into.whole[-1] / 1e3:.1f} s{'' if into.ended[-1] else ', aborted'}"
                stage.say(
                    f"{number + 1:>3} writer {rate}, {name}: {said}, gap {into.worst[-1]:.0f}, "
                    f"wrote {into.rate[-1]:.0f} MiB/s"
                )


async def _write(lab: Lab, of: Contender, name: str, into: Samples) -> None:
    over = True

    async def attempt() -> float:
        nonlocal over
        if isinstance(of, ByVirsh):
            over = await of.attempt(WRITER, "--bandwidth", str(CAP), patience=PATIENCE)
            return 0.0
        return await of.move(WRITER, "--rate", f"{CAP}M", "--policy", name.removeprefix("veery "))

    await _watched(lab, Kind(name, of, attempt, (WRITER,)), into, ONE_INTERVAL)
    into.ended.append(float(over))


async def _writes(lab: Lab, of: Contender) -> float:
    """Return when the writer has gone over its memory some times; the MiB a second that it wrote, by its own clock.
    Raises Failed after BOOT seconds."""
    pattern = f"virsh/log/{WRITER}.log" if isinstance(of, ByVirsh) else "run/domains/*/console.log"
    ends = time.monotonic() + BOOT
    while time.monotonic() < ends:
        await asyncio.sleep(0.2)
        for log in lab.plan.home(NODES[0]).glob(pattern):
            times = [float(each) for each in _WRITTEN.findall(log.read_text(errors="replace"))]
            if len(times) > PASSES:
                return SET * PASSES / (times[PASSES] - times[0])
    raise Failed(f"{WRITER} has not written its memory after {BOOT:g} s", hint="is the machine busy?")


def _writer_rows(figures: Figures, samples: dict[str, Samples]) -> None:
    for name, each in samples.items():
        figures.add(f"writer {name}: whole command", "ms", each.whole)
        figures.add(f"writer {name}: gap", "ms", each.gaps)
        figures.add(f"writer {name}: ended", "of 1", each.ended)
        figures.add(f"writer {name}: wrote", "MiB/s", each.rate)
    for name, row in WRITER_RATIOS.items():
        figures.hold(name, row, WRITER_AIM)


# ---- all of them


@contextlib.asynccontextmanager
async def _field(
    stage: Stage, name: str, *, count: int, memory: int
) -> AsyncIterator[tuple[ByHand, ByVirsh | None, ByVeery]]:
    """`count` domains of each contender, booted and answering on the first node; gone afterwards."""
    folder = stage.folder / name
    folder.mkdir()
    lab, peer = stage.lab, stage.peer
    hand, veery = ByHand(lab, folder), ByVeery(lab, folder)
    virsh = ByVirsh(peer, folder) if peer else None
    everyone: list[Contender] = [hand, veery, *([virsh] if virsh else [])]
    names = ("hand", "veery", "virsh")
    async with contenders.ended(lab, everyone):
        for number, (each, prefix) in enumerate(zip(everyone, names, strict=False)):
            await contenders.boot(
                lab,
                each,
                prefix,
                count=count,
                first=130 + 20 * number,
                file=lambda domain: guests.domain_file(stage.kernel, domain, memory=memory),
            )
        yield hand, virsh, veery


async def _in_turns(
    stage: Stage, kinds: Sequence[Kind], samples: dict[str, Samples], rounds: int, interval: float
) -> None:
    """Each kind once a round, the other way round in every other round."""
    for kind in kinds:
        samples[kind.name] = Samples()
    for number in range(rounds):
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            into = samples[kind.name]
            await _watched(stage.lab, kind, into, interval)
            stage.say(f"{number + 1:>3} {kind.name:<32} {into.whole[-1]:>6.0f}  gap {into.worst[-1]:>5.0f}")


async def _gaps(probe: Probe, kind: Kind) -> list[float]:
    """The gap of each domain that moved, once all of them answer. Raises Failed when one is lost."""
    ends = time.monotonic() + LOST
    while True:
        await asyncio.sleep(AFTER)
        readings = await probe.read()
        silent, gaps = "", []
        for name in kind.names:
            reading = readings[kind.of.addresses[name]]
            if reading.gap_ms is None or reading.age_ms is None or reading.age_ms > 400:
                silent = name
            else:
                gaps.append(reading.gap_ms)
        if not silent:
            return gaps
        if time.monotonic() > ends:
            raise Failed(f"{kind.name}: {silent} does not answer after its move", hint="look at its console")


async def _watched(lab: Lab, kind: Kind, into: Samples, interval: float) -> None:
    """Move once under a probe of the domains that move. Raises Failed when one is lost."""
    if kind.prepare is not None:
        await kind.prepare()
    addresses = [kind.of.addresses[name] for name in kind.names]
    probe = await Probe.start(lambda argv: lab.enter(CLIENT, argv), addresses, interval=interval)
    try:
        await probe.answered(deadline=BOOT)
        await probe.mark()
        await asyncio.sleep(BEFORE)
        begun = time.perf_counter()
        inside = await kind.work()
        whole = (time.perf_counter() - begun) * 1e3
        gaps = await _gaps(probe, kind)
    finally:
        await probe.stop()
    into.whole.append(whole)
    into.gaps += gaps
    into.worst.append(max(gaps))
    if inside:
        into.inside.append(inside)
