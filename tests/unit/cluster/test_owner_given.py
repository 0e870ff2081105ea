"""Learning from the store's history that a domain was given to us."""

from __future__ import annotations

import asyncio

import pytest

from veery.cluster import owner as owners
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Compacted
from veery.host import tasks
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord, Reservation
from veery.model.domain import DomainSpec

RECORD = DomainRecord(spec=DomainSpec(name="d"))


async def promised(store: MemoryStore) -> tuple[owners.Owner, Reservation]:
    """Domain d of node a, promised to b."""
    owner = await owners.claim(store, "d", "a", "boot", RECORD)
    return owner, await owners.reserve(store, "d", "m", "a", "b", revision=owner.revision)


async def test_commit_is_seen_whether_it_came_before_or_after() -> None:
    store = MemoryStore(RealClock())
    owner, promise = await promised(store)
    watching = asyncio.create_task(owners.given(store.view(), promise, "boot"))
    await asyncio.sleep(0.02)
    assert not watching.done()
    new = await owners.commit(store, owner, promise)
    async with asyncio.timeout(5):
        assert await watching == new
        assert await owners.given(store.view(), promise, "boot") == new


async def test_what_does_not_concern_us_is_not_taken_for_it() -> None:
    store = MemoryStore(RealClock())
    owner, promise = await promised(store)
    watching = asyncio.create_task(owners.given(store, promise, "boot"))
    await owners.claim(store, "d2", "b", "boot", RECORD)  # a name that begins as ours
    await owners.drop(store, promise)
    await owners.release(store, owner)
    await owners.claim(store, "d", "b", "another run", RECORD)
    await asyncio.sleep(0.05)
    assert not watching.done()
    await tasks.stop(watching)


async def test_a_promise_too_old_is_told() -> None:
    store = MemoryStore(RealClock())
    owner, promise = await promised(store)
    await owners.commit(store, owner, promise)
    store.compact(promise.revision + 1)
    with pytest.raises(Compacted):
        await owners.given(store, promise, "boot")


async def test_a_revision_that_is_no_longer_true_is_read_anew() -> None:
    store = MemoryStore(RealClock())
    owner, promise = await promised(store)
    await owners.drop(store, promise)
    stale = owner.revision + 50
    again = await owners.reserve(store, "d", "m2", "a", "b", revision=stale)
    assert await owners.reservation(store, "d") == again
    await owners.drop(store, again)
    with pytest.raises(owners.OwnedElsewhere):
        await owners.reserve(store, "d", "m3", "c", "b", revision=stale)
