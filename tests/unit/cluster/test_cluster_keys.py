"""Keys and their records."""

from __future__ import annotations

import pytest

from veery.cluster import keys
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Entry, Put
from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.model.cluster import Cluster, Owner
from veery.model.codec import encode
from veery.model.node import Node, Role


def test_a_record_with_a_revision_takes_it_from_the_store() -> None:
    put = keys.OWNERS.put("busybox", Owner(domain="busybox", node="test1", boot="b", revision=12))
    assert put.key == "owner/busybox"
    assert b"12" not in put.value
    assert keys.OWNERS.value(Entry("owner/busybox", put.value, 40, 30)).revision == 40


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 201])
def test_what_no_key_can_be_called(name: str) -> None:
    with pytest.raises(Refused, match="not a name"):
        keys.OWNERS.key(name)


def test_an_unreadable_record_says_which() -> None:
    with pytest.raises(Failed, match="unreadable Node record"):
        keys.NODES.value(Entry("node/x", b"{}", 1, 1))


def test_fields_of_a_newer_version_are_passed_over() -> None:
    entry = Entry("owner/a", b'{"domain":"a","node":"n","boot":"b","mood":"good"}', 3, 3)
    assert keys.OWNERS.value(entry) == Owner(domain="a", node="n", boot="b", revision=3)


async def test_nodes_are_found_by_name_and_by_address() -> None:
    store = MemoryStore(RealClock())
    for number in (2, 1):
        node = Node(name=f"test{number}", address=f"172.16.31.{number}", roles=(Role.HYPERVISOR,))
        await store.commit([], [keys.NODES.put(node.name, node)])
    assert list(await keys.NODES.all(store)) == ["test1", "test2"]
    assert (await keys.node_at(store, "172.16.31.2")).name == "test2"
    assert (await keys.node_at(store, "test1")).address == "172.16.31.1"
    with pytest.raises(Refused, match="no node 'test3'") as refused:
        await keys.node_at(store, "test3")
    assert "test1, test2" in refused.value.hint


async def test_the_cluster_has_no_record_before_its_first_daemon() -> None:
    store = MemoryStore(RealClock())
    with pytest.raises(Failed, match="no record yet"):
        await keys.cluster(store)
    record = Cluster(name="lab", id="1", ca="PEM", authority="iqn.2026-11.internal.lab")
    await store.commit([], [Put(keys.CLUSTER, encode(record))])
    assert await keys.cluster(store) == record
