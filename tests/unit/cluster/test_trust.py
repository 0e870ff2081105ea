"""A store that went back is noticed, doubted by all, and trusted again once it was adopted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from veery.cluster import owner as gate
from veery.cluster.keys import EVENTS, INCARNATION, INCARNATIONS, OWNERS
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Compacted, Put, StoreRestored
from veery.cluster.trust import Seen, SeenFile, Sight, Standing, Trust, misfit
from veery.cluster.watch_cache import WatchCache
from veery.errors import OutcomeUnknown
from veery.ha.simulation.clock import run
from veery.host.tasks import stop
from veery.model.cluster import Incarnation

SEEN = Seen(cluster="c", incarnation="x", revision=100)


class LoopClock:
    """The clock of the virtual event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        return 1_800_000_000.0 + self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Disk:
    """What outlives a daemon."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def load(self) -> Seen | None:
        return self.seen

    async def save(self, seen: Seen) -> None:
        self.seen = seen


def sight(revision: int = 100, cluster: str = "c", **incarnation: Any) -> Sight:
    return Sight(cluster=cluster, revision=revision, incarnation=Incarnation(**{"id": "x", **incarnation}))


@pytest.mark.parametrize(
    ("seen", "now", "said"),
    [
        (None, sight(5), ""),
        (SEEN, sight(100), ""),
        (SEEN, sight(99), "at revision 99, this node has seen 100"),
        (SEEN, sight(100, "d"), "cluster id is d"),
        (SEEN, sight(200, id="y"), "incarnation y, this node knows x"),
        (SEEN, sight(50, "d", id="y", before=("w", "x")), ""),
        (SEEN, sight(200, doubt="test2: it went back"), "test2: it went back"),
        (None, sight(200, doubt="test2: it went back"), "test2: it went back"),
        (SEEN, sight(200, id="y", before=("x",), doubt="again"), "again"),
        (SEEN, Sight(cluster="c", revision=200, incarnation=None), "lost its incarnation"),
        (Seen(cluster="c", incarnation="", revision=9), sight(9), ""),
        (Seen(cluster="c", incarnation="", revision=9), sight(8), "at revision 8"),
        (Seen(cluster="c", incarnation="", revision=9), sight(8, id="y", before=("",)), ""),
    ],
)
def test_whether_a_store_fits(seen: Seen | None, now: Sight, said: str) -> None:
    why = misfit(seen, now)
    assert said in why if said else not why


class Node:
    """One node's way to the store."""

    def __init__(self, name: str, data: MemoryStore, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.trust = Trust(name, self.disk, LoopClock())
        self.store = data.view(self.trust)

    async def mark(self, why: str) -> None:
        await self.store.mark(self.trust, why, LoopClock().epoch())

    def begin(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.trust.run(self.store.look, self.mark))


async def made() -> MemoryStore:
    data = MemoryStore(LoopClock())
    await data.commit([], [INCARNATIONS.put(INCARNATION, Incarnation(id="x"))])
    return data


def played(work: Coroutine[Any, Any, None]) -> None:
    run(work)


def test_a_claim_on_a_store_that_went_back_is_refused() -> None:
    async def story() -> None:
        data = await made()
        one = Node("one", data)
        copy = data.backup()
        await gate.claim(one.store, "web", "one", "b1", None)
        data.restore(copy)
        with pytest.raises(OutcomeUnknown):  # it makes up for the revision that is lost, and is found out all the same
            await gate.claim(one.store, "db", "one", "b2", None)
        data.restore(copy)
        with pytest.raises(StoreRestored):
            await gate.claim(one.store, "db", "one", "b3", None)
        assert await OWNERS.get(data, "db") is None
        with pytest.raises(StoreRestored):
            await one.store.grant(5)

    played(story())


def test_a_node_that_cannot_tell_by_itself_is_stopped_by_the_doubt_of_another() -> None:
    async def story() -> None:
        data = await made()
        one, two = Node("one", data), Node("two", data)
        await two.store.get("x")
        copy = data.backup()
        await gate.claim(one.store, "web", "one", "b1", None)
        data.restore(copy)
        task = one.begin()
        await asyncio.sleep(0.1)
        with pytest.raises(StoreRestored, match="one: the store is at revision"):
            await gate.claim(two.store, "web", "two", "b2", None)
        assert await OWNERS.get(data, "web") is None
        events = await EVENTS.all(data)
        assert ["veery cluster adopt --plan" in each.text for each in events.values()] == [True]
        await stop(task)

    played(story())


def test_it_is_noticed_by_a_daemon_that_has_only_just_begun() -> None:
    async def story() -> None:
        data = await made()
        disk = Disk()
        one = Node("one", data, disk)
        copy = data.backup()
        task = one.begin()
        await gate.claim(one.store, "web", "one", "b1", None)
        await asyncio.sleep(5)
        await stop(task)
        data.restore(copy)
        anew = Node("one", data, disk)
        with pytest.raises(StoreRestored):
            await anew.store.get("x")
        assert anew.trust.restored and not anew.trust.stands()

    played(story())


def test_what_was_done_there_before_it_was_noticed_is_told_as_unknown() -> None:
    """Only the answer tells, and the transaction was done: the sender of a COMMIT must not go on."""

    async def story() -> None:
        data = await made()
        one = Node("one", data)
        copy = data.backup()
        await one.store.commit([], [Put("a", b"1")])
        await one.store.commit([], [Put("a", b"2")])
        data.restore(copy)
        with pytest.raises(OutcomeUnknown):
            await one.store.commit([], [Put("b", b"1")])

    played(story())


def test_an_adopted_store_is_trusted_again_and_what_was_read_before_is_void() -> None:
    async def story() -> None:
        data = await made()
        one = Node("one", data)
        mirror = WatchCache(one.store)
        follow = asyncio.ensure_future(mirror.run())
        copy = data.backup()
        await gate.claim(one.store, "web", "one", "b1", None)
        await mirror.current()
        watch = one.store.watch("owner/", 0)
        assert (await anext(watch)).key == "owner/web"
        data.restore(copy)
        task = one.begin()
        await asyncio.sleep(3)
        assert one.trust.stands()
        with pytest.raises(StoreRestored):
            await mirror.current()
        for number in range(20):  # it gets further than it ever was
            await data.commit([], [Put(f"x/{number}", b"")])
        await data.commit([], [INCARNATIONS.put(INCARNATION, Incarnation(id="y", before=("x",)))])
        await asyncio.sleep(3)
        assert one.trust.standing is Standing.FITS
        await mirror.current()
        assert mirror.get("owner/web") is None and mirror.get("x/3") is not None
        with pytest.raises(Compacted):
            await anext(watch)
        assert one.disk.seen is not None and one.disk.seen.incarnation == "y"
        await stop(task, follow)

    played(story())


def test_two_answers_that_cross_are_no_finding() -> None:
    async def story() -> None:
        data = await made()
        one = Node("one", data)
        await one.store.revision()
        early = one.trust.sent()
        await one.store.commit([], [Put("a", b"1")])
        one.trust.heard(early, "memory", early.revision)
        assert not one.trust.restored

    played(story())


def test_an_older_look_that_is_answered_last_is_no_finding() -> None:
    """Two looks are under way while the first daemon writes the incarnation; the one from before is answered last."""

    async def story() -> None:
        trust, before = Trust("one", Disk(), LoopClock()), Sight(cluster="c", revision=5, incarnation=None)
        early = trust.looked()
        trust.look(trust.looked(), dataclasses.replace(before, revision=3))
        trust.look(trust.looked(), Sight(cluster="c", revision=9, incarnation=Incarnation(id="x", revision=7)))
        trust.look(early, before)
        assert trust.standing is Standing.FITS
        assert trust.seen is not None
        assert trust.seen.incarnation == "x"
        trust.look(trust.looked(), dataclasses.replace(before, revision=9))
        assert trust.restored, "a look that began after that finds the incarnation lost"

    played(story())


def test_an_unreadable_incarnation_is_a_doubt() -> None:
    async def story() -> None:
        data = await made()
        await data.commit([], [Put(INCARNATION, b"{")])
        with pytest.raises(StoreRestored):
            await Node("one", data).store.get("x")

    played(story())


def test_the_file_outlives_the_daemon_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    file = SeenFile(tmp_path / "store.json")
    assert file.load() is None
    asyncio.run(file.save(SEEN))
    assert SeenFile(tmp_path / "store.json").load() == SEEN
    for data in (b"", b"\0" * 300, b"{"):
        (tmp_path / "store.json").write_bytes(data)
        assert file.load() is None
