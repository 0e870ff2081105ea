"""One suite for every Store: etcd's, on a real etcd, and the one in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from veery.cluster import identity, server
from veery.cluster.etcd import EtcdStore
from veery.cluster.members import open_store
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Change, Compacted, Delete, Put, Store, StoreUnavailable, Unchanged
from veery.cluster.trust import SeenFile, Trust
from veery.config.settings import Api, Etcd, Settings
from veery.errors import Failed
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.process import Process
from veery.model.node import Role

TTL = 3  # etcd's least: one and a half election timeouts


@dataclass
class Rig:
    """A store to try, a second access to the same data, and a way to have it forget its history."""

    store: Store
    other: Store
    compact: Callable[[int], Awaitable[None]]


def _free_ports(address: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """One real etcd with mutual TLS, as `veery init` and the daemon make it: its URL and its node's TLS folder."""
    folder = tmp_path_factory.mktemp("etcd")
    api, client, peer = _free_ports("127.0.0.1", 3)
    settings = Settings(
        state=str(folder / "state"),
        run=str(folder / "run"),
        api=Api(port=api),
        etcd=Etcd(client_port=client, peer_port=peer),
    )
    who = identity.init(settings, name="one", address="127.0.0.1", roles=[Role.VOTER], driver="", cluster="contract")
    process = Process.spawn(server.command(settings, who), log_file=folder / "etcd.log", env=server.environment())

    async def wait() -> None:
        store = open_store(settings, who)
        await server.ready(store.voters, who.voters[0], deadline=30)
        await store.close()

    try:
        asyncio.run(wait())
        yield who.voters[0], folder / "state" / "tls"
    finally:
        asyncio.run(process.stop(grace=0))


_numbers = itertools.count()


@pytest.fixture(params=["memory", "etcd", "memory trusted", "etcd trusted"])
async def rig(request: pytest.FixtureRequest, etcd: tuple[str, Path], tmp_path: Path) -> AsyncIterator[Rig]:
    trusts = [Trust(name, SeenFile(tmp_path / name), RealClock()) for name in ("one", "two")]
    first_trust, second_trust = trusts if request.param.endswith("trusted") else (None, None)
    if request.param.startswith("memory"):
        data = MemoryStore(RealClock())
        store, other = data.view(first_trust), data.view(second_trust)

        async def compact(revision: int) -> None:
            store.compact(revision)

        yield Rig(store, other, compact)
        await store.close()
        await other.close()
        return
    url, folder = etcd
    prefix = f"/contract-{next(_numbers)}/".encode()
    first, second = (
        EtcdStore([url], tls=tls.client_context(folder), deadline=10, prefix=prefix, trust=trust)
        for trust in (first_trust, second_trust)
    )

    async def compact_etcd(revision: int) -> None:
        await first.gateway.write("/v3/kv/compaction", {"revision": revision, "physical": True}, dict)

    yield Rig(first, second, compact_etcd)
    await first.close()
    await second.close()


async def _take(store: Store, prefix: str, after: int, count: int) -> list[Change]:
    """The first `count` changes of a watch."""
    changes: list[Change] = []
    async with asyncio.timeout(20), contextlib.aclosing(store.watch(prefix, after)) as watch:
        async for change in watch:
            changes.append(change)
            if len(changes) == count:
                break
    return changes


async def test_a_key_reads_back_with_its_revisions(rig: Rig) -> None:
    assert await rig.store.get("a") is None
    made = await rig.store.commit([], [Put("a", b"\x00\xff one")])
    changed = await rig.store.commit([], [Put("a", b"two")])
    entry = await rig.other.get("a")
    assert entry is not None
    assert (entry.key, entry.value, entry.created, entry.revision) == ("a", b"two", made.revision, changed.revision)
    assert changed.revision == made.revision + 1


async def test_scan_gives_all_under_a_prefix_at_one_revision(rig: Rig) -> None:
    done = await rig.store.commit([], [Put(key, key.encode()) for key in ("n/b", "n/a", "m/z", "o", "n")])
    snapshot = await rig.store.scan("n/")
    assert [entry.key for entry in snapshot.entries] == ["n/a", "n/b"]
    assert {entry.revision for entry in snapshot.entries} == {done.revision} == {snapshot.revision}
    assert len((await rig.store.scan("")).entries) == 5


