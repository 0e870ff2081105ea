"""What the store in memory has beyond the contract: virtual time, and faults that are ordered."""

from __future__ import annotations

import asyncio
import heapq

import pytest

from veery.cluster import keys
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Change, Put, StoreUnavailable
from veery.errors import OutcomeUnknown, Refused
from veery.host.clock import RealClock


class VirtualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 0.0
        self._waiting: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def now(self) -> float:
        return self.time

    def epoch(self) -> float:
        return 1_800_000_000 + self.time

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        event = asyncio.Event()
        heapq.heappush(self._waiting, (self.time + seconds, self._count, event))
        await event.wait()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking sleepers in their order."""
        end = self.time + seconds
        await _settle()
        while self._waiting and self._waiting[0][0] <= end:
            self.time, _, event = heapq.heappop(self._waiting)
            event.set()
            await _settle()
        self.time = end
        await _settle()


async def _settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_lease_ends_by_virtual_time_and_a_watch_hears_it() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    heard: list[Change] = []

    async def watch() -> None:
        async for change in store.view().watch("", 0):
            heard.append(change)

    watching = asyncio.create_task(watch())
    lease = await store.grant(10)
    await store.commit([], [Put("alive/a", b"", lease)])
    await clock.advance(9)
    assert await store.keep(lease) == 10
    await clock.advance(9.9)
    assert [change.entry is None for change in heard] == [False]
    await clock.advance(0.2)
    assert [change.entry is None for change in heard] == [False, True]
    assert await store.keep(lease) == 0
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_one_view_is_cut_off_and_catches_up() -> None:
    store = MemoryStore(RealClock())
    other = store.view()
    heard: list[str] = []

    async def watch() -> None:
        async for change in other.watch("", 0):
            heard.append(change.key)

    watching = asyncio.create_task(watch())
    await store.commit([], [Put("a", b"")])
    await _settle()
    other.set_available(False)
    for call in (other.get("a"), other.scan(""), other.commit([], [Put("x", b"")]), other.grant(5), other.keep(1)):
        with pytest.raises(StoreUnavailable):
            await call
    await store.commit([], [Put("b", b"")])
    await _settle()
    assert heard == ["a"]
    other.set_available(True)
    await _settle()
    assert heard == ["a", "b"]
    assert await store.get("x") is None
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize("done", [True, False])
async def test_one_answer_is_lost(done: bool) -> None:
    store = MemoryStore(RealClock())
    store.lose_next_answer(done=done)
    with pytest.raises(OutcomeUnknown):
        await store.commit([], [Put("a", b"")])
    assert (await store.get("a") is not None) == done
    assert (await store.commit([], [Put("a", b"2")])).held


async def test_presence_is_judged_by_the_nodes_own_clock() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    mine = store.view()
    heart = Heartbeat(mine, "test1", ttl=9, clock=clock)
    assert heart.lost()
    beating = asyncio.create_task(heart.run())
    await clock.advance(0)
    assert not heart.lost()
    assert await keys.ALIVE.get(store, "test1") is not None
    for _ in range(10):
        await clock.advance(4)
        assert heart.remaining() >= 5.9
    mine.set_available(False)
    await clock.advance(5)
    assert not heart.lost()
    await clock.advance(4)
    assert heart.lost()
    assert await keys.ALIVE.get(store, "test1") is None
    mine.set_available(True)
    await clock.advance(1)
    assert not heart.lost()
    alive = await keys.ALIVE.get(store, "test1")
    assert alive is not None
    assert alive.started == 1_800_000_000
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    await heart.withdraw()
    assert heart.lost()
    assert await keys.ALIVE.get(store, "test1") is None


async def test_a_presence_whose_key_is_not_sure_to_be_written_is_written_again() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    heart = Heartbeat(store, "test1", ttl=9, clock=clock)
    store.lose_next_answer(done=False)
    beating = asyncio.create_task(heart.run())
    await clock.advance(0.1)
    assert heart.lost()
    await clock.advance(0.5)
    assert not heart.lost()
    assert await keys.ALIVE.get(store, "test1") is not None
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


async def test_without_a_lease_nothing_may_be_started() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    mine = store.view()
    heart = Heartbeat(mine, "test1", ttl=9, clock=clock)
    early = asyncio.create_task(heart.require())
    await clock.advance(0.5)
    assert not early.done(), "it waits a little for the first"
    beating = asyncio.create_task(heart.run())
    await clock.advance(0.5)
    await early
    await heart.require()
    mine.set_available(False)
    await clock.advance(5)
    await heart.require()  # it holds still
    await clock.advance(5)
    late = asyncio.create_task(heart.require())
    await clock.advance(3)
    with pytest.raises(Refused, match="test1 starts nothing: its lease has lapsed"):
        await late
    mine.set_available(True)
    await clock.advance(1)
    await heart.require()
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
