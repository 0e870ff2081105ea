"""A domain whose disks are files starts elsewhere only when its node is off: a fence at the storage does not keep that
node from files, wherever they lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from resting_node import PlainDevices, resting_domains

from veery.cluster import owner as owners
from veery.cluster.keys import ALIVE, DOMAINS, FENCES, HISTORIES, NODES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete
from veery.errors import Refused
from veery.ha import orders
from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.cluster import DomainRecord
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.ha import FenceRecord, FenceState, NodeHistory
from veery.model.node import Node, Role
from veery.node.domains import Domains

NODE_LIST = ("burnt", "here")


@dataclass
class Stage:
    """`web` ran on burnt, of which a fence stands; `domains` are those of the node here."""

    store: MemoryStore
    domains: Domains
    file: DomainSpec
    volume: DomainSpec

    async def fenced(self, method: str, state: FenceState = FenceState.FENCED) -> None:
        await self.store.commit([], [FENCES.put("burnt", FenceRecord(state=state, method=method, proof="seen"))])


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = RealClock()
    store, driver, devices = MemoryStore(clock), FakeDriver("here", World(), clock), PlainDevices()
    nodes = [Node(name=name, address="127.0.0.1", roles=(Role.HYPERVISOR,)) for name in NODE_LIST]
    domains = resting_domains(nodes[1], store, driver, devices, tmp_path)
    disk = tmp_path / "web.img"  # as on a filesystem that both nodes mount
    disk.touch()
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    file = DomainSpec(
        name="web", kernel=str(kernel), memory=64, maxmem=64, disks=(DiskSpec(vdev="xvda", target=str(disk)),)
    )
    volume = DomainSpec(
        name="web", kernel=str(kernel), memory=64, maxmem=64, disks=(DiskSpec(vdev="xvda", volume="web"),)
    )
    await driver.open()
    await store.commit([], [NODES.put(node.name, node) for node in nodes])
    await owners.claim(store, "web", "burnt", "boot", DomainRecord(spec=file))
    yield Stage(store, domains, file, volume)
    await driver.close()


async def refused(stage: Stage) -> Refused:
    with pytest.raises(Refused, match="burnt is fenced at the storage alone, and may still write") as error:
        await stage.domains.create(stage.file)
    return error.value


async def test_files_are_not_taken_from_a_node_that_is_fenced_at_the_storage(stage: Stage) -> None:
    await stage.fenced("storage")
    error = await refused(stage)
    assert "veery fence confirm burnt" in error.hint
    owner = await owners.read(stage.store, "web")
    assert owner is not None
    assert owner.node == "burnt", "it goes on there when that node is let in"


async def test_nor_after_the_domain_was_ended_by_that_proof(stage: Stage) -> None:
    await stage.fenced("storage")
    assert await owners.end_of_fenced(stage.store, "web")
    await refused(stage)
    assert await owners.read(stage.store, "web") is None


async def test_the_hint_works(stage: Stage) -> None:
    await stage.fenced("storage")
    await refused(stage)
    await orders.confirm(stage.store, "burnt", by="root", now=5.0)
    assert await HISTORIES.get(stage.store, "burnt") in (None, NodeHistory()), "it was fenced once"
    assert (await stage.domains.create(stage.file)).name == "web"
    with pytest.raises(Refused, match="fenced already"):
        await orders.confirm(stage.store, "burnt", by="root", now=6.0)


async def test_the_hint_works_after_the_end_too(stage: Stage) -> None:
    await stage.fenced("storage")
    assert await owners.end_of_fenced(stage.store, "web")
    await orders.confirm(stage.store, "burnt", by="root", now=5.0)
    await stage.domains.create(stage.file)
    record = await DOMAINS.get(stage.store, "web")
    assert record is not None
    assert not record.left


@pytest.mark.parametrize("method", ["power", "watchdog", "operator"])
async def test_files_are_taken_from_a_node_that_is_off(stage: Stage, method: str) -> None:
    await stage.fenced(method)
    await stage.domains.create(stage.file)
    owner = await owners.read(stage.store, "web")
    assert owner is not None
    assert owner.node == "here"


async def test_what_was_ended_starts_here_once_its_node_was_let_in_again(stage: Stage) -> None:
    """A node is let in when it holds no old copy."""
    await stage.fenced("storage")
    assert await owners.end_of_fenced(stage.store, "web")
    await stage.store.commit([], [Delete(FENCES.key("burnt")), Delete(ALIVE.key("burnt"))])
    await stage.domains.create(stage.file)


async def test_a_domain_that_has_volumes_is_taken_by_the_proof_of_the_storage(stage: Stage) -> None:
    owner = await owners.read(stage.store, "web")
    assert owner is not None
    await owners.release(stage.store, owner)
    await owners.claim(stage.store, "web", "burnt", "boot", DomainRecord(spec=stage.volume))
    await stage.fenced("storage")
    await stage.domains.create(stage.volume)


async def test_a_record_that_cannot_be_read_keeps_nobody_from_ending_the_domain(stage: Stage) -> None:
    await stage.fenced("storage")
    put = DOMAINS.put("web", DomainRecord(spec=stage.file))
    await stage.store.commit([], [type(put)(put.key, b"{")])
    assert await owners.end_of_fenced(stage.store, "web")
