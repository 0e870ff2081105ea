"""mem-set, mem-max, vcpu-set, vcpu-pin and sched-*: the domain gets them, its record keeps them, and they are given
again where the domain restarts or has arrived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import scripted_xl
from veery.cluster import owner as owners
from veery.cluster.keys import DOMAINS
from veery.cluster.memory import MemoryStore
from veery.config.adjust import adjusted
from veery.config.settings import Xen
from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.hypervisor.base import Driver
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.hypervisor.xen.adjusting import orders
from veery.hypervisor.xen.disks import NoInitiator
from veery.hypervisor.xen.driver import XenDriver
from veery.migrate.base import MoveContext
from veery.migrate.journal import Journal
from veery.migrate.phases import Hold
from veery.model.cluster import DomainRecord
from veery.model.domain import Adjustment, DomainSpec
from veery.model.node import Node, Role
from veery.model.volume import Attachments
from veery.node.devices import Devices
from veery.node.domains import Domains

UUID = "11111111-2222-4333-8444-555555555555"


class NoDevices:
    """A node without disks and taps."""

    async def attach(self, spec: DomainSpec) -> Attachments:
        return Attachments()

    async def detach(self, attachments: Attachments) -> None:
        """Nothing to take away."""

    def taken(self, attachments: Attachments) -> None:
        """Nothing to note."""


@dataclass
class Stage:
    """One node with the domain `web`; `folder` is the driver's."""

    store: MemoryStore
    driver: Driver
    domains: Domains
    devices: Devices
    folder: Path

    async def record(self) -> DomainSpec:
        found = await DOMAINS.get(self.store, "web")
        assert found is not None
        return found.spec

    def xen(self) -> dict[str, Any]:
        """The domain as the scripted host has it."""
        (path,) = (self.folder / "bin/state").glob("[0-9]*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def xen_driver(folder: Path) -> XenDriver:
    settings = Xen(xl=str(folder / "bin/xl"), xenstore=str(folder / "bin"))
    return XenDriver(folder, None, settings, NoInitiator(), RealClock())


async def stage(driver: Driver, folder: Path) -> Stage:
    (folder / "vmlinuz").touch()
    clock, nowhere = RealClock(), NoDevices()
    store = MemoryStore(clock)
    context = MoveContext(
        node="a",
        store=store,
        driver=driver,
        attacher=nowhere,
        journal=Journal(folder / "journal"),
        clock=clock,
        hold=Hold(folder / "hold"),
        client_tls=None,
    )
    resting = SimpleNamespace(busy=lambda name, arriving=False: "", arriving=lambda name: None)
    node = Node(name="a", address="127.0.0.1", roles=(Role.HYPERVISOR,))
    domains = Domains(node, context, nowhere, SimpleNamespace(), moves=resting, receiver=resting, scout=None)
    spec = DomainSpec(name="web", uuid=UUID, kernel=str(folder / "vmlinuz"), memory=64, maxmem=96, maxvcpus=2)
    await driver.open()
    await owners.claim(store, "web", "a", "boot", DomainRecord(spec=spec, home="a"))
    await driver.start(spec, Attachments())
    return Stage(store, driver, domains, Devices(domains, driver, nowhere), folder)


@pytest.fixture
async def xen(tmp_path: Path) -> AsyncIterator[Stage]:
    scripted_xl.install(tmp_path / "bin")
    made = await stage(xen_driver(tmp_path), tmp_path)
    yield made
    for reading in await made.driver.list():
        await made.driver.destroy(reading.uuid)
    await made.driver.close()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Stage]:
    made = await stage(FakeDriver("a", World(), RealClock()), tmp_path)
    yield made
    await made.driver.close()


async def test_xen_gets_them_and_the_record_keeps_them(xen: Stage) -> None:
    for change in (
        Adjustment(maxmem=128),
        Adjustment(vcpus=2),
        Adjustment(hard="0-1"),
        Adjustment(vcpu=1, hard="2", soft="3"),
        Adjustment(weight=512),
        Adjustment(cap=50),
    ):
        await xen.devices.adjust("web", change)
    await xen.devices.set_memory("web", 112)
    made = xen.xen()
    assert (made["memory"], made["maxmem"], made["online"]) == (112, 128, 2)
    assert made["adjusted"] == [
        "vcpu-pin all 0-1 all",
        "vcpu-pin 1 2 3",
        "sched-credit2 -w 512",
        "sched-credit2 -c 50",
    ]
    record = await xen.record()
    assert (record.memory, record.maxmem, record.vcpus, record.maxvcpus) == (112, 128, 2, 2)
    assert [(key, value.replace("'", '"')) for key, value in record.xl] == [
        ("cpus", '[ "0-1", "2" ]'),
        ("cpus_soft", '[ "all", "3" ]'),
        ("cpu_weight", "512"),
        ("cap", "50"),
    ]
    found = await DOMAINS.get(xen.store, "web")
    assert found is not None
    assert found.home == "a"


