"""A cluster of two versions: real commands of this one rewrite records of a newer one, and lose nothing of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from newer_parts import intact, plant, read
from veery.cluster import fencing, members, volumegate
from veery.cluster import owner as owners
from veery.cluster.keys import (
    BASELINES,
    CERTIFICATES,
    DOMAINS,
    FENCES,
    GROUPS,
    HISTORIES,
    INTENTS,
    NODES,
    OWNERS,
    POLICIES,
    RUNS,
    VOLUMES,
)
from veery.cluster.memory import MemoryStore
from veery.ha import groups, orders
from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.migrate.base import MoveContext
from veery.migrate.journal import Journal
from veery.migrate.phases import Hold
from veery.model.cluster import Certificate, DomainRecord
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.fence import Clean
from veery.model.ha import FenceRecord, FenceState, HaRecord, IntentKind, NodeHistory, NodeIntent, Policy, RunRecord
from veery.model.node import Node, Role
from veery.model.plan import Baseline
from veery.model.volume import Attachments, Backing, Volume, VolumeMove
from veery.node.devices import Devices
from veery.node.domains import Domains
from veery.node.saving import Saving
from veery.node.volumes import VolumeRecords

UUID = "11111111-2222-4333-8444-555555555555"
A, B = (Node(name=name, address=f"10.0.0.{n}", roles=(Role.HYPERVISOR,)) for n, name in enumerate("ab"))
DATA = Volume(
    name="data",
    size=1 << 20,
    node="stor",
    backing=Backing.FILE,
    path="/a",
    iqn="iqn.x:data",
    tid=1,
    portal="10.0.0.1:1",
)


class NoDevices:
    """A node without disks and taps."""

    async def attach(self, spec: DomainSpec) -> Attachments:
        """As Attacher."""
        return Attachments()

    async def detach(self, attachments: Attachments) -> None:
        """As Attacher."""

    def taken(self, attachments: Attachments) -> None:
        """As Attacher."""

    async def fill(self, spec: DomainSpec) -> DomainSpec:
        """As NodeAttacher."""
        return spec

    async def reach(self, disks: object) -> None:
        """As NodeAttacher."""


class Beating:
    """A node whose lease stands."""

    async def require(self) -> None:
        """It does."""


@dataclass
class Stage:
    """Node a with the domain `web`, whose records a newer version wrote."""

    store: MemoryStore
    domains: Domains
    devices: Devices
    folder: Path

    async def intact(self, *found: str) -> None:
        """Fails where a record at one of these keys has lost something."""
        for key in found:
            raw = await read(self.store, key)
            assert intact(raw), (key, raw)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock, nowhere = RealClock(), NoDevices()
    store, driver = MemoryStore(clock), FakeDriver("a", World(), clock)
    context = MoveContext(
        node="a",
        store=store,
        driver=driver,
        attacher=nowhere,
        journal=Journal(tmp_path / "journal"),
        clock=clock,
        hold=Hold(tmp_path / "hold"),
        client_tls=None,
    )

    async def withdraw(name: str) -> None:
        """No move is under way."""

    resting = SimpleNamespace(withdraw=withdraw, busy=lambda name, arriving=False: "", arriving=lambda name: None)
    domains = Domains(A, context, nowhere, Beating(), moves=resting, receiver=resting, scout=None)
    spec = DomainSpec(name="web", uuid=UUID, memory=64, maxmem=96, maxvcpus=2)
    await driver.open()
    await store.commit([], [NODES.put(node.name, node) for node in (A, B)])
    await owners.claim(store, "web", "a", "boot", DomainRecord(spec=spec))
    await driver.start(spec, Attachments())
    await store.commit(
        [],
        [
            POLICIES.put("web", HaRecord(policy=Policy.RESTART, group="g")),
            RUNS.put("web", RunRecord(node="a", tries=2, home="b")),
            GROUPS.put("g", groups.Group(nodes=("a",))),
            VOLUMES.put("data", DATA),
            INTENTS.put("a", NodeIntent(kind=IntentKind.DRAIN)),
            FENCES.put("b", FenceRecord(state=FenceState.FAILED)),
            HISTORIES.put("b", NodeHistory(fenced=(1.0,))),
            BASELINES.put("tcg", Baseline(accelerator="tcg", cpu="x", level="y", features=(), nodes=())),
            CERTIFICATES.put("b", Certificate(serial="1", ends=1.0)),
        ],
    )
    await plant(store)
    yield Stage(store, domains, Devices(domains, driver, nowhere), tmp_path)
    await driver.close()


async def test_rename(stage: Stage) -> None:
    await stage.domains.rename("web", "shop")
    await stage.intact("domain/shop", "owner/shop", "ha/shop", "run/shop")


async def test_mem_set(stage: Stage) -> None:
    await stage.devices.set_memory("web", 80)
    await stage.intact("domain/web")
    record = await DOMAINS.get(stage.store, "web")
    assert record is not None
    assert (record.spec.memory, record.spec.maxmem) == (80, 96)


async def test_save(stage: Stage) -> None:
    await Saving(stage.domains, stage.store, Beating()).save("web", stage.folder / "web.save", "destroyed")
    await stage.intact("domain/web", "ha/web", "run/web")


async def test_create_where_a_record_stands(stage: Stage) -> None:
    await stage.domains.destroy("web")
    await stage.store.commit([], [INTENTS.put("a", NodeIntent(kind=IntentKind.RESUME))])
    await stage.domains.create(DomainSpec(name="web", uuid=UUID, memory=32))
    await stage.intact("domain/web", "ha/web", "run/web")
    record = await DOMAINS.get(stage.store, "web")
    assert record is not None
    assert record.spec.memory == 32


async def test_ha_set(stage: Stage) -> None:
    await orders.set_policy(stage.store, "web", Policy.MIGRATE_ONLY, priority=7)
    await orders.want(stage.store, "web", wanted=False, stopping=3.0)
    await orders.lapse(stage.store, "web", 3.0)
    await orders.stay(stage.store, "web")
    await stage.intact("ha/web", "run/web")
    policy, run = await POLICIES.get(stage.store, "web"), await RUNS.get(stage.store, "web")
    assert (policy and policy.priority, run and run.tries, run and run.home) == (7, 0, "")


async def test_group_set(stage: Stage) -> None:
    await groups.assign(stage.store, "g", nodes=("a", "b"))
    await stage.intact("group/g")


async def test_a_drained_node_whose_daemon_restarts(stage: Stage) -> None:
    await orders.away(stage.store, "a", 30.0, now=1.0)
    await stage.intact("intent/a")
    intent = await INTENTS.get(stage.store, "a")
    assert intent is not None
    assert (intent.kind, intent.away) == (IntentKind.DRAIN, 30.0)


async def test_a_new_order_for_a_node_takes_nothing_over(stage: Stage) -> None:
    await orders.intend(stage.store, "a", NodeIntent(kind=IntentKind.DRAIN, by="me"))
    assert "from_tomorrow" not in await read(stage.store, "intent/a")


async def test_fence_confirm_and_lift(stage: Stage) -> None:
    await orders.confirm(stage.store, "b", by="me", now=5.0)
    await stage.intact("fence/b", "history/b")
    fence = await fencing.require(stage.store, "b")
    assert fence.record.state is FenceState.FENCED
    owner = await OWNERS.get(stage.store, "web")
    assert owner is not None
    await fencing.lift(
        stage.store, fence, Clean(node="b", revision=9, fence=fence.created, kept={"web": owner.revision}, stale=())
    )
    await stage.intact("owner/web")
    assert await FENCES.get(stage.store, "b") is None


async def test_the_end_of_a_move(stage: Stage) -> None:
    owner = await owners.read(stage.store, "web")
    assert owner is not None
    await orders.give_back(stage.store, owner)
    await owners.claim(stage.store, "web", "a", "boot2", None)
    await plant(stage.store)
    owner = await owners.read(stage.store, "web")
    assert owner is not None
    await stage.store.commit([], [VOLUMES.put("data", DATA)])
    reservation = await owners.reserve(stage.store, "web", "m1", "a", "c")
    await owners.commit(stage.store, owner, reservation, await DOMAINS.get(stage.store, "web"))
    await stage.intact("owner/web", "domain/web", "ha/web", "run/web")


async def test_volume_resize_and_move(stage: Stage) -> None:
    records = VolumeRecords(stage.store)
    volume = await VOLUMES.get(stage.store, "data")
    assert volume is not None
    await records.put(replace(volume, size=2 << 20))
    await stage.intact("volume/data")
    move = VolumeMove(id="m", volume="data", source="stor", target="stor2", was=volume, place=volume)
    begun = await volumegate.begin(stage.store, move, None)
    await volumegate.commit(stage.store, begun, None)
    await stage.intact("volume/data")


async def test_what_a_node_tells_of_itself_is_written_whole(stage: Stage) -> None:
    await members.update(stage.store, A)  # a newer version ran on it before
    assert "from_tomorrow" not in await read(stage.store, "node/a")
    await stage.intact("node/b")


async def test_attached_disks_keep_theirs(stage: Stage) -> None:
    spec = DomainSpec(name="web", uuid=UUID, disks=(DiskSpec(vdev="xvda"), DiskSpec(vdev="xvdb")))
    await stage.store.commit([], [DOMAINS.put("web", DomainRecord(spec=spec))])
    await plant(stage.store)
    await stage.domains.remember(
        DomainRecord(spec=DomainSpec(name="web", uuid=UUID, disks=(DiskSpec(vdev="xvdb"), DiskSpec(vdev="xvdc"))))
    )
    raw = await read(stage.store, "domain/web")
    assert ["from_tomorrow" in disk for disk in raw["spec"]["disks"]] == [True, False]
