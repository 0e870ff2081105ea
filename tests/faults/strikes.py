"""What the nemesis' plan says, done to a lab; and all of it mended again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemesis import CUTS, VOTERS, Kind, Strike
from stage import Stage

from veery.errors import Refused, VeeryError
from veery.host.files import write_atomic
from veery.host.process import Process
from veery.host.run import run
from veery.lab import faults, members
from veery.lab.faults import Net
from veery.lab.members import Member
from veery.lab.services import Lab
from veery.model.node import Role

STATE_SIZE = 384  # MiB: etcd alone makes two files of 64
PRELOAD = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
NETS = {Kind.CUT: Net.ALL, Kind.CUT_CLUSTER: Net.CLUSTER, Kind.CUT_STORAGE: Net.STORAGE}
SENSORS = ("pace = 0.1", "pace = 1.0")  # in a lab, and in the rounds: no round is about sensors, and they cost time
THAW_AFTER = 25.0  # seconds that a frozen node's domains are waited for; no quorum, no start elsewhere
GONE = 45.0  # seconds for all strikes of one round to be over


async def small_state(lab: Lab, node: str, folder: Path) -> None:
    """Give `node` a filesystem of its own for its state, small enough to be filled; its daemon starts anew."""
    lib, disk = lab.plan.home(node) / "lib", folder / f"state-{node}"
    if lib.is_symlink():
        return
    await members.end([each for each in lab.members(node) if each.program in ("veeryd", "etcd")])
    disk.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", f"size={STATE_SIZE}m,mode=700", "state", disk], deadline=20)
    await run(["cp", "-a", f"{lib}/.", disk], deadline=60)
    await asyncio.to_thread(shutil.rmtree, lib)
    lib.symlink_to(disk)
    await lab.start(node)
    await lab.healthy()


@dataclass
class Nemesis:
    """One lab under strikes. `story` tells what was done, in seconds since the round's begin."""

    stage: Stage
    folder: Path
    story: list[str] = field(default_factory=list)
    begun: float = 0.0

    @property
    def lab(self) -> Lab:
        """Where it strikes."""
        return self.stage.lab

    @property
    def nodes(self) -> tuple[str, ...]:
        """All of the lab."""
        return tuple(node.name for node in self.lab.plan.nodes)

    @property
    def hypervisors(self) -> tuple[str, ...]:
        """Those that run domains."""
        return tuple(node.name for node in self.lab.plan.nodes if Role.HYPERVISOR in node.roles)

    def tell(self, text: str) -> None:
        """One line more."""
        self.story.append(f"{time.monotonic() - self.begun:6.1f} s  {text}")

    # ---- daemons with a clock of their own
    def clock(self, node: str) -> Path:
        """The file that has the offset of `node`'s clock."""
        return self.folder / f"clock-{node}"

    def set_clock(self, node: str, offset: float) -> None:
        """Have the wall clock of `node`'s veeryd jump to `offset` seconds beside the machine's."""
        write_atomic(self.clock(node), f"{offset:+.0f}\n", mode=0o644)

    def spawn(self, node: str) -> Process:
        """Start veeryd on `node`, whose clock can be set, and do not wait for it."""
        script = Path(__file__).with_name("veeryd")
        argv = self.lab.enter(node, [sys.executable, script, "--settings", self.lab.plan.settings(node)])
        environ = {
            "LD_PRELOAD": PRELOAD,
            "FAKETIME_TIMESTAMP_FILE": str(self.clock(node)),
            "FAKETIME_CACHE_DURATION": "1",  # seconds; without a cache veeryd opens the file at each look at a clock
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "VEERY_CLOCK": "set",
        }
        return Process.spawn(argv, log_file=self.lab.log(node), env={**self.lab.environ(node), **environ})

    def daemon(self, node: str) -> tuple[Member, ...]:
        """The veeryd that lives on `node`, if one does."""
        return tuple(each for each in self.lab.members(node) if each.program == "veeryd")

    async def furnish(self) -> None:
        """Small state disks for both hypervisors that vote, and daemons whose clocks can be set."""
        for node in ("test1", "test2"):
            await small_state(self.lab, node, self.folder)
        for node in self.nodes:
            await members.end(self.daemon(node))
            self.set_clock(node, 0)
            self.rewrite(node, *SENSORS)
            await self.lab.ready(node, self.spawn(node))
        await self.lab.healthy()

    async def leave(self) -> None:
        """The lab is as it was: its daemons have the machine's clock."""
        await self.mend()
        for node in self.nodes:
            await members.end(self.daemon(node))
            self.rewrite(node, *reversed(SENSORS))
            await self.lab.start(node)
        await self.lab.healthy()

    def rewrite(self, node: str, old: str, new: str) -> None:
        """Change one line of `node`'s settings, for its next veeryd."""
        path = self.lab.plan.settings(node)
        path.write_text(path.read_text().replace(old, new))

    async def mend(self) -> None:
        """Whatever was done to the lab is undone."""
        for node in self.nodes:
            faults.thaw(self.lab, node)
        for node in self.nodes:
            await faults.heal(self.lab, node)
            (self.lab.plan.home(node) / "lib" / "filler").unlink(missing_ok=True)
            self.set_clock(node, 0)
            if not self.daemon(node):
                self.spawn(node)
        for node in self.nodes:
            await self.lab.ready(node)

    # ---- striking
    async def strike(self, strikes: Sequence[Strike]) -> tuple[Strike, ...]:
        """Have all of them strike, each at its time; return when all are over. What was really struck: the leader has
        its name then, and what found nothing to strike is left out."""
        named = [await self._named(strike) for strike in strikes]
        async with asyncio.timeout(max(each.at + each.lasts for each in strikes) + GONE), asyncio.TaskGroup() as tasks:
            works = [tasks.create_task(self._one(strike)) for strike in named]
        return tuple(strike for strike, work in zip(named, works, strict=True) if work.result())

    async def _named(self, strike: Strike) -> Strike:
        if strike.kind is not Kind.LEADER:
            return strike
        return replace(strike, node=(await self.stage.get("/v1/cluster"))["leader"] or "stor")

    async def _one(self, strike: Strike) -> bool:
        await asyncio.sleep(strike.at)
        try:
            async with self._fault(strike):
                self.tell(f"{strike.kind} {strike.node}")
                if strike.kind is Kind.FREEZE:
                    await self._elsewhere(strike)
                else:
                    await asyncio.sleep(strike.lasts)
            if strike.lasts:
                self.tell(f"{strike.kind} {strike.node} is over")
        except Refused as error:
            self.tell(f"{strike.kind} {strike.node}: nothing to strike ({error.message})")
            return False
        return True

    async def _elsewhere(self, strike: Strike) -> None:
        """Return when the node's domains run elsewhere, after `lasts` seconds at least, and not for ever."""
        begun = time.monotonic()
        asked = "stor"
        while time.monotonic() - begun < max(THAW_AFTER, strike.lasts):
            with contextlib.suppress(VeeryError):
                owners = [await self._owner(name, asked) for name in self.stage.ledgers]
                if strike.node not in owners and time.monotonic() - begun >= min(strike.lasts, 8.0):
                    return
            await asyncio.sleep(0.3)

    async def _owner(self, name: str, asked: str) -> str:
        told = await asyncio.to_thread(self.lab.client(asked, deadline=3).get, f"/v1/ha/{name}")
        return str(told["node"])

    def _fault(self, strike: Strike) -> contextlib.AbstractAsyncContextManager[None]:
        match strike.kind:
            case Kind.POWER:
                return self._power(strike)
            case Kind.CUT | Kind.CUT_CLUSTER | Kind.CUT_STORAGE:
                return self._cut(strike)
            case Kind.FREEZE:
                return self._frozen(strike)
            case Kind.MEMBER | Kind.QUORUM:
                return self._etcds(strike)
            case Kind.TARGET:
                return self._target(strike)
            case Kind.DAEMON | Kind.LEADER:
                return self._killed(strike)
            case Kind.QEMU:
                return self._qemu(strike)
            case Kind.DISK:
                return self._full(strike)
            case Kind.CLOCK:
                return self._stepped(strike)

    @contextlib.asynccontextmanager
    async def _power(self, strike: Strike) -> AsyncIterator[None]:
        await faults.power_off(self.lab, strike.node)
        yield
        await faults.heal(self.lab, strike.node)
        self.spawn(strike.node)

    @contextlib.asynccontextmanager
    async def _cut(self, strike: Strike) -> AsyncIterator[None]:
        assert strike.kind in CUTS
        await faults.cut(self.lab, strike.node, strike.direction, NETS[strike.kind])
        yield
        await faults.heal(self.lab, strike.node)

    @contextlib.asynccontextmanager
    async def _frozen(self, strike: Strike) -> AsyncIterator[None]:
        await faults.freeze(self.lab, strike.node)
        yield
        faults.thaw(self.lab, strike.node)

    @contextlib.asynccontextmanager
    async def _etcds(self, strike: Strike) -> AsyncIterator[None]:
        nodes = [strike.node] if strike.kind is Kind.MEMBER else [node for node in VOTERS if node != strike.node]
        stopped = [each for node in nodes for each in faults.find(self.lab, node, "etcd")]
        await faults.halt(stopped)
        yield
        faults.go_on(stopped)

    @contextlib.asynccontextmanager
    async def _target(self, strike: Strike) -> AsyncIterator[None]:
        if strike.lasts:
            await members.end(self.daemon("stor"))
        await faults.kill(self.lab, "stor", "tgtd")
        yield
        if strike.lasts and not self.daemon("stor"):
            self.spawn("stor")

    @contextlib.asynccontextmanager
    async def _killed(self, strike: Strike) -> AsyncIterator[None]:
        await faults.kill(self.lab, strike.node, "veeryd")
        yield
        if not self.daemon(strike.node):
            self.spawn(strike.node)

    @contextlib.asynccontextmanager
    async def _qemu(self, strike: Strike) -> AsyncIterator[None]:
        await members.end(faults.find(self.lab, strike.node, "qemu-system")[:1])
        yield

    @contextlib.asynccontextmanager
    async def _full(self, strike: Strike) -> AsyncIterator[None]:
        filler = await asyncio.to_thread(faults.fill, self.lab.plan.home(strike.node) / "lib")
        yield
        filler.unlink()

    @contextlib.asynccontextmanager
    async def _stepped(self, strike: Strike) -> AsyncIterator[None]:
        self.set_clock(strike.node, strike.step)
        yield
        self.set_clock(strike.node, 0)
