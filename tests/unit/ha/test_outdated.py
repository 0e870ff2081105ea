"""A node whose version does not support the cluster's level keeps its domains, and receives no others."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from bench.brain import EPOCH, cluster, drain, orphan

from veery.cluster.keys import ALIVE, LEVEL_KEY, LEVELS, NODES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put
from veery.ha import drainplan
from veery.ha.decide import decide
from veery.ha.observer import StoreObserver
from veery.ha.states import NodeState, judge, usable
from veery.ha.why import why
from veery.host.clock import RealClock
from veery.model.cluster import ClusterLevel, Presence
from veery.model.ha import (
    Action,
    ClusterView,
    End,
    IntentKind,
    Level,
    Move,
    NodeIntent,
    NodeReading,
    Note,
    Rules,
    RunRecord,
    Start,
    StorageHeartbeat,
    StorageHeartbeats,
)
from veery.model.node import Node, Role

RULES = Rules()
OLD = "node003"
TROUBLE = "its veery supports level 0, the cluster is at level 1"


def aged(view: ClusterView, *names: str) -> ClusterView:
    """The nodes `names` support level 0, all others level 1, which is the cluster's. The old ones have most room."""
    nodes = {name: dataclasses.replace(node, able=1) for name, node in view.nodes.items()}
    for name in names:
        nodes[name] = dataclasses.replace(nodes[name], able=0, reading=NodeReading(started=1.0, room=1 << 20))
    return dataclasses.replace(view, nodes=nodes, level=1)


def decided(view: ClusterView) -> tuple[list[Action], list[Note]]:
    found = decide(view, EPOCH, RULES)
    return [each for each in found if not isinstance(each, Note)], [each for each in found if isinstance(each, Note)]


def test_its_state_and_what_is_reported() -> None:
    view = aged(cluster(4, 24), OLD, "stor1")
    states = judge(view, EPOCH, RULES)
    assert (states[OLD], states["stor1"], states["node000"]) == (
        NodeState.OUTDATED,
        NodeState.PRESENT,
        NodeState.PRESENT,
    )
    assert usable(view, states) == ("node000", "node001", "node002")
    actions, (note,) = decided(view)
    assert (actions, note.subject, note.level) == ([], f"node/{OLD}", Level.WARNING)
    assert TROUBLE in note.reason
    assert any(TROUBLE in line for line in why(view, OLD, EPOCH, RULES))


def test_a_cluster_without_a_level_has_no_old_nodes() -> None:
    view = dataclasses.replace(aged(cluster(4, 24), OLD), level=0)
    assert judge(view, EPOCH, RULES)[OLD] is NodeState.PRESENT


def test_no_drained_domain_moves_to_it() -> None:
    actions, _ = decided(drain(aged(cluster(4, 24), OLD), 1))
    assert actions
    assert {each.target for each in actions if isinstance(each, Move)} <= {"node001", "node002"}


def test_no_domain_starts_on_it() -> None:
    actions, _ = decided(orphan(aged(cluster(4, 24), OLD), 4))
    assert {each.node for each in actions if isinstance(each, Start)} <= {"node000", "node001", "node002"}
    assert any(isinstance(each, Start) for each in actions)


def test_why_there_is_no_place_names_the_versions() -> None:
    view = orphan(aged(cluster(4, 24), OLD), 1)
    full = {
        name: dataclasses.replace(view.nodes[name], reading=NodeReading(started=1.0, room=0))
        for name in ("node000", "node001", "node002")
    }
    actions, notes = decided(dataclasses.replace(view, nodes={**view.nodes, **full}))
    assert actions == []
    (told,) = [note.reason for note in notes if note.state == "no-place"]
    assert f"{OLD} can take in no domain: {TROUBLE}" in told


