"""What a node tells the brain about its domains while the store comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from veery.cluster.keys import OWNERS, POLICIES, RUNS
from veery.cluster.memory import MemoryStore
from veery.cluster.owner import claim
from veery.cluster.store import StoreUnavailable
from veery.ha.wanted import WantedRecords
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec
from veery.model.ha import HaRecord, Policy, RunRecord


class Slow(MemoryStore):
    """A store whose next commit waits until `go` is set."""

    go: asyncio.Event | None = None

    async def commit(self, conditions: Sequence[Any], operations: Sequence[Any]) -> Any:
        go, self.go = self.go, None
        if go is not None:
            await go.wait()
        return await super().commit(conditions, operations)


async def _policy(store: MemoryStore, **values: Any) -> None:
    await store.commit([], [POLICIES.put("web", HaRecord(policy=Policy.RESTART, **values))])


async def _wanted(store: MemoryStore) -> bool:
    record = await POLICIES.get(store, "web")
    assert record is not None
    return record.wanted


async def test_what_is_said_without_the_store_is_written_later() -> None:
    store = Slow(RealClock())
    await _policy(store)
    wanted = WantedRecords(store, "a")
    store.set_available(False)
    await wanted.say("web", wanted=False)
    assert wanted.unsaid() == {"web"}
    store.set_available(True)
    await wanted.settle("web")
    assert (wanted.unsaid(), await _wanted(store)) == (frozenset(), False)


async def test_a_later_word_is_not_lost_behind_an_earlier_one() -> None:
    """A destroy waits for the store. Meanwhile the domain is created again, and the store does not take that yet."""
    store = Slow(RealClock())
    await _policy(store)
    wanted = WantedRecords(store, "a")
    go = store.go = asyncio.Event()
    first = asyncio.create_task(wanted.say("web", wanted=False))
    await asyncio.sleep(0.01)
    store.set_available(False)
    await wanted.say("web", wanted=True)
    store.set_available(True)
    go.set()
    await first
    assert wanted.unsaid() == {"web"}
    await wanted.settle("web")
    assert (wanted.unsaid(), await _wanted(store)) == (frozenset(), True)


async def test_a_name_is_released_only_after_the_word_about_it() -> None:
    store = Slow(RealClock())
    await _policy(store)
    owner = await claim(store, "web", "a", "boot", DomainRecord(spec=DomainSpec(name="web")))
    wanted = WantedRecords(store, "a")
    store.set_available(False)
    await wanted.say("web", wanted=False)
    with pytest.raises(StoreUnavailable):
        await wanted.give_back(owner)
    store.set_available(True)
    await wanted.give_back(owner)
    assert await OWNERS.get(store, "web") is None
    assert not await _wanted(store)


@pytest.mark.parametrize(("cut_short", "tries"), [(True, 1), (False, 2)])
async def test_a_start_that_the_store_cut_short_does_not_count(cut_short: bool, tries: int) -> None:
    store = Slow(RealClock())
    await _policy(store)
    owner = await claim(store, "web", "a", "boot", DomainRecord(spec=DomainSpec(name="web")))
    await store.commit([], [RUNS.put("web", RunRecord(node="a", tries=2))])
    wanted = WantedRecords(store, "a")
    if cut_short:
        wanted.cut_short("boot")
    await wanted.give_back(owner)
    run = await RUNS.get(store, "web")
    assert run is not None and run.tries == tries
