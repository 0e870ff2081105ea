"""Sick nodes in single views: what is moved, how, and what keeps it."""

from __future__ import annotations

import dataclasses

import pytest
from bench.brain import EPOCH
from bench.brain import cluster as crowded

from veery.cluster.keys import HEALTHS, NODES, Unreadable
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put
from veery.errors import Refused
from veery.ha.base import Probes
from veery.ha.decide import decide
from veery.ha.observer import StoreObserver
from veery.ha.simulation.clock import TrueClock, run
from veery.ha.states import NodeState, judge
from veery.ha.why import why
from veery.model.ha import ClusterView, IntentKind, Move, NodeIntent, NodeReading, Note, Rules, StorageHeartbeats
from veery.model.node import Node, Role
from veery.model.verdict import HealthRecord, HealthSign, NodeVerdict

RULES = Rules()


ROOM = 16_384  # MiB of a node: the rest can carry it, and the loss of one more


def cluster(nodes: int, domains: int) -> ClusterView:
    """A healthy cluster with room to spare."""
    view = crowded(nodes, domains)
    roomy = NodeReading(started=1.0, room=ROOM)
    hypervisors = {name: node for name, node in view.nodes.items() if node.record.has(Role.HYPERVISOR)}
    made = {name: dataclasses.replace(node, reading=roomy) for name, node in hypervisors.items()}
    return dataclasses.replace(view, nodes={**view.nodes, **made})


def sign(sensor: str, asks: NodeVerdict, *, since: float = EPOCH - 60, **fields: bool) -> HealthSign:
    return HealthSign(
        sensor=sensor, part="it", level="bad", sentence="it is bad", since=since, asks=asks, would=asks, **fields
    )


def sick(view: ClusterView, *names: str, sensor: str = "smart", severe: bool = False, **fields: bool) -> ClusterView:
    """`view`, in which the sensor `sensor` of each of `names` asks for the node to be emptied."""
    found = sign(sensor, NodeVerdict.EVACUATE, severe=severe, **fields)
    record = HealthRecord(verdict=NodeVerdict.EVACUATE, since=EPOCH - 60, severe=severe, signs=(found,))
    nodes = {
        name: dataclasses.replace(node, health=record) if name in names else node for name, node in view.nodes.items()
    }
    return dataclasses.replace(view, nodes=nodes)


def moves(view: ClusterView) -> list[Move]:
    return [each for each in decide(view, EPOCH, RULES) if isinstance(each, Move)]


def notes(view: ClusterView, name: str) -> list[str]:
    found = (each for each in decide(view, EPOCH, RULES) if isinstance(each, Note))
    return [each.reason for each in found if each.subject == f"health/{name}"]


def test_one_domain_at_a_time_leaves_a_sick_node() -> None:
    (move,) = moves(sick(cluster(8, 16), "node000"))
    assert (move.source, move.urgent) == ("node000", False)


def test_several_leave_a_node_that_may_die_at_once_and_in_a_hurry() -> None:
    found = moves(sick(cluster(8, 80), "node000", sensor="ecc", severe=True))
    assert len(found) == RULES.severe
    assert all(each.urgent and each.source == "node000" for each in found)


def test_of_eight_nodes_two_are_emptied_at_a_time() -> None:
    view = cluster(8, 16)
    for name, sensor in (("node000", "smart"), ("node001", "nvme"), ("node002", "aer")):
        view = sick(view, name, sensor=sensor) if name == "node000" else _also(view, name, sensor)
    assert {each.source for each in moves(view)} == {"node000", "node001"}
    assert notes(view, "node002")[0].endswith("it waits for node000, node001: at most 2 at a time")


def _also(view: ClusterView, name: str, sensor: str) -> ClusterView:
    other = sick(view, name, sensor=sensor).nodes[name]
    return dataclasses.replace(view, nodes={**view.nodes, name: other})


@pytest.mark.parametrize(("count", "common"), [(2, True), (1, False)])
def test_half_of_the_nodes_with_one_sign_have_a_common_cause(count: int, common: bool) -> None:
    names = [f"node{number:03}" for number in range(count)]
    view = sick(cluster(4, 8), *names)
    assert bool(moves(view)) is not common
    assert ("a common cause" in notes(view, names[0])[0]) is common


def test_a_node_that_has_just_come_back_is_not_judged_by_what_it_said_before() -> None:
    view = sick(cluster(4, 8), "node000")
    back = dataclasses.replace(view.nodes["node000"], present=0.5)
    view = dataclasses.replace(view, nodes={**view.nodes, "node000": back})
    assert judge(view, EPOCH, RULES)["node000"] is NodeState.ARRIVING
    assert moves(view) == []


