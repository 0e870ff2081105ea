"""The baseline that each hypervisor works out: one for each accelerator and, under KVM, each vendor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from veery.cluster.keys import BASELINES, NODES
from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.node import Node, Role
from veery.model.plan import Baseline
from veery.node.cpu_baseline import CpuBaseline

HASWELL, ICELAKE, ZEN = ("Haswell-v4",), ("Haswell-v4", "Icelake-Server-v6"), ("EPYC-v4",)


class Nodes:
    """Hypervisors that say what they can give, and work the baselines out, into one store."""

    def __init__(self) -> None:
        self.store, self._world = MemoryStore(RealClock()), World()
        self.drivers: dict[str, FakeDriver] = {}
        self._looks: list[CpuBaseline] = []

    async def add(self, name: str, accelerator: str, vendor: str = "", models: tuple[str, ...] = ()) -> None:
        """One more."""
        node = Node(name=name, address="127.0.0.1", roles=(Role.HYPERVISOR,))
        await self.store.commit([], [NODES.put(name, node)])
        driver = self.drivers[name] = FakeDriver(name, self._world, RealClock())
        driver.able = replace(driver.able, accelerator=accelerator, vendor=vendor, models=models)
        self._looks.append(CpuBaseline(node, self.store, driver))

    async def baselines(self) -> dict[str, Baseline]:
        """What they come to."""
        for _ in range(2):
            for each in self._looks:
                await each.restate()
        return await BASELINES.readable(self.store)

    async def shown(self) -> dict[str, object]:
        """GET /v1/cpu on the first of them."""
        return await self._looks[0].show()


async def test_under_kvm_each_vendor_has_its_own() -> None:
    nodes = Nodes()
    await nodes.add("a", "kvm", "GenuineIntel", ICELAKE)
    await nodes.add("b", "kvm", "GenuineIntel", HASWELL)
    await nodes.add("c", "kvm", "AuthenticAMD", ZEN)
    found = await nodes.baselines()
    assert {name: (one.vendor, one.nodes) for name, one in found.items()} == {
        "kvm-GenuineIntel": ("GenuineIntel", ("a", "b")),
        "kvm-AuthenticAMD": ("AuthenticAMD", ("c",)),
    }
    assert nodes.drivers["a"].models == HASWELL, "what all of its vendor can give"
    assert nodes.drivers["c"].models == ZEN


async def test_addresses_are_as_wide_as_the_narrowest_of_a_vendor_has_them() -> None:
    nodes = Nodes()
    for name, vendor, bits in (("a", "I", 46), ("b", "I", 39), ("c", "I", 0), ("d", "A", 48)):
        await nodes.add(name, "kvm", vendor)
        nodes.drivers[name].able = replace(nodes.drivers[name].able, phys_bits=bits)
    await nodes.baselines()
    assert [nodes.drivers[name].phys_bits for name in "abcd"] == [39, 39, 39, 48], "c does not tell"


@pytest.mark.parametrize("vendor", ["", "AuthenticAMD"])
async def test_under_tcg_there_is_one_by_its_old_name(vendor: str) -> None:
    nodes = Nodes()
    old = Baseline(accelerator="tcg", cpu="fake,fpu", level=0, features=("fpu",), nodes=("a", "b"))
    await nodes.store.commit([], [BASELINES.put("tcg", old)])
    await nodes.add("a", "tcg", vendor)
    await nodes.add("b", "tcg")
    found = await nodes.baselines()
    assert set(found) == {"tcg"}
    assert replace(found["tcg"], revision=0) == old, "it is not written anew"


async def test_a_baseline_of_all_vendors_by_an_older_veery_is_not_shown() -> None:
    nodes = Nodes()
    mixed = Baseline(accelerator="kvm", cpu="qemu64", level=1, features=(), nodes=("a", "c"))
    await nodes.store.commit([], [BASELINES.put("kvm", mixed)])
    await nodes.add("a", "kvm", "GenuineIntel", HASWELL)
    await nodes.baselines()
    shown = (await nodes.shown())["baselines"]
    assert [one.vendor for one in shown] == ["GenuineIntel"]  # type: ignore[attr-defined]
