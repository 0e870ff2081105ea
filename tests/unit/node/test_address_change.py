"""Whether a node may change its address, what its identity says then, and what a change writes: on fakes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from veery.cluster import server
from veery.cluster.identity import EtcdStart, Identity
from veery.cluster.keys import VOLUMES
from veery.cluster.memory import MemoryStore
from veery.cluster.upkeep import Seen
from veery.cluster.voters import Voter, VoterStatus
from veery.config.settings import Api, Relocation, Settings
from veery.host.clock import RealClock
from veery.model.cluster import Cluster
from veery.model.node import Node, Role
from veery.model.volume import Backing, Volume
from veery.node import addressplan, reach
from veery.node.addresschange import changed, reroute
from veery.node.addressplan import Facts, plan

STOR = Node(name="stor", address="10.0.0.3", roles=(Role.STORAGE, Role.VOTER))
ONE = Node(name="test1", address="10.0.0.1", roles=(Role.HYPERVISOR, Role.VOTER), initiator="iqn.x:node:test1")
TWO = Node(name="test2", address="10.0.0.2", roles=(Role.HYPERVISOR, Role.VOTER))
THREE = Node(name="test3", address="10.0.0.4", roles=(Role.HYPERVISOR,))


def seen(node: Node, *, up: bool = True) -> Seen:
    number = sum(map(ord, node.name))
    voter = Voter(number, node.name, (f"https://{node.address}:2380",), (f"https://{node.address}:2379",), False)
    return Seen(voter, voter.clients[0], VoterStatus(number, "3.4.23", 1, False, 7, 0) if up else None)


FACTS = Facts(
    node=ONE,
    address="10.1.0.1",
    own=True,
    nodes=(STOR, ONE, TWO, THREE),
    seen=(seen(STOR), seen(ONE), seen(TWO)),
)


def refused(facts: Facts) -> str:
    return "; ".join(plan(facts).refusals)


def test_a_voter_changes_step_by_step() -> None:
    told = plan(FACTS)
    assert told.refusals == ()
    assert "certificate for 10.0.0.1 and 10.1.0.1" in told.steps[0]
    assert "as well as 10.0.0.1; its etcd restarts" in told.steps[1]
    assert told.steps[-1].startswith("then by hand: remove 10.0.0.1 from the machine")
    assert not any("does not answer for some seconds" in step for step in told.steps)
    alone = replace(FACTS, seen=(seen(ONE),))
    assert any("the store does not answer for some seconds" in step for step in plan(alone).steps)


def test_a_node_without_a_vote_touches_no_member() -> None:
    told = plan(replace(FACTS, node=THREE, address="10.1.0.4", seen=(), absent=frozenset({"test2"})))
    assert told.refusals == ()
    assert not any("voters" in step for step in told.steps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"own": False}, "not an address of the machine test1"),
        ({"address": "10.0.0.1"}, "the address of test1 already"),
        ({"address": "10.0.0.2"}, "is test2's address"),
        ({"address": "11.0.0.2"}, "their heartbeats would share a block"),
        ({"unreached": {"test2": "port 2380: No route to host"}}, "test2 does not reach 10.1.0.1: port 2380"),
        ({"pinned": ("relocation.address",)}, "sets relocation.address to 10.0.0.1"),
        ({"certificate": "test1 was renewed recently"}, "renewed recently"),
        ({"seen": (seen(STOR), seen(ONE), seen(TWO, up=False))}, "voter test2 does not answer"),
        ({"seen": (seen(STOR), seen(TWO))}, "no member of test1"),
        ({"absent": frozenset({"test3"})}, "test3 is absent"),
        ({"idle": False}, "a domain moves from or to test1"),
        ({"volume_moves": ("data",)}, "volume data is being moved"),
        ({"node": STOR, "address": "10.1.0.3", "users": ("web on test1",)}, "web on test1 uses volumes of stor"),
    ],
)
def test_what_stands_in_the_way(change: dict[str, object], words: str) -> None:
    assert words in refused(replace(FACTS, **change))  # type: ignore[arg-type]


def test_a_former_address_of_another_node_is_not_free() -> None:
    nodes = (STOR, ONE, replace(TWO, former=("10.1.0.1",)))
    assert "is test2's address" in refused(replace(FACTS, nodes=nodes))


def test_settings_that_name_the_address_are_found() -> None:
    settings = Settings(api=Api(address="fd00::0:1"), relocation=Relocation(address="10.0.0.1"))
    assert addressplan.pinned(settings, "fd00::1") == ("api.address",)
    assert addressplan.pinned(settings, "10.0.0.1") == ("relocation.address",)
    assert addressplan.pinned(Settings(), "10.0.0.1") == ()
    assert addressplan.ports(Settings(), STOR) == (8001, 2379, 2380, 3260)
    assert addressplan.ports(Settings(), THREE) == (8001, 8002)


# ---- what it says then
IDENTITY = Identity(
    cluster=Cluster(name="lab", id="1", ca="", authority="iqn.x"),
    node=ONE,
    voters=("https://10.0.0.1:2379", "https://10.0.0.3:2379"),
    etcd=EtcdStart(initial_cluster="test1=https://10.0.0.1:2380", initial_cluster_state="existing", store="9"),
)


def test_the_identity_keeps_what_the_node_is() -> None:
    there = changed(Settings(), IDENTITY, "10.1.0.1")
    assert (there.node.address, there.node.former, there.node.initiator) == ("10.1.0.1", ("10.0.0.1",), ONE.initiator)
    assert there.voters == ("https://10.1.0.1:2379", "https://10.0.0.1:2379", "https://10.0.0.3:2379")
    assert there.etcd == IDENTITY.etcd
    assert there.node.addresses == ("10.1.0.1", "10.0.0.1")
    back = changed(Settings(), there, "10.0.0.1")
    assert (back.node.address, back.node.former, set(back.voters)) == ("10.0.0.1", ("10.1.0.1",), set(there.voters))


def test_etcd_serves_the_former_address_too_and_tells_the_new_one() -> None:
    there = changed(Settings(), IDENTITY, "fd00::1")
    words = list(map(str, server.command(Settings(), there, (3, 4), former=["10.0.0.1"])))
    flags = dict(itertools.pairwise(words))
    assert flags["--listen-client-urls"] == "https://[fd00::1]:2379,https://10.0.0.1:2379,https://127.0.0.1:2379"
    assert flags["--listen-peer-urls"] == "https://[fd00::1]:2380,https://10.0.0.1:2380"
    assert flags["--advertise-client-urls"] == "https://[fd00::1]:2379"
    assert flags["--initial-advertise-peer-urls"] == "https://[fd00::1]:2380"


def volume(name: str, node: str) -> Volume:
    return Volume(
        name=name,
        size=1 << 20,
        node=node,
        backing=Backing.FILE,
        path=f"/x/{name}",
        iqn=f"iqn.x:{name}",
        tid=1,
        portal="10.0.0.3:3260",
    )


async def test_the_volumes_of_the_node_and_no_others_are_reached_at_the_new_portal() -> None:
    store = MemoryStore(RealClock())
    await store.commit([], [VOLUMES.put(name, volume(name, node)) for name, node in (("a", "stor"), ("b", "stor2"))])
    await reroute(store, "stor", "[fd00::3]:3260")
    portals = {name: each.portal for name, each in (await VOLUMES.all(store)).items()}
    assert portals == {"a": "[fd00::3]:3260", "b": "10.0.0.3:3260"}
    before = (await store.scan(VOLUMES.prefix)).entries
    await reroute(store, "stor", "[fd00::3]:3260")
    assert (await store.scan(VOLUMES.prefix)).entries == before, "a second time writes nothing"


# ---- whether ports are reached
async def test_ports_are_reached_while_somebody_listens_for_the_question(tmp_path: Path) -> None:
    with reach.listening("127.31.77.1", [19031, 19032]):
        assert await reach.missing("127.31.77.1", [19031, 19032]) == ""
        with reach.listening("127.31.77.1", [19031]):  # somebody listens there already
            pass
    assert await reach.missing("127.31.77.1", [19031]) == "port 19031: Connection refused"
