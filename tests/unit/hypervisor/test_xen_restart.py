"""A domain whose guest restarts, on the scripted xl: what may happen while its new run is being made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import scripted_xl
from veery.config.settings import Xen
from veery.host.clock import RealClock
from veery.hypervisor.xen.disks import NoInitiator
from veery.hypervisor.xen.driver import XenDriver
from veery.hypervisor.xen.registry import Domain
from veery.hypervisor.xen.statedir import Build, Home, Record, Stage
from veery.model.domain import DomainSpec, DomainType, OnEvent
from veery.model.volume import Attachments

UUID = "11111111-2222-4333-8444-555555555555"
PATIENCE_S = 60.0
HELD_XL = """\
#!/bin/sh
if [ "$1" = create ] && [ -e {brake} ]; then
    touch {reached}
    while [ -e {brake} ]; do sleep 0.05; done
fi
exec {xl} "$@"
"""


@dataclass
class Host:
    """A scripted host with one domain; its `xl create` waits while `brake` exists."""

    driver: XenDriver
    state: Path
    brake: Path
    reached: Path

    def rows(self) -> list[Path]:
        """The domains that Xen has."""
        return list(self.state.glob("[0-9]*.json"))

    async def restart(self) -> None:
        """The guest restarts; return when its new run is being made."""
        self.brake.touch()
        (row,) = self.rows()
        Path(json.loads(row.read_text())["tty"]).write_text("reboot -f\n")
        await until(self.reached.exists)


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
    yield Host(driver, tmp_path / "bin/state", brake, reached)
    brake.unlink(missing_ok=True)
    await driver.destroy(UUID)
    await driver.close()


async def test_one_that_is_destroyed_meanwhile_has_no_new_run(host: Host) -> None:
    """`destroy` returns when no run of it is left, and its name is given to others then."""
    await host.restart()
    destroying = asyncio.create_task(host.driver.destroy(UUID))
    await asyncio.sleep(0.3)
    assert not destroying.done()
    host.brake.unlink()
    await asyncio.wait_for(destroying, PATIENCE_S)
    assert host.rows() == []
    await asyncio.sleep(0.5)
    assert host.rows() == []
    assert await host.driver.list() == ()


async def test_it_restarts(host: Host) -> None:
    await host.restart()
    host.brake.unlink()
    async with asyncio.timeout(PATIENCE_S):
        while [row.domid for row in await host.driver.list()] != [2]:
            await asyncio.sleep(0.05)
    assert [path.stem for path in host.rows()] == ["2"]


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
