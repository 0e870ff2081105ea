"""A guest under Xen that ends or reboots by itself while it is moved, in each phase, on the scripted xl."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cared_nodes import Cared, cared_nodes
from two_nodes import make_certificates

import scripted_xl
from veery.config.settings import Xen
from veery.host.clock import Clock
from veery.hypervisor.fakeworld import World
from veery.hypervisor.xen.disks import NoInitiator
from veery.hypervisor.xen.driver import XenDriver
from veery.model.domain import DomainSpec, DomainState, DomainType, OnEvent
from veery.model.move import MoveSettings, MoveState, Phase

UUID = "11111111-2222-4333-8444-555555555555"
RUNS_AT_SOURCE = (Phase.BEGIN, Phase.PREPARE, Phase.COPY)
POWEROFF, CRASH, REBOOT = "poweroff -f", "echo c > /proc/sysrq-trigger", "reboot -f"
PLAIN = MoveSettings(tls=False)
UP = {DomainState.RUNNING, DomainState.BLOCKED}
PATIENCE_S = 120.0


@dataclass
class Hosts:
    """Two scripted Xen hosts, `a` and `b`, under the nodes of `cared`."""

    folder: Path
    cared: Cared

    def rows(self, node: str) -> list[dict[str, object]]:
        """What the Xen of `node` has."""
        return [json.loads(path.read_text()) for path in (self.folder / node / "bin/state").glob("[0-9]*.json")]

    async def tell(self, node: str, command: str) -> None:
        """Type `command` into the guest on `node`; where it stands, it does it as soon as it runs."""
        (row,) = self.rows(node)
        Path(str(row["tty"])).write_text(f"{command}\n")

    def noted(self, what: str) -> list[str]:
        """The nodes whose drivers noted `what` ("started", "restarted") of the domain, an entry each time."""
        logs = {node: self.folder / node / "xen.log" for node in ("a", "b")}
        return [node for node, log in logs.items() if log.exists() for _ in range(log.read_text().count(f" {what}"))]

    async def runs(self, where: str) -> None:
        """Return once the domain runs on `where` alone, which owns it, and nothing of the move is left."""
        pair = self.cared.pair
        here, there = (pair.a, pair.b) if where == "a" else (pair.b, pair.a)

        async def alone() -> bool:
            rows = await here.driver.list()
            return [row.state in UP for row in rows] == [True] and await there.driver.list() == ()

        await becomes(alone)
        await pair.settled()
        assert await pair.owner() == where

    async def gone(self) -> None:
        """Return once neither host has it, and its name is free."""

        async def nothing() -> bool:
            return not self.rows("a") and not self.rows("b") and await self.cared.pair.owner() == ""

        await becomes(nothing)
        await self.cared.pair.settled()


async def becomes(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await look():
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def hosts(folder: Path, certificates: Path, **changes: OnEvent) -> AsyncIterator[Hosts]:
    """Both hosts up, the domain running on `a`."""
    drivers: list[XenDriver] = []

    def make(node: str, world: World, clock: Clock) -> XenDriver:
        run = folder / node
        scripted_xl.install(run / "bin")
        drivers.append(
            XenDriver(run, None, Xen(xl=str(run / "bin/xl"), xenstore=str(run / "bin")), NoInitiator(), clock)
        )
        return drivers[-1]

    kernel = folder / "vmlinuz"
    kernel.touch()
    spec = DomainSpec(name="busybox", uuid=UUID, type=DomainType.PV, kernel=str(kernel), memory=16, **changes)
    async with cared_nodes(folder, certificates, spec, make=make) as cared:
        try:
            yield Hosts(folder, cared)
        finally:
            for driver in drivers:
                for reading in await driver.list():
                    await driver.destroy(reading.uuid)
                await driver.close()


async def moved(made: Hosts, phase: Phase, command: str) -> MoveState:
    """Move the domain from `a` to `b`; its guest does `command` in `phase`. How the move ended."""
    pair = made.cared.pair
    pair.a.hold.mkdir(parents=True, exist_ok=True)
    brake = pair.a.hold / phase
    brake.touch()
    move = pair.a.moves.start(await pair.a.reading(), pair.b.node, PLAIN)

    async def held() -> bool:
        return any(line.phase is phase for line in pair.a.context.journal.open())

    await becomes(held)
    await made.tell("a" if phase in RUNS_AT_SOURCE else "b", command)
    if phase in RUNS_AT_SOURCE or phase is Phase.CONFIRM:
        await asyncio.sleep(0.3)  # it hears it before the move goes on; later would be right, too
    brake.unlink()
    async with asyncio.timeout(PATIENCE_S):
        return (await pair.a.moves.outcome(move)).state


def cells(*quick: tuple[Phase, str], commands: tuple[str, ...]) -> list[object]:
    """Every phase with each of `commands`; all but `quick` are the longer proof."""
    return [
        pytest.param(phase, command, marks=() if (phase, command) in quick else pytest.mark.slow)
        for phase in Phase
        for command in commands
    ]


ENDS = cells((Phase.COPY, CRASH), (Phase.COMMIT, POWEROFF), (Phase.CONFIRM, CRASH), commands=(POWEROFF, CRASH))
REBOOTS = cells((Phase.COPY, REBOOT), (Phase.FINISH, REBOOT), commands=(REBOOT,))


@pytest.mark.parametrize(("phase", "command"), ENDS)
async def test_an_end_is_answered_once_by_the_owner(
    tmp_path: Path, certificates: Path, phase: Phase, command: str
) -> None:
    async with hosts(tmp_path, certificates, on_poweroff=OnEvent.RESTART, on_crash=OnEvent.RESTART) as made:
        state = await moved(made, phase, command)
        where = "a" if phase in RUNS_AT_SOURCE else "b"
        assert state is (MoveState.FAILED if where == "a" else MoveState.DONE)

        async def answered() -> bool:
            return len(made.noted("started")) >= 2

        await becomes(answered)
        await made.runs(where)
        assert made.noted("started") == ["a", where]


@pytest.mark.parametrize(("phase", "command"), REBOOTS)
async def test_a_reboot_is_done_once_where_it_runs(
    tmp_path: Path, certificates: Path, phase: Phase, command: str
) -> None:
    """Xen begins the domain anew; the driver does that by itself, and no end is answered."""
    async with hosts(tmp_path, certificates) as made:
        state = await moved(made, phase, command)
        if phase not in RUNS_AT_SOURCE:
            assert state is MoveState.DONE
        where = "b" if state is MoveState.DONE else "a"

        async def booted() -> bool:
            return len(made.noted("restarted")) == 1

        await becomes(booted)
        await made.runs(where)
        assert made.noted("started") == ["a"]
        assert len(made.noted("restarted")) == 1


@pytest.mark.parametrize("phase", [Phase.COPY, pytest.param(Phase.COMMIT, marks=pytest.mark.slow)])
async def test_an_end_that_is_to_destroy_it(tmp_path: Path, certificates: Path, phase: Phase) -> None:
    async with hosts(tmp_path, certificates) as made:
        await moved(made, phase, POWEROFF)
        await made.gone()
        assert made.noted("started") == ["a"]