async def test_a_restart_gives_them_again(xen: Stage) -> None:
    await xen.devices.adjust("web", Adjustment(vcpu=0, hard="0", weight=512))
    await xen.devices.adjust("web", Adjustment(maxmem=160, vcpus=2))
    await xen.devices.set_memory("web", 80)
    await xen.domains.restart(await xen.domains.find("web"), await xen.record())
    told = (xen.folder / "xen" / UUID / "domain.cfg").read_text()
    for line in ("memory = 80", "maxmem = 160", "vcpus = 2", "maxvcpus = 2", "cpu_weight = 512"):
        assert line in told.splitlines()
    (pins,) = (line for line in told.splitlines() if line.startswith("cpus ="))
    assert pins.replace("'", '"') == 'cpus = [ "0", "all" ]'
    made = xen.xen()
    assert (made["memory"], made["maxmem"]) == (80, 160)


async def test_one_that_arrived_gets_them_though_the_daemon_restarted(xen: Stage) -> None:
    """xl brings no affinities along. A processor that is not here is passed over; the domain runs."""
    await xen.devices.adjust("web", Adjustment(hard="1", weight=512))
    await xen.driver.close()
    path = xen.folder / "xen" / UUID / "record.json"
    record = json.loads(path.read_text())
    assert record["arrived"] is False
    record["spec"]["xl"] = [["cpus", '[ "0", "7" ]'], ["cap", "20"]]
    path.write_text(json.dumps({**record, "arrived": True}))
    (state,) = (xen.folder / "bin/state").glob("[0-9]*.json")
    state.write_text(json.dumps({**xen.xen(), "adjusted": []}))
    xen.driver = xen_driver(xen.folder)
    await xen.driver.open()
    async with asyncio.timeout(60):
        while json.loads(path.read_text())["arrived"]:
            await asyncio.sleep(0.05)
    assert xen.xen()["adjusted"] == ["vcpu-pin 0 0 all", "sched-credit2 -c 20"]
    assert [reading.name for reading in await xen.driver.list()] == ["web"]


async def test_a_start_on_a_smaller_host_does_not_fail_for_its_pins(xen: Stage) -> None:
    """The scripted host has one processor; libxl starts no domain that may run on none of its host's."""
    reading, spec = await xen.domains.find("web"), await xen.record()
    pinned = replace(spec, xl=(("cpus", '[ "0", "5-6" ]'), ("cpus_soft", '"3"')))
    await xen.domains.restart(reading, pinned)
    told = (xen.folder / "xen" / UUID / "domain.cfg").read_text().replace("'", '"').splitlines()
    assert 'cpus = [ "0", "all" ]' in told
    assert 'cpus_soft = "all"' in told
    assert (await xen.domains.spec("web")).xl == pinned.xl  # a larger host gets the pins again


async def test_what_xl_refuses_is_not_kept(xen: Stage) -> None:
    with pytest.raises(Failed, match="processor 7 is not there"):
        await xen.devices.adjust("web", Adjustment(hard="7"))
    assert (await xen.record()).xl == ()
    assert (await xen.domains.spec("web")).xl == ()


async def test_qemu_refuses_with_the_way_out_and_keeps_the_memory(fake: Stage) -> None:
    for change, way in (
        (Adjustment(maxmem=128), "write maxmem = 128 into its file; then veery shutdown -w web"),
        (Adjustment(vcpus=2), "write vcpus = 2 into its file; then veery shutdown -w web"),
        (Adjustment(hard="0"), "taskset"),
        (Adjustment(weight=1), "CPUWeight"),
    ):
        with pytest.raises(Refused) as told:
            await fake.devices.adjust("web", change)
        assert way in told.value.hint
    await fake.devices.set_memory("web", 80)
    record = await fake.record()
    assert (record.memory, record.maxmem, record.vcpus) == (80, 96, 1)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (Adjustment(maxmem=63), "has 64 MiB", "veery mem-set web 63"),
        (Adjustment(vcpus=3), "1 to 2 processors", "maxvcpus = 3"),
        (Adjustment(vcpus=0), "1 to 2 processors", "veery vcpu-set web 1"),
        (Adjustment(vcpu=2, hard="0"), "no virtual processor 2", "veery vcpu-list web"),
        (Adjustment(hard="3-1"), "ends before it begins", "cpus"),
        (Adjustment(hard="0'\nmemory=1"), "is not a processor", "cpus"),
        (Adjustment(weight=0), "cpu_weight must be from 1", ""),
        (Adjustment(cap=201), "cap must be from 0 to 200", ""),
    ],
)
def test_what_no_domain_can_have(change: Adjustment, message: str, hint: str) -> None:
    spec = DomainSpec(name="web", uuid=UUID, kernel="/k", memory=64, maxvcpus=2)
    with pytest.raises(Refused, match=message) as told:
        adjusted(spec, change)
    assert hint in told.value.hint


def test_the_scheduler_of_the_host_is_told() -> None:
    spec = DomainSpec(name="web", uuid=UUID, kernel="/k", xl=(("cpu_weight", "0x100"),))
    assert orders(None, spec, 3, "credit") == (("sched-credit", "-d", "3", "-w", "256"),)
    assert orders(None, spec, 3, "credit2") == (("sched-credit2", "-d", "3", "-w", "256"),)
    assert orders(None, DomainSpec(name="web", kernel="/k"), 3, "credit2") == ()
