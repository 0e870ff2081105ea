"""Fences in the store: made once, lifted only by who is clean, and never together with a domain's being taken."""

from __future__ import annotations

import pytest

from veery.cluster import fencing, keys, owner
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Store, Unchanged
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.model.cluster import Owner
from veery.model.fence import Clean, Fenced
from veery.model.node import Node, Role
from veery.model.volume import Initiator


@pytest.fixture
async def store() -> Store:
    made = MemoryStore(RealClock())
    node = Node(name="test1", address="172.16.31.1", roles=(Role.HYPERVISOR,))
    who = Initiator(node="test1", iqn="iqn.2026-11.lab:node:test1", user="test1", password="secret")
    await made.commit([], [keys.NODES.put("test1", node), keys.INITIATORS.put("test1", who)])
    return made


async def _fence(store: Store) -> Fenced:
    return await fencing.begin(store, "test1", by="test", epoch=1000.0)


async def _runs(store: Store, domain: str) -> Owner:
    await store.commit([], [keys.OWNERS.put(domain, Owner(domain=domain, node="test1", boot="b"))])
    found = await owner.read(store, domain)
    assert found is not None
    return found


def _clean(fence: Fenced, *, stale: tuple[str, ...] = (), **kept: int) -> Clean:
    return Clean(node="test1", revision=1, fence=fence.created, kept=kept, stale=stale)


async def test_a_fence_is_made_once(store: Store) -> None:
    one = await _fence(store)
    assert (one.iqn, one.shut) == ("iqn.2026-11.lab:node:test1", True)
    again = await fencing.begin(store, "test1", by="other", epoch=2000.0)
    assert again == one
    with pytest.raises(Refused, match="no node 'test9'"):
        await fencing.begin(store, "test9", by="test", epoch=1000.0)


async def test_who_has_stale_copies_stays_out(store: Store) -> None:
    fence = await _fence(store)
    with pytest.raises(Refused, match="stale copies of busybox"):
        await fencing.lift(store, fence, _clean(fence, stale=("busybox",)))
    with pytest.raises(Refused, match="reports on another fence"):
        await fencing.lift(store, fence, Clean(node="test1", revision=1, fence=1, kept={}, stale=()))
    assert await fencing.require(store, "test1") == fence
    await fencing.lift(store, fence, _clean(fence))
    with pytest.raises(Refused, match="test1 is not fenced"):
        await fencing.require(store, "test1")


async def test_of_lifting_and_taking_one_succeeds(store: Store) -> None:
    mine = await _runs(store, "busybox")
    fence = await _fence(store)
    take = [fencing.standing(fence), Unchanged(keys.OWNERS.key("busybox"), mine.revision)]

    assert (await store.commit(take, [Delete(keys.OWNERS.key("busybox"))])).held
    with pytest.raises(Refused, match="changed meanwhile"):
        await fencing.lift(store, fence, _clean(fence, busybox=mine.revision))

    await fencing.lift(store, fence, _clean(fence))
    mine = await _runs(store, "wren")
    fence = await _fence(store)
    await fencing.lift(store, fence, _clean(fence, wren=mine.revision))
    take = [fencing.standing(fence), Unchanged(keys.OWNERS.key("wren"), mine.revision)]
    assert not (await store.commit(take, [Delete(keys.OWNERS.key("wren"))])).held
