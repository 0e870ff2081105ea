"""The fault matrix as data: each row a fault, each column a phase of a move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from extradisk import REASON, WRITES, Standing
from scene import BEFORE_COMMIT, DOMAIN, END, Fault, Move

from veery.lab import faults
from veery.lab.faults import Direction
from veery.lab.members import Member, end
from veery.lab.shell import Shell
from veery.model.move import Phase

PHASES = tuple(Phase)
RUNS_AT_TARGET = (Phase.FINISH, Phase.CONFIRM)
NO_HALF = {Phase.BEGIN: "the target's QEMU is started in PREPARE"}


@dataclass(frozen=True)
class Row:
    """One fault. `lasts` seconds, END: until the order to move has ended. `half_domain`: it is about the target's QEMU.
    `source` and `target`: the phases in which the domain must end up there; in all others either will do. `anew`: the
    phases in which the domain's own QEMU is killed, or its guest reboots. `cannot`: phases that it cannot touch, and
    why. `answers`: how often a daemon answers an end of the domain's; None: that depends on the phase.
    `with_disk`: a disk of the node's own goes along, without room for what the guest writes."""

    name: str
    text: str
    fault: Fault
    lasts: float = END
    half_domain: bool = False
    source: tuple[Phase, ...] = ()
    target: tuple[Phase, ...] = RUNS_AT_TARGET
    anew: tuple[Phase, ...] = ()
    cannot: dict[Phase, str] = field(default_factory=dict)
    small_disk: bool = False
    answers: int | None = None
    with_disk: bool = False


# ---- the faults


@contextlib.asynccontextmanager
async def source_daemon_killed(move: Move) -> AsyncIterator[None]:
    await faults.kill(move.lab, move.source, "veeryd")
    yield
    await move.lab.start(move.source)


@contextlib.asynccontextmanager
async def target_daemon_killed(move: Move) -> AsyncIterator[None]:
    await faults.kill(move.lab, move.target, "veeryd")
    yield
    await move.lab.start(move.target)


@contextlib.asynccontextmanager
async def both_daemons_killed(move: Move) -> AsyncIterator[None]:
    for node in (move.source, move.target):
        await faults.kill(move.lab, node, "veeryd")
    yield
    await asyncio.gather(move.lab.start(move.source), move.lab.start(move.target))


@contextlib.asynccontextmanager
async def source_qemu_killed(move: Move) -> AsyncIterator[None]:
    await end([move.qemu(move.source)])
    yield
    if move.phase in BEFORE_COMMIT[:3]:
        await move.over(END)
        told = move.task.result()
        assert "ended on" in told.err and "runs on" not in told.err, told


@contextlib.asynccontextmanager
async def target_qemu_killed(move: Move) -> AsyncIterator[None]:
    await end([move.qemu(move.target)])
    await move.noticed()
    yield


@contextlib.asynccontextmanager
async def target_qemu_stopped(move: Move) -> AsyncIterator[None]:
    async with _stopped((move.qemu(move.target),)):
        yield


@contextlib.asynccontextmanager
async def target_daemon_stopped(move: Move) -> AsyncIterator[None]:
    async with _stopped(faults.find(move.lab, move.target, "veeryd")):
        yield


@contextlib.asynccontextmanager
async def link_cut(move: Move) -> AsyncIterator[None]:
    async with _cut(move, Direction.BOTH):
        yield


@contextlib.asynccontextmanager
async def link_cut_one_way(move: Move) -> AsyncIterator[None]:
    async with _cut(move, Direction.OUT):
        yield


@contextlib.asynccontextmanager
async def etcd_member_lost(move: Move) -> AsyncIterator[None]:
    async with _stopped(faults.find(move.lab, move.source, "etcd")):
        yield


@contextlib.asynccontextmanager
async def quorum_lost(move: Move) -> AsyncIterator[None]:
    both = (*faults.find(move.lab, "stor", "etcd"), *faults.find(move.lab, move.target, "etcd"))
    async with _stopped(both):
        await asyncio.sleep(0.2)  # until the store's last answer no longer counts as a sign that it answers
        yield


@contextlib.asynccontextmanager
async def tgtd_killed(move: Move) -> AsyncIterator[None]:
    """Its daemon goes with it, or it would start tgtd again at once."""
    await faults.kill(move.lab, "stor", "veeryd")
    await faults.kill(move.lab, "stor", "tgtd")
    yield
    await move.lab.start("stor")


@contextlib.asynccontextmanager
async def target_out_of_memory(move: Move) -> AsyncIterator[None]:
    if move.phase is Phase.BEGIN:  # nothing is there yet that could be short of it
        move.release()
        await move.half_domain()
    async with faults.starved(move.lab, move.target, move.qemu(move.target)):
        await move.noticed()
        yield