def test_a_crowded_cluster_keeps_its_sick_node_as_it_is_unless_that_may_die() -> None:
    assert moves(sick(crowded(4, 12), "node000")) == []
    assert "were lost then" in notes(sick(crowded(4, 12), "node000"), "node000")[0]
    assert moves(sick(crowded(4, 12), "node000", sensor="ecc", severe=True))


@pytest.mark.parametrize(
    ("would", "said"),
    [(NodeVerdict.EVACUATE, "would be emptied"), (NodeVerdict.QUARANTINE, "would be given no domains")],
)
def test_what_a_mode_withholds_is_told(would: NodeVerdict, said: str) -> None:
    view = cluster(4, 8)
    told = dataclasses.replace(sign("ecc", NodeVerdict.WELL), would=would)
    node = dataclasses.replace(view.nodes["node000"], health=HealthRecord(signs=(told,)))
    view = dataclasses.replace(view, nodes={**view.nodes, "node000": node})
    assert moves(view) == []
    assert notes(view, "node000") == [f"node000 {said}: ecc it: it is bad"]


def test_why_quotes_the_sign_and_since_when() -> None:
    lines = why(sick(cluster(4, 8), "node000"), "node000", EPOCH, RULES)
    assert "smart it: it is bad; bad, for 60 s; asks for: evacuation of the node" in lines


def test_a_verdict_that_cannot_be_read_says_nothing() -> None:
    class NoSenses(Probes):
        async def signs(self) -> StorageHeartbeats:
            return StorageHeartbeats(witnesses=0)

        async def readings(self) -> dict[str, NodeReading]:
            return {}

    async def play() -> None:
        store = MemoryStore(TrueClock())
        node = Node(name="n1", address="n1", roles=(Role.HYPERVISOR,))
        await store.commit([], [NODES.put("n1", node), Put(HEALTHS.key("n1"), b"{")])
        view = await StoreObserver(store, NoSenses(), TrueClock(), RULES).observe()
        assert view.nodes["n1"].health == HealthRecord()
        assert view.nodes["n1"].unreadable == ()
        with pytest.raises(Unreadable):
            await HEALTHS.get(store, "n1")

    run(play())


def test_limits_out_of_a_severely_sick_node_are_one_or_more() -> None:
    with pytest.raises(Refused):
        dataclasses.replace(RULES, severe=0).check()


def shy(view: ClusterView, *names: str, shared: bool = True, since: float = EPOCH - 60) -> ClusterView:
    """`view`, in which a sensor of each of `names` asks for quarantine."""
    found = sign("ipmi", NodeVerdict.QUARANTINE, shared=shared, since=since)
    record = HealthRecord(verdict=NodeVerdict.QUARANTINE, since=since, signs=(found,))
    nodes = {
        name: dataclasses.replace(node, health=record) if name in names else node for name, node in view.nodes.items()
    }
    return dataclasses.replace(view, nodes=nodes)


def test_a_state_of_half_of_the_nodes_puts_none_into_quarantine() -> None:
    view = shy(cluster(4, 8), "node000", "node001")
    states = judge(view, EPOCH, RULES)
    assert (states["node000"], states["node001"]) == (NodeState.PRESENT, NodeState.PRESENT)
    assert "still receives domains" in notes(view, "node000")[0]
    assert "a common cause" in notes(view, "node000")[0]


@pytest.mark.parametrize(
    "view",
    [
        shy(cluster(4, 8), "node000"),
        shy(cluster(5, 8), "node000", "node001"),
        shy(cluster(4, 8), "node000", "node001", shared=False),
        shy(shy(cluster(4, 8), "node000"), "node001", since=EPOCH - 5000),
    ],
    ids=["one node", "less than half", "facts", "long apart"],
)
def test_a_state_of_few_nodes_is_quarantine(view: ClusterView) -> None:
    assert judge(view, EPOCH, RULES)["node000"] is NodeState.QUARANTINED
    assert "receives no domains" in notes(view, "node000")[0]


def test_a_drained_node_with_a_common_cause_stays_drained() -> None:
    view = shy(cluster(4, 8), "node000", "node001")
    intent = NodeIntent(kind=IntentKind.DRAIN, by="anna")
    node = dataclasses.replace(view.nodes["node000"], intent=intent)
    view = dataclasses.replace(view, nodes={**view.nodes, "node000": node})
    assert judge(view, EPOCH, RULES)["node000"] is NodeState.DRAINING
    assert moves(view)