def test_a_drain_with_no_other_target_is_refused_with_the_versions() -> None:
    view = aged(cluster(4, 24), "node001", "node002", OLD)
    plan = drainplan.plan(view, "node000", EPOCH, RULES)
    assert plan.moves == ()
    assert any(f"node000 is the last; node001 can take in no domain: {TROUBLE}" in each for each in plan.blockers)
    assert {target for _, target in drainplan.plan(aged(cluster(4, 24), OLD), "node000", EPOCH, RULES).moves} == {
        "node001",
        "node002",
    }


def test_its_own_domains_can_leave_it() -> None:
    view = aged(cluster(4, 24), "node000")
    plan = drainplan.plan(view, "node000", EPOCH, RULES)
    assert len(plan.moves) == 6
    assert plan.blockers == ()
    actions, _ = decided(drain(view, 1))
    assert {each.source for each in actions if isinstance(each, Move)} == {"node000"}


def test_a_domain_comes_home_from_it() -> None:
    view = aged(cluster(4, 24), "node000")
    home = dataclasses.replace(view.nodes["node001"], intent=NodeIntent(kind=IntentKind.RESUME))
    away = dataclasses.replace(view.domains["domain0000"], run=RunRecord(node="node000", home="node001"))
    view = dataclasses.replace(
        view, nodes={**view.nodes, "node001": home}, domains={**view.domains, "domain0000": away}
    )
    (move,), _ = decided(view)
    assert isinstance(move, Move)
    assert (move.source, move.target) == ("node000", "node001")


@pytest.mark.parametrize("owned", [True, False])
def test_its_domains_are_not_ended_when_its_heartbeats_stop(owned: bool) -> None:
    """An older version may be unable to log in for its heartbeats, while the sessions of its domains go on."""
    view = aged(cluster(4, 24), OLD)
    mute = dataclasses.replace(view.nodes[OLD], sign=StorageHeartbeat(age=900.0))
    beating = {name: dataclasses.replace(node, beating=1000.0) for name, node in view.nodes.items()}
    view = dataclasses.replace(view, nodes={**beating, OLD: mute})
    if not owned:
        view = dataclasses.replace(view, domains={})
    assert judge(view, EPOCH, RULES)[OLD] is NodeState.OUTDATED
    actions, (note,) = decided(view)
    assert actions == []
    assert "its heartbeats on storage have stopped" in note.reason
    newer = dataclasses.replace(view, level=0)
    assert judge(newer, EPOCH, RULES)[OLD] is NodeState.CUT_OFF
    assert bool([each for each in decided(newer)[0] if isinstance(each, End)]) is owned


class Quiet:
    """As Probes: nobody reports anything."""

    async def signs(self) -> StorageHeartbeats:
        return StorageHeartbeats(ages={}, witnesses=0)

    async def readings(self) -> dict[str, NodeReading]:
        return {}


async def test_the_observer_reads_the_levels() -> None:
    store = MemoryStore(RealClock())
    nodes = {name: Node(name=name, address=name, roles=(Role.HYPERVISOR,)) for name in ("new", "old", "gone")}
    levels = {"new": 1, "old": 0}
    puts = [NODES.put(name, node) for name, node in nodes.items()]
    puts += [ALIVE.put(name, Presence(node=name, started=1.0, level=level)) for name, level in levels.items()]
    await store.commit([], [*puts, LEVELS.put(LEVEL_KEY, ClusterLevel(level=1))])
    observer = StoreObserver(store, Quiet(), RealClock(), dataclasses.replace(RULES, blind=60.0))
    following = asyncio.create_task(observer.run())
    try:
        view = await observer.observe()
        assert view.quorum
        assert (view.level, {name: node.able for name, node in view.nodes.items()}) == (
            1,
            {"new": 1, "old": 0, "gone": None},
        )
        await store.commit([], [Put(LEVEL_KEY, b"{}")])
        async with asyncio.timeout(60):
            while view.level:  # a level that cannot be read hides no node
                view = await observer.observe()
        assert set(view.nodes) == set(nodes)
    finally:
        following.cancel()
        await asyncio.wait({following})