@contextlib.asynccontextmanager
async def target_disk_full(move: Move) -> AsyncIterator[None]:
    filler = faults.fill(move.lab.plan.home(move.target) / "lib")
    yield
    filler.unlink()


@contextlib.asynccontextmanager
async def cancelled(move: Move) -> AsyncIterator[None]:
    told = await move.lab.veery(move.source, "move", "cancel", await move.number(), check=False)
    if move.phase in (Phase.COMMIT, *RUNS_AT_TARGET):
        assert told.code == 1 and "past COMMIT" in told.err, told
    else:
        assert told.code == 0, told
        await move.over(END)
        assert move.task.result().code == 1 and "cancelled" in move.task.result().err, move.task.result()
    yield


@contextlib.asynccontextmanager
async def moved_a_second_time(move: Move) -> AsyncIterator[None]:
    second = await move.lab.veery(move.source, "migrate", DOMAIN, move.target, check=False)
    assert second.code == 1 and "is being moved" in second.err, second
    stopped = await move.lab.veery(move.source, "pause", DOMAIN, check=False)
    assert stopped.code == 1 and "is being moved" in stopped.err, stopped
    back = await move.lab.veery(move.target, "migrate", DOMAIN, move.source, check=False)
    assert back.code == 1, back
    yield
    await move.over(END)
    assert move.task.result().code == 0, move.task.result()


@contextlib.asynccontextmanager
async def _stopped(stopped: tuple[Member, ...]) -> AsyncIterator[None]:
    await faults.halt(stopped)
    try:
        yield
    finally:
        faults.go_on(stopped)


@contextlib.asynccontextmanager
async def _cut(move: Move, direction: Direction) -> AsyncIterator[None]:
    await faults.cut(move.lab, move.target, direction)
    try:
        yield
    finally:
        await faults.heal(move.lab, move.target)


# ---- a guest that ends by itself

STANDS = (Phase.LOADED, Phase.COMMIT, Phase.FINISH)  # the guest's processors stand still
ENDED = ("shutdown", "crashed")
TRY_INTERVAL_S = 15.0  # a console may lose a character of what is typed
QUIET = "ifconfig eth0 down; "
"""Comes before what shuts a guest's devices down. Debian's Linux 6.1.192 breaks the queues of virtio-net then, and
loops for ever in start_xmit if a packet is due. Linux's commit 0d0eff39ceb3 mends the same in virtnet_poll_cleantx."""


def guest(command: str) -> Fault:
    """The guest itself does `command`, which ends it, on the node where it runs. Where it stands still, the command
    waits on the console of the target's half domain, and is the first that it does there."""

    @contextlib.asynccontextmanager
    async def strike(move: Move) -> AsyncIterator[None]:
        node = move.source if move.phase in BEFORE_COMMIT[:3] else move.target
        before = (await move.row(node))["started"]
        if move.phase in STANDS:
            await _typed(move, node, command)
            yield
            await move.over(END)
            assert await _happened(move, node, before, command, at_once=False), f"it did not do {command}"
        else:
            assert await _happened(move, node, before, command), f"it did not do {command}"
            yield
            await move.over(END)
        if "reboot" in command:
            rows = [row for each in (move.source, move.target) if (row := await move.row(each))]
            assert all(row["started"] > before for row in rows), f"it booted before {before}: {rows}"

    return strike


async def _typed(move: Move, node: str, command: str) -> None:
    """Type a command into the guest's shell, which answers first where its processors run."""
    async with Shell(move.lab.client(node).address, DOMAIN) as shell:
        if move.phase not in STANDS:
            await shell.ready()
        await shell.type(command)


