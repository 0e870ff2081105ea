"""An operator's groups: rules that can be kept are taken, others refused in one line, and nothing changes then."""

from __future__ import annotations

import pytest

from veery.cluster.keys import DOMAINS, GROUPS, NODES
from veery.cluster.memory import MemoryStore
from veery.errors import Refused
from veery.ha import groups, orders
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec
from veery.model.ha import Group, GroupKind, Policy
from veery.model.node import Node, Role


@pytest.fixture
async def store() -> MemoryStore:
    """Two hypervisors, a storage node, and three domains."""
    store = MemoryStore(RealClock())
    roles = {"n1": Role.HYPERVISOR, "n2": Role.HYPERVISOR, "stor": Role.STORAGE}
    nodes = [NODES.put(name, Node(name=name, address=name, roles=(role,))) for name, role in roles.items()]
    domains = [DOMAINS.put(name, DomainRecord(spec=DomainSpec(name=name))) for name in ("a", "b", "c")]
    await store.commit([], [*nodes, *domains])
    return store


async def test_what_is_not_named_stays_as_it_was(store: MemoryStore) -> None:
    assert await groups.assign(store, "g", nodes=["n1", "n2", "n1"]) == Group(nodes=("n1", "n2"))
    assert await groups.assign(store, "g", strict=True) == Group(nodes=("n1", "n2"), strict=True)
    wanted = Group(kind=GroupKind.TOGETHER, nodes=("n1", "n2"), strict=True)
    assert await groups.assign(store, "g", kind=GroupKind.TOGETHER) == wanted
    assert await groups.assign(store, "g", nodes=[], strict=False) == Group(kind=GroupKind.TOGETHER)
    assert await GROUPS.get(store, "g") == Group(kind=GroupKind.TOGETHER)


async def test_groups_are_listed_with_their_domains_also_without_a_rule(store: MemoryStore) -> None:
    await groups.assign(store, "empty", kind=GroupKind.TOGETHER)
    await orders.set_policy(store, "b", Policy.RESTART, group="web")
    await orders.set_policy(store, "a", Policy.OFF, group="web")
    told = {each.name: (each.made, each.rule.kind, each.domains) for each in await groups.every(store)}
    assert told == {
        "empty": (True, GroupKind.TOGETHER, ()),
        "web": (False, GroupKind.APART, ("a", "b")),
    }


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["n1", "moon"], "group g: no node 'moon'"),
        ([""], "group g: no node ''"),
        (["stor"], "group g: stor runs no domains"),
    ],
)
async def test_nodes_that_cannot_be_are_refused(store: MemoryStore, nodes: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message) as raised:
        await groups.assign(store, "g", nodes=nodes)
    assert raised.value.hint
    assert await GROUPS.get(store, "g") is None


async def test_more_domains_than_nodes_are_not_kept_strictly_apart(store: MemoryStore) -> None:
    await orders.set_policy(store, "a", Policy.RESTART, group="g")
    await orders.set_policy(store, "b", Policy.RESTART, group="g")
    with pytest.raises(Refused, match=r"group g cannot be met: 2 domains \(a, b\) strictly apart on 1 node \(n1\)"):
        await groups.assign(store, "g", nodes=["n1"], strict=True)
    assert await GROUPS.get(store, "g") is None
    await groups.assign(store, "g", nodes=["n1"])  # as far as it can be
    await groups.assign(store, "g", nodes=[], strict=True)
    with pytest.raises(Refused, match=r"3 domains \(a, b, c\) strictly apart on 2 nodes"):
        await orders.set_policy(store, "c", Policy.RESTART, group="g")
    assert {each.name: each.domains for each in await groups.every(store)} == {"g": ("a", "b")}
    await groups.assign(store, "g", kind=GroupKind.TOGETHER)
    await orders.set_policy(store, "c", Policy.RESTART, group="g")


async def test_a_group_goes_when_no_domain_is_in_it(store: MemoryStore) -> None:
    with pytest.raises(Refused, match="no rule for group 'g'"):
        await groups.delete(store, "g")
    await groups.assign(store, "g", strict=True)
    await orders.set_policy(store, "a", Policy.RESTART, group="g")
    with pytest.raises(Refused, match="group g contains a"):
        await groups.delete(store, "g")
    await orders.set_policy(store, "a", Policy.RESTART, group="")
    await groups.delete(store, "g")
    assert await groups.every(store) == ()


async def test_a_name_that_no_key_can_have_is_refused(store: MemoryStore) -> None:
    for name in ("a/b", "", "x\n"):
        with pytest.raises(Refused, match="not a name"):
            await groups.assign(store, name, strict=True)