async def test_a_large_scan_is_whole(rig: Rig) -> None:
    names = [f"k/{number:05}" for number in range(2300)]
    for start in range(0, len(names), 100):
        await rig.store.commit([], [Put(name, b"x" * 100) for name in names[start : start + 100]])
    assert [entry.key for entry in (await rig.store.scan("k/")).entries] == names


async def test_commit_does_all_or_nothing(rig: Rig) -> None:
    first = await rig.store.commit([Unchanged("a", 0)], [Put("a", b"1"), Put("b", b"1")])
    assert first.held
    again = await rig.store.commit([Unchanged("a", 0)], [Put("a", b"2")])
    assert not again.held
    half = await rig.store.commit([Unchanged("a", first.revision), Unchanged("b", 7)], [Put("a", b"3"), Delete("b")])
    assert not half.held
    entry, other = await rig.store.get("a"), await rig.store.get("b")
    assert entry and other and entry.value == b"1" and other.value == b"1"
    assert (await rig.store.commit([Unchanged("a", first.revision)], [Put("a", b"4"), Delete("b")])).held
    assert await rig.store.get("b") is None


async def test_delete_takes_one_key_or_a_prefix(rig: Rig) -> None:
    await rig.store.commit([], [Put(key, b"") for key in ("a", "a/1", "a/2", "b")])
    await rig.store.commit([], [Delete("a")])
    assert [entry.key for entry in (await rig.store.scan("")).entries] == ["a/1", "a/2", "b"]
    await rig.store.commit([], [Delete("a/", prefix=True)])
    assert [entry.key for entry in (await rig.store.scan("")).entries] == ["b"]


async def test_what_changes_nothing_uses_no_revision(rig: Rig) -> None:
    before = (await rig.store.commit([], [Put("a", b"")])).revision
    assert (await rig.store.commit([], [Delete("nothing")])).revision == before
    assert (await rig.store.commit([Unchanged("a", before)], [])).held
    assert (await rig.store.commit([], [Put("a", b"")])).revision == before + 1


async def test_a_key_named_twice_is_declined_and_nothing_done(rig: Rig) -> None:
    with pytest.raises(Failed, match="store refuses"):
        await rig.store.commit([], [Put("a", b"1"), Put("a", b"2")])
    assert await rig.store.get("a") is None


async def test_of_many_who_create_one_key_one_succeeds(rig: Rig) -> None:
    tries = [
        store.commit([Unchanged("owner/x", 0)], [Put("owner/x", str(number).encode())])
        for number, store in enumerate([rig.store, rig.other] * 10)
    ]
    done = await asyncio.gather(*tries)
    winners = [number for number, each in enumerate(done) if each.held]
    entry = await rig.store.get("owner/x")
    assert len(winners) == 1
    assert entry is not None
    assert int(entry.value) == winners[0]
    assert entry.revision == done[winners[0]].revision


async def test_a_watch_tells_history_and_news_in_order(rig: Rig) -> None:
    start = (await rig.store.scan("")).revision
    await rig.store.commit([], [Put("w/a", b"1"), Put("else", b"")])
    await rig.store.commit([], [Delete("w/a"), Put("w/b", b"2")])
    watching = asyncio.create_task(_take(rig.other, "w/", start, 4))
    await asyncio.sleep(0.1)
    await rig.store.commit([], [Put("w/a", b"3")])
    changes = await watching
    assert [(each.key, each.entry.value if each.entry else None) for each in changes] == [
        ("w/a", b"1"),
        ("w/a", None),
        ("w/b", b"2"),
        ("w/a", b"3"),
    ]
    assert [each.revision - start for each in changes] == [1, 2, 2, 3]


async def test_the_revision_is_that_of_the_last_change(rig: Rig) -> None:
    done = await rig.store.commit([], [Put("a/1", b"1")])
    assert await rig.other.revision() == done.revision
    assert await rig.store.revision() == (await rig.store.scan("")).revision
    await rig.store.commit([], [Delete("a/none")])
    assert await rig.other.revision() == done.revision