async def _happened(move: Move, node: str, before: float, command: str, *, at_once: bool = True) -> bool:
    """Whether the guest, which started at `before`, ends or reboots; it is told again now and then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + END
    while loop.time() < until:
        if at_once:
            await _typed(move, node, command)
        at_once, again = True, loop.time() + TRY_INTERVAL_S
        while loop.time() < again:
            row = await move.row(node)
            if move.answers() or row.get("state") in ENDED or row.get("started", before) != before:
                return True
            await asyncio.sleep(0.05)
    return False


# ---- a disk that is full


@contextlib.asynccontextmanager
async def disk_errors(move: Move) -> AsyncIterator[None]:
    """The guest writes more than its disk has room for, and QEMU stops it (io-error). Up to COPY that is the source's
    disk: the move goes on, and the target's, which has room, takes the write. Later it is the target's disk: the domain
    stands there until there is room, and somebody lets it go on."""
    assert move.disk is not None
    before_loaded = move.phase in BEFORE_COMMIT[:3]
    here, there = Standing(move.disk, move.source), Standing(move.disk, move.target)
    if before_loaded:
        await move.disk.make_room(move.target)
    await _typed(move, move.source if before_loaded else move.target, WRITES)
    if before_loaded:
        await _stands(move, here)
        await here.why(f"stopped by an error of its disk ({REASON})", "is being moved")
        if move.phase is Phase.COPY:
            await move.lab.veery(move.source, "move", "set", await move.number(), "--bandwidth", "0")
    yield
    await move.over(END)
    assert move.task.result().code == 0, move.task.result()
    assert (await move.row(move.source)) == {}, "a copy is left at the source"
    if not before_loaded:
        await _stands(move, there)
        await there.follows_the_hint()
    await move.disk.whole(move.target)
    await move.disk.detach(move.target)


async def _stands(move: Move, standing: Standing) -> None:
    """Return once its disk has stopped the domain; the guest is told again now and then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + END
    while loop.time() < until:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRY_INTERVAL_S):
                await standing.comes()
                return
        await _typed(move, standing.node, WRITES)
    await standing.comes()


# ---- the table

ROWS = (
    Row("source-daemon", "`kill -9` of the source's daemon", source_daemon_killed, source=BEFORE_COMMIT),
    Row("target-daemon", "`kill -9` of the target's daemon", target_daemon_killed, source=BEFORE_COMMIT[:3]),
    Row("both-daemons", "`kill -9` of both daemons", both_daemons_killed, source=BEFORE_COMMIT),
    Row(
        "source-qemu",
        "`kill -9` of the source's QEMU",
        source_qemu_killed,
        lasts=0,
        source=BEFORE_COMMIT[:3],
        anew=BEFORE_COMMIT,
    ),
    Row(
        "target-qemu",
        "`kill -9` of the target's QEMU",
        target_qemu_killed,
        lasts=0,
        half_domain=True,
        source=BEFORE_COMMIT,
        anew=RUNS_AT_TARGET,
        cannot=NO_HALF,
    ),
    Row(
        "target-qemu-stopped",
        "SIGSTOP of the target's QEMU, 20 s",
        target_qemu_stopped,
        lasts=20,
        half_domain=True,
        cannot=NO_HALF,
    ),
    Row("target-daemon-stopped", "SIGSTOP of the target's daemon, 20 s", target_daemon_stopped, lasts=20),
    Row("link-5s", "the target's link cut, 5 s", link_cut, lasts=5),
    Row("link", "the target's link cut until the move has ended", link_cut, source=BEFORE_COMMIT[:3]),
    Row("link-one-way", "the same, but only its sending is lost", link_cut_one_way, source=BEFORE_COMMIT[:3]),
    Row("etcd-member", "the source's etcd stopped until the move has ended", etcd_member_lost),
    Row("quorum", "two of three etcds stopped until the move has ended", quorum_lost, source=BEFORE_COMMIT),
    Row("tgtd", "tgtd and its daemon killed, 10 s", tgtd_killed, lasts=10),
    Row(
        "target-memory",
        "the target runs out of memory (OOM killer)",
        target_out_of_memory,
        lasts=0,
        half_domain=True,
        source=BEFORE_COMMIT,
        anew=RUNS_AT_TARGET,
    ),
    Row("target-disk", "the target's state disk full until the move has ended", target_disk_full, small_disk=True),
    Row(
        "cancel",
        "cancelled by its user",
        cancelled,
        source=BEFORE_COMMIT[:4],
        target=(Phase.COMMIT, *RUNS_AT_TARGET),
    ),
    *(
        Row(
            name,
            text,
            guest(command),
            source=BEFORE_COMMIT[:3],
            target=(*STANDS, Phase.CONFIRM),
            anew=PHASES,
            answers=1,
        )
        for name, text, command in (
            ("guest-poweroff", "the guest powers itself off (`on_poweroff=restart`)", f"{QUIET}poweroff -f"),
            ("guest-panic", "the guest's kernel panics (`on_crash=restart`)", "echo c >/proc/sysrq-trigger"),
        )
    ),
    Row(
        "guest-reboot",
        "the guest reboots (`on_reboot=restart`: in place)",
        guest(f"{QUIET}reboot -f"),
        target=PHASES,
        anew=PHASES,
        answers=0,
    ),
    Row(
        "guest-disk",
        "its disk has no room for a write (QEMU stops it: `io-error`)",
        disk_errors,
        target=PHASES,
        answers=0,
        with_disk=True,
    ),
    Row("second-move", "a second move of the same domain", moved_a_second_time, target=PHASES),
)
