"""Where the fault matrix plays: a domain that writes, a client that probes, and one move at a time, held in a phase."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extradisk import ExtraDisk
from proof import HYPERVISORS, SETTLE, START, Life, Proof
from strikes import small_state

from guest_parts import boot_domain
from veery.host.process import Process
from veery.host.run import Result
from veery.lab import faults
from veery.lab.guest import Guest
from veery.lab.members import Member
from veery.lab.plan import DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.model.move import Phase

DOMAIN = "judged"
END = 60.0  # a fault that lasts as long as the move does lasts no longer than this
SLOWLY = "12M"  # bytes a second: some seconds of COPY, in the midst of which the fault comes
SLOWER = "1M"  # longer than the guest needs for what it is told; the fault sets another rate then

HELD_BY_TARGET = frozenset({Phase.PREPARE})  # the offer has come, nothing is reserved yet
BEFORE_COMMIT = (Phase.BEGIN, Phase.PREPARE, Phase.COPY, Phase.LOADED, Phase.COMMIT)


@dataclass
class Move:
    """One move under way, and the fault that meets it."""

    lab: Lab
    source: str
    target: str
    phase: Phase
    task: asyncio.Task[Result]
    logs: dict[str, int]
    homes: set[Path]
    hold: Path | None = None
    disk: ExtraDisk | None = None
    said: list[Result] = field(default_factory=list)

    async def over(self, seconds: float) -> None:
        """Return when the order to move has ended, however it did; at the latest after `seconds`."""
        await asyncio.wait({self.task}, timeout=seconds)

    async def number(self) -> str:
        """The move's id."""
        moves = await self.lab.json(self.source, "moves", "--json")
        return next(str(move["id"]) for move in moves if move["state"] == "running")

    async def noticed(self) -> None:
        """Before COMMIT: return when the target has given up, which is within milliseconds of the end of its
        QEMU. What ends in those milliseconds ends too late: then the domain is the target's, and is booted there."""
        if self.phase not in (Phase.LOADED, Phase.COMMIT):
            return
        end = time.monotonic() + 20
        while b"not taken in" not in self.log(self.target) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def row(self, node: str) -> dict[str, Any]:
        """The domain's reading on `node`, {} where it is not there."""
        rows = (await asyncio.to_thread(self.lab.client(node, deadline=30).get, "/v1/domains"))["domains"]
        return next((row for row in rows if row["name"] == DOMAIN), {})

    def answers(self) -> list[str]:
        """The nodes whose daemons have answered an end of the domain's since the order to move, an entry each."""
        said = re.compile(rb"domain=%s end=\w+ answer=" % DOMAIN.encode())
        return [node for node in HYPERVISORS for _ in said.findall(self.log(node))]

    async def answered(self) -> None:
        """Return when an end of the domain's has been answered."""
        end = time.monotonic() + SETTLE
        while not self.answers():
            assert time.monotonic() < end, f"not within {SETTLE:g} s: the guest's end is answered"
            await asyncio.sleep(0.1)

    def log(self, node: str) -> bytes:
        """What the daemon of `node` has logged since the order to move."""
        with self.lab.log(node).open("rb") as log:
            log.seek(self.logs[node])
            return log.read()

    def release(self) -> None:
        """Let the phase go on."""
        if self.hold is not None:
            self.hold.unlink(missing_ok=True)

    async def reach(self, *, half_domain: bool) -> None:
        """Return when the phase has come; with `half_domain`, when the target's QEMU is there too."""
        if self.phase is Phase.COPY:
            await self._until(self._flows, "memory flows")
        elif self.phase is not Phase.PREPARE or not half_domain:
            await self._until(self._held, f"held in {self.phase}")
        if half_domain and self.phase is Phase.PREPARE:
            await self.half_domain()

    async def half_domain(self) -> None:
        """Return as soon as the target's QEMU starts."""
        await self._until(self._half, "the half domain's QEMU starts", pause=0.001)

    def qemu(self, node: str) -> Member:
        """The domain's QEMU on `node`."""
        return faults.find(self.lab, node, "qemu-system")[0]

    async def _until(self, seen: Callable[[], Awaitable[bool]], what: str, pause: float = 0.02) -> None:
        end = time.monotonic() + SETTLE
        while not await seen():
            assert not self.task.done(), f"it ended before: {what}: {self.task.result()}"
            assert time.monotonic() < end, f"not within {SETTLE:g} s: {what}"
            await asyncio.sleep(pause)

    async def _held(self) -> bool:
        node = self.target if self.phase in HELD_BY_TARGET else self.source
        return f"held in {self.phase}".encode() in self.log(node)

    async def _half(self) -> bool:
        pids = set((self.lab.plan.home(self.target) / "run/domains").glob("*/pid")) - self.homes
        return any(Process.load(path) for path in pids)

    async def _flows(self) -> bool:
        client = self.lab.client(self.source, deadline=10)
        rows = await asyncio.to_thread(client.get, "/v1/moves")
        moves = [row["id"] for row in rows if row["state"] == "running"]
        if not moves:
            return False
        samples = (await asyncio.to_thread(client.get, f"/v1/moves/{moves[0]}"))["samples"]
        return bool(samples) and samples[-1]["transferred"] > 2 << 20