async def test_a_watch_tells_what_changed_at_once_together(rig: Rig) -> None:
    """Who waits for nothing else sees all changes of a revision without another task's turn between them."""
    begun = await rig.store.revision()
    keys = [f"a/{number:03}" for number in range(100)]
    for value in (b"old", b"new"):  # of two transactions one is history when the watch begins, or both are
        await rig.store.commit([], [Put(key, value) for key in keys])
    turns: list[int] = []
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    revisions: list[int] = []
    try:
        async with asyncio.timeout(20), contextlib.aclosing(rig.other.watch("a/", begun)) as changes:
            async for change in changes:
                turns.append(ticks)
                revisions.append(change.revision)
                if len(turns) == 200:
                    break
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
    assert len(set(turns[:100])) == 1
    assert len(set(turns[100:])) == 1
    assert revisions == sorted(revisions)
    assert len(set(revisions)) == 2


async def test_a_watch_from_a_revision_leaves_out_what_was_before(rig: Rig) -> None:
    await rig.store.commit([], [Put("w/a", b"1")])
    after = (await rig.store.commit([], [Put("w/b", b"2")])).revision
    last = (await rig.store.commit([], [Put("w/c", b"3")])).revision
    (change,) = await _take(rig.store, "w/", after, 1)
    assert (change.key, change.revision) == ("w/c", last)
    assert change.entry is not None
    assert change.entry.created == last


async def test_a_watch_from_before_a_compaction_says_so(rig: Rig) -> None:
    start = (await rig.store.commit([], [Put("w/a", b"1")])).revision
    for value in (b"2", b"3"):
        last = await rig.store.commit([], [Put("w/a", value)])
    await rig.compact(last.revision)
    with pytest.raises(Compacted) as caught:
        await _take(rig.store, "w/", start, 1)
    assert caught.value.hint == "scan again"
    await rig.store.commit([], [Put("w/a", b"4")])
    (change,) = await _take(rig.store, "w/", (last.revision), 1)
    assert change.entry is not None
    assert change.entry.value == b"4"


async def test_a_revoked_lease_takes_its_keys_with_it(rig: Rig) -> None:
    lease = await rig.store.grant(60)
    done = await rig.store.commit([], [Put("alive/a", b"", lease), Put("alive/b", b"")])
    entry = await rig.store.get("alive/a")
    assert entry is not None
    assert entry.lease == lease
    assert await rig.store.keep(lease) == 60
    await rig.store.revoke(lease)
    (change,) = await _take(rig.store, "alive/", done.revision, 1)
    assert (change.key, change.entry) == ("alive/a", None)
    assert [each.key for each in (await rig.store.scan("alive/")).entries] == ["alive/b"]
    assert await rig.store.keep(lease) == 0
    await rig.store.revoke(lease)


async def test_a_lease_not_kept_ends(rig: Rig) -> None:
    lease, kept = await rig.store.grant(TTL), await rig.store.grant(60)
    done = await rig.store.commit([], [Put("alive/a", b"", lease), Put("alive/b", b"", kept)])
    (change,) = await _take(rig.other, "alive/", done.revision, 1)
    assert (change.key, change.entry) == ("alive/a", None)
    assert await rig.store.keep(lease) == 0
    assert await rig.store.get("alive/a") is None
    assert await rig.store.get("alive/b") is not None
    with pytest.raises(Failed, match="lease"):
        await rig.store.commit([], [Put("alive/a", b"", lease)])


async def test_a_key_put_again_leaves_its_old_lease(rig: Rig) -> None:
    old, new = await rig.store.grant(60), await rig.store.grant(60)
    await rig.store.commit([], [Put("alive/a", b"1", old), Put("alive/b", b"1", old)])
    await rig.store.commit([], [Put("alive/a", b"2", new), Put("alive/b", b"2")])
    await rig.store.revoke(old)
    assert [entry.value for entry in (await rig.store.scan("alive/")).entries] == [b"2", b"2"]


async def test_closing_ends_watches_and_calls(rig: Rig) -> None:
    revision = (await rig.store.scan("")).revision

    async def watch() -> list[Change]:
        return [change async for change in rig.store.watch("w/", revision)]

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.1)
    await rig.store.close()
    async with asyncio.timeout(10):
        assert await watching == []
    with pytest.raises(StoreUnavailable):
        await rig.store.get("a")
