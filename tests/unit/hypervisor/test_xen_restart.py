"""A domain whose guest restarts, on the scripted xl: what may happen while its new run is being made."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import scripted_xl
from veery.config.settings import Xen
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.hypervisor.xen.disks import NoInitiator
from veery.hypervisor.xen.driver import XenDriver
from veery.hypervisor.xen.registry import Domain
from veery.hypervisor.xen.statedir import Build, Home, Record, Stage
from veery.model.domain import DomainSpec, DomainType, OnEvent
from veery.model.move import MoveSettings
from veery.model.volume import Attachments

UUID = "11111111-2222-4333-8444-555555555555"
PATIENCE_S = 60.0
HELD_XL = """\
#!/bin/sh
if [ -e {brake}.$1 ]; then
    touch {reached}.$1
    while [ -e {brake}.$1 ]; do sleep 0.05; done
fi
exec {xl} "$@"
"""


@dataclass
class Host:
    """A scripted host with one domain; its `xl VERB` waits while the file `brake`.VERB exists."""

    driver: XenDriver
    state: Path
    brake: Path
    reached: Path

    def rows(self) -> list[Path]:
        """The domains that Xen has."""
        return list(self.state.glob("[0-9]*.json"))

    async def hold(self, verb: str) -> None:
        """Let `xl VERB` wait; return when one waits."""
        self.brake.with_suffix(f".{verb}").touch()
        await until(self.reached.with_suffix(f".{verb}").exists)

    def release(self) -> None:
        """Let all go on."""
        for path in self.brake.parent.glob(f"{self.brake.name}.*"):
            path.unlink()

    async def reboot(self) -> None:
        """The guest restarts; return when Xen has it as ended."""
        (row,) = self.rows()
        Path(json.loads(row.read_text())["tty"]).write_text("reboot -f\n")
        await until(lambda: not self.rows() or json.loads(row.read_text()).get("reason") is not None)

    async def restart(self) -> None:
        """The guest restarts; return when its new run is being made."""
        self.brake.with_suffix(".create").touch()
        await self.reboot()
        await until(self.reached.with_suffix(".create").exists)

    async def restarted(self) -> None:
        """Return when its second run is here, and no other."""
        async with asyncio.timeout(PATIENCE_S):
            while [row.domid for row in await self.driver.list()] != [2]:
                await asyncio.sleep(0.05)
        assert [path.stem for path in self.rows()] == ["2"]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not check():
            await asyncio.sleep(0.02)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    scripted_xl.install(tmp_path / "bin")
    brake, reached, held = (tmp_path / name for name in ("brake", "reached", "xl"))
    held.write_text(HELD_XL.format(brake=brake, reached=reached, xl=tmp_path / "bin/xl"))
    held.chmod(0o755)
    settings = Xen(xl=str(held), xenstore=str(tmp_path / "bin"))
    driver = XenDriver(tmp_path / "run", None, settings, NoInitiator(), RealClock())
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    spec = DomainSpec(
        name="web", uuid=UUID, type=DomainType.PV, kernel=str(kernel), memory=16, on_reboot=OnEvent.RESTART
    )
    await driver.open()
    await driver.start(spec, Attachments())
    made = Host(driver, tmp_path / "bin/state", brake, reached)
    yield made
    made.release()
    await driver.destroy(UUID)
    await driver.close()


async def test_one_that_is_destroyed_meanwhile_has_no_new_run(host: Host) -> None:
    """`destroy` returns when no run of it is left, and its name is given to others then."""
    await host.restart()
    destroying = asyncio.create_task(host.driver.destroy(UUID))
    await asyncio.sleep(0.3)
    assert not destroying.done()
    host.release()
    await asyncio.wait_for(destroying, PATIENCE_S)
    assert host.rows() == []
    await asyncio.sleep(0.5)
    assert host.rows() == []
    assert await host.driver.list() == ()


async def test_it_restarts(host: Host) -> None:
    await host.restart()
    host.release()
    await host.restarted()


async def test_a_move_that_finds_a_restart_leaves_it_alone(host: Host) -> None:
    """The guest restarts, and the move that begins is the first to ask Xen: the new run is not lost."""
    await host.hold("list")
    await host.reboot()
    here, there = socket.socketpair()
    with here, there:
        copy = host.driver.send(UUID, here, MoveSettings(tls=False), lambda _: None, peer="b")
        moving = asyncio.create_task(copy)
        await asyncio.sleep(0.2)  # it has found the domain free, and waits for Xen's list
        host.release()
        with pytest.raises(Refused, match="just starting"):
            await asyncio.wait_for(moving, PATIENCE_S)
    await host.restarted()


def test_a_second_end_of_a_move_leaves_a_restart_alone(tmp_path: Path) -> None:
    """Two callers let it run on after a move that failed; between them its guest restarts."""
    spec = DomainSpec(name="web", uuid=UUID, memory=16)
    build = Build(xen="4.17.5", type=DomainType.PV, memory=16, started=0.0)
    record = Record(domid=1, spec=spec, attachments=Attachments(), build=build, stage=Stage.SENDING)
    home = Home(tmp_path / UUID)
    home.make(record, "", b"")
    domain = Domain(home, record)
    domain.leave(Stage.SENDING)
    assert domain.record.stage is Stage.RUNNING
    domain.update(stage=Stage.REBOOTING)
    domain.leave(Stage.SENDING)
    assert domain.record.stage is Stage.REBOOTING
