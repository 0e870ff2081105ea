"""A copy of the store, kept by one watch: as true as a scan, and far cheaper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from veery.cluster.memory import MemoryStore
from veery.cluster.store import Change, Committed, Delete, Put, Snapshot, StoreUnavailable, Unchanged
from veery.cluster.watch_cache import LATE_READS_MAX, WatchCache
from veery.ha.simulation.clock import run
from veery.host.tasks import stop


class LoopClock:
    """The clock of the virtual event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        return self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Counting(MemoryStore):
    """A memory store that counts how often it is read whole."""

    scans = 0

    async def scan(self, prefix: str) -> Snapshot:
        """As Store.scan."""
        self.scans += 1
        return await super().scan(prefix)


@asynccontextmanager
async def following(mirror: WatchCache) -> AsyncIterator[None]:
    task = asyncio.create_task(mirror.run())
    try:
        yield
    finally:
        await stop(task)


def play(work: Coroutine[Any, Any, None]) -> None:
    run(work)


async def put(store: MemoryStore, *keys: str) -> Committed:
    return await store.commit([], [Put(key, b"1") for key in keys])


async def same(mirror: WatchCache, store: MemoryStore) -> None:
    """What `current` promises, judged by a scan."""
    await mirror.current()
    snapshot = await MemoryStore.scan(store, "")
    found = {key: entry for prefix in ("a/", "b/", "") for key, entry in mirror.under(prefix).items()}
    assert found == {entry.key: entry for entry in snapshot.entries}
    assert mirror.revision == snapshot.revision


def test_it_is_what_the_store_was_when_it_was_asked_and_the_store_is_read_whole_once() -> None:
    async def work() -> None:
        store = Counting(LoopClock())
        mirror = WatchCache(store)
        await put(store, "a/1", "b/1", "single")
        async with following(mirror):
            await same(mirror, store)
            for number in range(20):
                await put(store, f"a/{number}", f"b/{number}")
                await store.commit([], [Delete(f"b/{number - 3}"), Put("single", b"2")])
                await same(mirror, store)
            assert mirror.get("b/2") is None
            assert mirror.get("nothing/here") is None
        assert store.scans == 1

    play(work())


def test_a_key_bound_to_a_lease_goes_with_it() -> None:
    async def work() -> None:
        store = Counting(LoopClock())
        mirror = WatchCache(store)
        lease = await store.grant(5)
        await store.commit([], [Put("a/1", b"1", lease)])
        async with following(mirror):
            await same(mirror, store)
            await asyncio.sleep(6)
            await same(mirror, store)
            assert mirror.get("a/1") is None
        assert store.scans == 1

    play(work())


def test_without_its_watch_it_reads_the_store_whole() -> None:
    async def work() -> None:
        store = Counting(LoopClock())
        mirror = WatchCache(store)
        for number in range(3):
            await put(store, f"a/{number}")
            await same(mirror, store)
        assert store.scans == 3
        await same(mirror, store)
        assert store.scans == 3, "nothing has changed"

    play(work())


def test_a_watch_that_lags_is_given_time_and_then_begun_anew() -> None:
    class Lagging(Counting):
        """Its first watch hears nothing."""

        watches = 0

        def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
            """As Store.watch."""
            self.watches += 1
            return super().watch("nothing/" if self.watches == 1 else prefix, after)

    async def work() -> None:
        store = Lagging(LoopClock())
        mirror = WatchCache(store)
        async with following(mirror):
            await same(mirror, store)
            for number in range(LATE_READS_MAX):
                await asyncio.sleep(1)
                assert store.watches == 1
                await put(store, f"a/{number}")
                await same(mirror, store)
                await same(mirror, store)  # nothing has changed: no sign of the watch's being well
            await asyncio.sleep(1)
            for number in range(5):
                await put(store, f"b/{number}")
                await same(mirror, store)
        assert store.watches == 2
        assert store.scans == 1 + LATE_READS_MAX

    play(work())


def test_after_a_compaction_it_begins_anew() -> None:
    async def work() -> None:
        store = Counting(LoopClock())
        mirror = WatchCache(store)
        await put(store, "a/1")
        async with following(mirror):
            await same(mirror, store)
            store.set_available(False)  # the watch hears nothing
            other = store.view()
            await put(other, "a/2")
            store.compact((await put(other, "a/3")).revision)
            with pytest.raises(StoreUnavailable):
                await mirror.current()
            store.set_available(True)
            await same(mirror, store)
            await put(store, "a/4")
            await same(mirror, store)
        assert store.scans == 2

    play(work())


def test_a_store_that_went_back_in_time_is_read_anew() -> None:
    class Restored(Counting):
        """Another store in the place of the first, as after a restore from a backup."""

        def become(self, other: MemoryStore) -> None:
            """Be `other` from now on."""
            self._data = other._data

    async def work() -> None:
        clock = LoopClock()
        store, backup = Restored(clock), MemoryStore(clock)
        mirror = WatchCache(store)
        for number in range(5):
            await put(store, f"a/{number}")
        await put(backup, "b/1")
        async with following(mirror):
            await same(mirror, store)
            store.become(backup)
            await same(mirror, store)
            assert mirror.get("a/1") is None
            await put(store, "b/2")
            await same(mirror, store)

    play(work())


def test_what_is_unseen_is_not_kept_and_no_reason_to_read_the_store_whole() -> None:
    async def work() -> None:
        store = Counting(LoopClock())
        mirror = WatchCache(store, ("b/",))
        async with following(mirror):
            await put(store, "a/1", "b/1")
            await mirror.current()
            revision = (await put(store, "b/2")).revision
            await mirror.current()
            assert mirror.revision == revision
            assert list(mirror.under("a/")) == ["a/1"]
            assert list(mirror.under("b/")) == []
        assert store.scans == 1

    play(work())


def test_no_revision_is_seen_half() -> None:
    """Two keys that always change together are never seen apart, whenever one looks."""

    async def work() -> None:
        store = MemoryStore(LoopClock())
        mirror = WatchCache(store)

        async def write() -> None:
            for number in range(200):
                value = str(number).encode()
                operations: Sequence[Put] = [Put("a/1", value), Put("b/1", value)]
                await store.commit([Unchanged("c", 0)], operations)

        async with following(mirror):
            await put(store, "a/1", "b/1")
            await mirror.current()
            writing = asyncio.create_task(write())
            looks = 0
            while not writing.done():
                await mirror.current()
                pair = mirror.get("a/1"), mirror.get("b/1")
                assert pair[0] is not None
                assert pair[1] is not None
                assert (pair[0].value, pair[0].revision) == (pair[1].value, pair[1].revision)
                looks += 1
            assert looks > 20
            await writing

    play(work())