Fault = Callable[[Move], AbstractAsyncContextManager[None]]
"""Strikes on entry; on exit what was broken is whole again."""


@dataclass
class Ended:
    """How a cell ended: where the domain runs, whether anew, the longest time without an answer outside, what the order
    to move said, and how long all of it took, there and back included."""

    where: str
    anew: bool
    gap_ms: float | None
    told: str
    seconds: float


class Scene:
    """One lab with the domain in it, for cell after cell."""

    def __init__(self, lab: Lab, guest: Guest, folder: Path) -> None:
        """`folder` is this run's own, for files and mounts."""
        self.lab, self._guest, self._folder = lab, guest, folder
        self._proof: Proof | None = None
        self._at: tuple[str, Life] | None = None
        self._small = False
        self._extras = 0

    # ---- coming and going

    async def ready(self) -> Proof:
        """The domain, up, writing and at rest; made anew where there is none, or where a cell went wrong."""
        if self._proof is not None and self._at is not None:
            return self._proof
        await self.mend()
        if self._proof is not None:
            await self._proof.clear()
            await self._proof.probe.stop()
        file = await boot_domain(self.lab, self._guest, DOMAIN, self._folder)
        file.write_text(file.read_text() + 'on_crash = "restart"\non_poweroff = "restart"\n')
        await self.lab.veery("test1", "destroy", DOMAIN)
        await self.lab.veery("test1", "create", str(file), deadline=120)
        async with Shell(self.lab.client("test1").address, DOMAIN) as shell:
            await shell.ready()
            for line in START.splitlines():
                await shell.run(f"echo '{line}' >>/etc/rc.d/rc.local")
            await shell.run("chmod +x /etc/rc.d/rc.local; /etc/rc.d/rc.local; sync")
        probe = await Probe.start(lambda words: self.lab.enter("client", words), [DOMAIN_ADDRESS], interval=0.02)
        self._proof = Proof(self.lab, DOMAIN, file, probe)
        await probe.answered(deadline=SETTLE)
        assert await self._proof.settled() == "test1"
        await self._proof.move("test2")  # what is made at the first move only is there now
        await self._proof.move("test1")
        self._at = "test1", await self._proof.alive("test1")
        await self._proof.learn()
        return self._proof

    async def stands(self, node: str) -> None:
        """It is on `node` now, at rest: the next one finds it there."""
        assert self._proof is not None
        self._at = node, await self._proof.alive(node, 0)

    async def mend(self) -> None:
        """Whatever a cell that went wrong has left: cables, stopped processes, daemons."""
        for node in (node.name for node in self.lab.plan.nodes):
            await faults.heal(self.lab, node)
            faults.thaw(self.lab, node)
            shutil.rmtree(self.lab.plan.home(node) / "run" / "hold", ignore_errors=True)
            (self.lab.plan.home(node) / "lib" / "filler").unlink(missing_ok=True)
            if not any(member.program == "veeryd" for member in self.lab.members(node)):
                await self.lab.start(node)
        await self.lab.healthy()

    async def close(self) -> None:
        """Nothing is left of the domain; it is checked first where all went well."""
        proof = self._proof
        if proof is None:
            return
        try:
            if self._at is not None:
                await proof.checked()
        finally:
            await proof.probe.stop()
            await self.mend()
            await proof.clear()

    async def disk(self) -> None:
        """The domain's disk is clean after all that it went through."""
        proof = await self.ready()
        assert self._at is not None
        node, self._at = self._at[0], None
        await proof.checked()
        self._at = node, await proof.alive(node)

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[tuple[Proof, str]]:
        """The domain and where it runs, for something else that moves it an even number of times."""
        proof = await self.ready()
        assert self._at is not None
        node, self._at = self._at[0], None
        yield proof, node
        self._at = node, await proof.alive(node)

    async def small_disks(self) -> None:
        """Give both hypervisors a filesystem of their own for their state, small enough to be filled."""
        if self._small:
            return
        for node in HYPERVISORS:
            await small_state(self.lab, node, self._folder)
        self._small = True

    # ---- one cell

    async def play(
        self,
        phase: Phase,
        fault: Fault,
        *,
        lasts: float,
        half_domain: bool,
        anew: frozenset[Phase],
        answers: int | None = None,
        with_disk: bool = False,
    ) -> Ended:
        """Move the domain, have `fault` strike in `phase`, let go, end the fault after `lasts` seconds or with the
        move; then everything must be as Proof says, there and back included. In the phases `anew` the domain's own
        QEMU may have been killed: it is booted again, by its policy. With `answers` the guest itself is the cause: the
        daemons give so many answers, and it boots once more in the phases `anew`. `with_disk`: a disk of its node alone
        goes along, without room for what the guest writes."""
        proof = await self.ready()
        assert self._at is not None
        before, begun = self._at[1], time.monotonic()
        await proof.probe.mark()
        async with self._extra(with_disk) as disk, self.moving(phase, half_domain, disk) as move:
            await move.reach(half_domain=half_domain)
            async with fault(move):
                move.release()
                if lasts < END:
                    await asyncio.sleep(lasts)
                else:
                    await move.over(END)
            told = await move.task
            if answers:
                await move.answered()
        where = await proof.settled()
        await proof.probe.answered(deadline=SETTLE)
        gap = (await proof.probe.read())[DOMAIN_ADDRESS].gap_ms
        life = await proof.alive(where, before.count)
        if life.boot != before.boot:
            assert phase in anew, "it was booted anew, and its QEMU was not killed"
            proof.boots += 1
        if answers is not None:
            assert life.boot != before.boot or phase not in anew, "the guest ended, and the same boot runs"
            assert move.answers() == [where] * answers, f"it runs on {where}; answered on {move.answers()}"
        other = next(node for node in HYPERVISORS if node != where)
        await proof.move(other)
        await proof.move(where)
        after = await proof.alive(where, life.count)
        assert after.boot == life.boot, "the retry booted it anew"
        self._at = where, after
        place, seconds = "source" if where == move.source else "target", time.monotonic() - begun
        return Ended(place, life.boot != before.boot, gap, _words(told), seconds)

    @contextlib.asynccontextmanager
    async def _extra(self, wanted: bool) -> AsyncIterator[ExtraDisk | None]:
        """The domain's second disk for the while, where it is `wanted`. Whoever uses it detaches it."""
        if not wanted:
            yield None
            return
        assert self._at is not None
        self._extras += 1
        disk = ExtraDisk(self.lab, DOMAIN, self._folder / f"extra-{self._extras}")
        try:
            await disk.attach(self._at[0])
            yield disk
        finally:
            await disk.clear()

    @contextlib.asynccontextmanager
    async def moving(
        self, phase: Phase, half_domain: bool = False, disk: ExtraDisk | None = None
    ) -> AsyncIterator[Move]:
        """A move of the domain, which is `ready`, on its way to `phase`, where it will stop (in COPY it goes slowly
        instead). Until `play` has seen that all is well again, it counts as spoilt."""
        assert self._at is not None
        source, self._at = self._at[0], None
        target = next(node for node in HYPERVISORS if node != source)
        words = ["migrate", "--live", *(disk.goes_to(target) if disk else ()), DOMAIN, target]
        hold = None
        if phase is Phase.COPY:
            words[1:1] = ["--rate", SLOWER if disk else SLOWLY]
        else:
            node = target if phase in HELD_BY_TARGET else source
            held = Phase.COPY if half_domain and phase is Phase.PREPARE else phase  # no further than this
            hold = self.lab.plan.home(source if held is Phase.COPY else node) / "run" / "hold" / held
            hold.parent.mkdir(exist_ok=True)
            hold.touch()
        logs = {node: self.lab.log(node).stat().st_size for node in HYPERVISORS}
        homes = set((self.lab.plan.home(target) / "run/domains").glob("*/pid"))
        task = asyncio.create_task(self.lab.veery(source, *words, deadline=240, check=False))
        move = Move(self.lab, source, target, phase, task, logs, homes, hold, disk)
        try:
            yield move
        finally:
            move.release()
            for node in HYPERVISORS:
                shutil.rmtree(self.lab.plan.home(node) / "run" / "hold", ignore_errors=True)
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def _words(told: Result) -> str:
    """What the user was told, in one line."""
    rows = (told.err.strip() or told.out.strip() or "no message").splitlines()
    errors = [row for row in rows if re.match(r"(veery|error): ", row)]
    return f"{told.code}: {(errors or rows)[-1]}"
