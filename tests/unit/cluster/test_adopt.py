"""What adopting a restored store would write, and what stands in its way."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from veery.cluster import adopt
from veery.cluster.keys import (
    CHAP_SEALED,
    CLUSTER,
    DOMAINS,
    FENCES,
    INCARNATION,
    INCARNATIONS,
    INITIATORS,
    NODES,
    OWNERS,
    RESERVATIONS,
)
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put, StoreUnavailable
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.model.adoption import CopyHere, Inventory
from veery.model.cluster import Cluster, DomainRecord, Incarnation, Owner, Reservation
from veery.model.codec import encode
from veery.model.domain import DomainSpec
from veery.model.ha import FenceRecord, FenceState
from veery.model.node import Node

DOUBT = Incarnation(id="x", before=("w",), doubt="one: it went back", by="one", revision=7)


def records(**changes: Any) -> adopt.Records:
    web = Owner(domain="web", node="one", boot="b1", revision=3)
    base: dict[str, Any] = {
        "incarnation": DOUBT,
        "owners": {"web": web},
        "domains": {},
        "nodes": {},
        "fences": (),
        "moves": {},
    }
    return adopt.Records(**{**base, **changes})


def says(node: str, *domains: str, **changes: Any) -> Inventory:
    copies = tuple(CopyHere(domain=name) for name in domains)
    return Inventory(**{"node": node, "restored": True, "copies": copies, "incarnations": ("x",), **changes})


def planned(*told: Inventory, silent: str = "", lost: str = "", **changes: Any) -> adopt.Adoption:
    quiet = dict.fromkeys(silent.split(), "no answer")
    return adopt.plan(records(**changes), {each.node: each for each in told}, quiet, lost.split())


def test_the_owner_keys_say_what_runs_where() -> None:
    made = planned(says("one"), says("two", "web", "new"))
    assert not made.refusals
    assert {(each.domain, each.node) for each in made.owners} == {("web", "two"), ("new", "two")}
    assert "web runs on two: the store says one" in made.changes
    assert "new runs on two: the store says no owner" in made.changes
    assert made.before == ("", "x", "w")


def test_a_run_that_the_store_knows_keeps_its_name() -> None:
    made = planned(says("one", "web"))
    assert [each.boot for each in made.owners] == ["b1"]
    assert not made.changes


@pytest.mark.parametrize(
    ("told", "others", "said"),
    [
        ([says("one", "web"), says("two", "web")], {}, "web is on one and on two"),
        ([says("one", "web")], {"silent": "two"}, "two does not answer"),
        ([says("one", "web")], {"lost": "one"}, "one answers, so it is not lost"),
        ([says("one", "web")], {"lost": "three"}, "no node 'three'"),
        ([says("one", "web", restored=False)], {}, "one has not noticed yet"),
        ([says("one", "web", shut=("stor",))], {}, "veery --node one destroy web"),
        ([says("one", copies=(CopyHere(domain="web", busy=True),))], {}, "an operation on web is in progress on one"),
        ([says("one")], {"incarnation": Incarnation(id="x")}, "nothing to adopt"),
        ([says("one")], {"incarnation": None}, "nothing to adopt"),
        ([says("one")], {"whole": False}, "it is empty"),
    ],
)
def test_what_stands_in_its_way(told: list[Inventory], others: dict[str, Any], said: str) -> None:
    assert any(said in each for each in planned(*told, **others).refusals)


def test_half_a_copy_is_no_run() -> None:
    half = says("two", copies=(CopyHere(domain="web", incoming=True),))
    made = planned(
        says("one", "web"), half, moves={"web": Reservation(domain="web", move="m", source="one", target="two")}
    )
    assert not made.refusals
    assert [(each.domain, each.node) for each in made.owners] == [("web", "one")]
    assert "the reservation of the move of web is deleted" in made.changes


def test_what_runs_nowhere_is_nobodys_unless_its_node_is_lost() -> None:
    assert planned(says("one")).free == ("web",)
    lost = planned(says("two"), silent="one", lost="one")
    assert (lost.free, lost.lost, lost.refusals) == ((), ("one",), ())


def test_a_fence_goes_where_domains_run_and_stays_where_none_do() -> None:
    made = planned(says("one", "web"), says("two"), fences=("one", "two"))
    assert made.lift == ("one",)


def test_a_record_that_went_back_is_written_anew() -> None:
    old, new = DomainSpec(name="web", memory=64), DomainSpec(name="web", memory=128)
    told = says("one", copies=(CopyHere(domain="web", spec=new),))
    assert planned(told, domains={"web": DomainRecord(spec=old)}).specs == {"web": new}
    assert planned(told, domains={"web": DomainRecord(spec=new)}).specs == {}


def test_it_is_written_and_the_new_incarnation_comes_last() -> None:
    async def story() -> None:
        data = MemoryStore(RealClock())
        fence = FenceRecord(state=FenceState.FENCED, at=1.0)
        domains = [OWNERS.put(f"d{number}", Owner(domain=f"d{number}", node="one", boot="b")) for number in range(120)]
        move = Reservation(domain="d1", move="m", source="one", target="two")
        await data.commit([], [INCARNATIONS.put(INCARNATION, DOUBT), FENCES.put("two", fence), *domains])
        await data.commit([], [Put(CLUSTER, b"{}")])
        await data.commit([], [RESERVATIONS.put("d1", move), NODES.put("one", Node(name="one", address="a", roles=()))])
        found = await adopt.read(data)
        runs = [f"d{number}" for number in range(1, 120)]
        spec = DomainSpec(name="d1", memory=64)
        copies = tuple(CopyHere(domain=name, spec=spec if name == "d1" else None) for name in runs)
        told = {"two": says("two", copies=copies), "one": says("one")}
        made = adopt.plan(found, told, {"three": "no answer"}, ["three"])
        new = await adopt.write(data, found, made, by="me", epoch=1.0)
        owners = await OWNERS.all(data)
        assert {owner.node for owner in owners.values()} == {"two"} and len(owners) == 119
        fences = await FENCES.all(data)
        assert sorted(fences) == ["three"] and fences["three"].state is FenceState.FENCED
        assert await RESERVATIONS.all(data) == {}
        assert (await DOMAINS.all(data))["d1"].spec == spec
        now = await INCARNATIONS.get(data, INCARNATION)
        assert now is not None and (now.id, now.doubt) == (new, "") and "x" in now.before
        with pytest.raises(StoreUnavailable):  # a second one, which read the same doubt
            await adopt.write(data, found, made, by="me", epoch=1.0)

    asyncio.run(story())


def test_nothing_is_written_where_something_stands_in_its_way() -> None:
    async def story() -> None:
        data = MemoryStore(RealClock())
        with pytest.raises(Refused, match="does not answer"):
            await adopt.write(data, records(), planned(silent="two"), by="me", epoch=1.0)
        assert (await data.scan("")).entries == ()

    asyncio.run(story())


@pytest.mark.parametrize("sealed", [False, True])
def test_a_node_that_the_store_forgot_gives_its_password_itself_where_they_are_sealed(sealed: bool) -> None:
    """Its running domains have the one that it keeps; an older veery has none but that of the store."""

    async def story() -> None:
        data = MemoryStore(RealClock())
        cluster = Cluster(name="lab", id="1", ca="", authority="iqn.2026-11.internal.lab")
        marks = [Put(CHAP_SEALED, b"1")] if sealed else []
        await data.commit([], [INCARNATIONS.put(INCARNATION, DOUBT), Put(CLUSTER, encode(cluster)), *marks])
        found = await adopt.read(data)
        made = replace(
            adopt.plan(found, {"one": says("one")}, {}, []), nodes=(Node(name="new", address="a", roles=()),)
        )
        await adopt.write(data, found, made, by="me", epoch=1.0)
        own = await INITIATORS.get(data, "new")
        assert own is not None
        assert (own.iqn, own.user) == ("iqn.2026-11.internal.lab:node:new", "new")
        assert bool(own.password) != sealed

    asyncio.run(story())
