"""Users' orders to a node whose sensors ask that it is given no domains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resting_node import PlainDevices, Present

from veery.cluster.keys import HEALTHS, NODES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.migrate.base import MoveContext
from veery.migrate.journal import Journal
from veery.migrate.phases import Hold
from veery.model.domain import DomainSpec
from veery.model.move import MoveSettings
from veery.model.node import Node, Role
from veery.model.plan import Plan
from veery.model.verdict import HealthRecord, HealthSign, NodeVerdict
from veery.node.domains import Domains
from veery.node.evacuation import Evacuation

NAMES = ("here", "sick", "fit")


@dataclass
class Begun:
    """Moves that only note what they are ordered."""

    targets: list[str] = field(default_factory=list)

    def busy(self, name: str, arriving: bool = False) -> str:
        return ""

    def start(self, reading: Any, node: Node, *rest: Any, **more: Any) -> str:
        self.targets.append(node.name)
        return f"move{len(self.targets)}"


class Scout:
    """A scout that finds no obstacle."""

    async def plan(self, reading: Any, target: Node, settings: MoveSettings, *, quick: bool = False) -> Plan:
        return Plan(domain="web", source="here", target=target.name, settings=settings, possible=True)


@dataclass
class Stage:
    store: MemoryStore
    domains: Domains
    moves: Begun
    web: DomainSpec

    async def unwell(self, name: str, verdict: NodeVerdict) -> None:
        found = HealthSign(sensor="smart", part="sda", level="bad", sentence="it fails", asks=verdict, would=verdict)
        await self.store.commit([], [HEALTHS.put(name, HealthRecord(verdict=verdict, signs=(found,)))])


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = RealClock()
    store, driver, devices = MemoryStore(clock), FakeDriver("here", World(), clock), PlainDevices()
    nodes = [Node(name=name, address=f"127.0.0.{i}", roles=(Role.HYPERVISOR,)) for i, name in enumerate(NAMES, 1)]
    await store.commit([], [NODES.put(node.name, node) for node in nodes])
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    context = MoveContext(
        node="here",
        store=store,
        driver=driver,
        attacher=devices,
        journal=Journal(tmp_path / "journal"),
        clock=clock,
        hold=Hold(tmp_path / "hold"),
        client_tls=None,
    )
    moves, receiver = Begun(), SimpleNamespace(arriving=lambda name: None)
    domains = Domains(nodes[0], context, devices, Present(), moves=moves, receiver=receiver, scout=Scout())
    await driver.open()
    web = DomainSpec(name="web", kernel=str(kernel), memory=64, maxmem=64)
    yield Stage(store, domains, moves, web)
    await driver.close()


@pytest.mark.parametrize(
    ("verdict", "said"), [(NodeVerdict.QUARANTINE, "is in quarantine"), (NodeVerdict.EVACUATE, "is sick")]
)
async def test_a_start_there_is_refused_unless_it_is_forced(stage: Stage, verdict: NodeVerdict, said: str) -> None:
    await stage.unwell("here", verdict)
    with pytest.raises(Refused, match=f"here {said}: smart sda: it fails") as error:
        await stage.domains.create(stage.web)
    assert "--force" in error.value.hint
    assert "veery node well here" in error.value.hint
    assert (await stage.domains.create(stage.web, force=True)).name == "web"


async def test_a_move_there_is_refused_unless_it_is_forced_or_the_brains(stage: Stage) -> None:
    await stage.domains.create(stage.web)
    await stage.unwell("sick", NodeVerdict.QUARANTINE)
    with pytest.raises(Refused, match="sick is in quarantine"):
        await stage.domains.migrate("web", "sick", MoveSettings())
    assert stage.moves.targets == []
    await stage.domains.migrate("web", "fit", MoveSettings())
    await stage.domains.migrate("web", "sick", MoveSettings(), force=True)
    await stage.domains.migrate("web", "sick", MoveSettings(), brain=True)
    assert stage.moves.targets == ["fit", "sick", "sick"]


async def test_the_plan_of_a_move_there_names_the_reason(stage: Stage) -> None:
    await stage.domains.create(stage.web)
    await stage.unwell("sick", NodeVerdict.EVACUATE)
    plan = await stage.domains.plan("web", "sick", MoveSettings())
    assert not plan.possible
    assert plan.blockers[0].reason == "sick is sick: smart sda: it fails"
    assert (await stage.domains.plan("web", "fit", MoveSettings())).possible


async def test_a_record_that_cannot_be_read_refuses_nothing(stage: Stage) -> None:
    await stage.store.commit([], [Put(HEALTHS.key("here"), b'{"verdict": "burnt"}', 0)])
    assert (await stage.domains.create(stage.web)).name == "web"


class Machine:
    """All nodes are alive."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def nodes(self) -> list[dict[str, Any]]:
        return [{"node": node, "alive": True, "presence": None} for node in (await NODES.all(self._store)).values()]


class Peers:
    """No node tells its memory."""

    async def call(self, *words: Any, **more: Any) -> Any:
        raise Refused("no answer")


async def test_all_domains_leave_for_nodes_that_are_well(stage: Stage) -> None:
    await stage.domains.create(stage.web)
    await stage.unwell("sick", NodeVerdict.QUARANTINE)
    evacuation = Evacuation(stage.domains, stage.moves, Machine(stage.store), Peers(), stage.store)
    begun = await evacuation.begin([], [], MoveSettings())
    assert (stage.moves.targets, begun.refused) == (["fit"], {})
    await stage.unwell("fit", NodeVerdict.QUARANTINE)
    with pytest.raises(Refused, match="no other hypervisor is well"):
        await evacuation.begin([], [], MoveSettings())
    begun = await evacuation.begin([], ["fit"], MoveSettings(), force=True)
    assert begun.refused == {}
