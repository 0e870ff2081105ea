"""A cluster of three voters built by init and join on loopback addresses, and what it outlives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import statistics
import time
from pathlib import Path

import pytest
from cluster_parts import Member, another, eventually, first, rig

from veery.cluster import identity, keys, members, server
from veery.cluster import owner as owners
from veery.cluster.etcd import EtcdStore
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Change, Put, StoreUnavailable, Unchanged
from veery.errors import OutcomeUnknown
from veery.host import tls
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec
from veery.model.node import Role


async def test_three_voters_outlive_a_kill_and_a_lost_quorum(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("stor")
        await first(one)
        assert not (Path(one.settings.state) / "bootstrap.json").exists()
        await another(two, one)
        await another(three, one, Role.STORAGE, Role.VOTER)
        voters = await one.store.voters.all()
        assert sorted(voter.name for voter in voters) == ["stor", "test1", "test2"]
        assert not any(voter.learner for voter in voters)
        one.identity = await members.refresh(one.store, one.settings, one.identity)
        two.identity = await members.refresh(two.store, two.settings, two.identity)
        assert len(one.identity.voters) == len(identity.load(Path(two.settings.state)).voters) == 3
        assert one.store.gateway.endpoints[0] == one.url
        nodes = await keys.NODES.all(three.store)
        assert [node.name for node in nodes.values()] == ["stor", "test1", "test2"]
        assert nodes["stor"].roles == (Role.STORAGE, Role.VOTER)
        assert nodes["stor"].initiator == (await keys.INITIATORS.all(one.store))["stor"].iqn

        seen: list[Change] = []
        since = (await two.store.scan("count/")).revision

        async def watch() -> None:
            async for change in two.store.watch("count/", since):
                seen.append(change)

        watching = asyncio.create_task(watch())
        sent = await _kill_and_count(one, two, seen)
        sent = await _lose_the_quorum(one, [two, three], sent, seen)
        assert [change.key for change in seen] == [f"count/{number:03}" for number in range(sent)]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _kill_and_count(one: Member, two: Member, seen: list[Change]) -> int:
    """Kill the voter that the watch hangs on while keys are written; each is written once, and seen."""
    old = two.process.pid
    for number in range(30):
        if number == 5:
            two.process.send(signal.SIGKILL)
        key = f"count/{number:03}"
        while True:
            try:
                assert (await one.store.commit([Unchanged(key, 0)], [Put(key, b"")])).held
                break
            except (StoreUnavailable, OutcomeUnknown):  # the one killed was the leader
                if await _read(one.store, key):
                    break
    await eventually(lambda: len(seen) == 30)
    await eventually(lambda: two.service and two.service.process and two.service.process.pid != old)
    await server.ready(two.store.voters, two.url, deadline=30)
    return 30


async def _lose_the_quorum(one: Member, others: list[Member], sent: int, seen: list[Change]) -> int:
    """With two of three gone nothing is decided, and every call ends; with one back all goes on."""
    for each in others:
        await each.stop_etcd()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await one.store.get("count/000")
    with pytest.raises((StoreUnavailable, OutcomeUnknown)):
        await one.store.commit([], [Put("lost", b"")])
    assert time.monotonic() - began < 30
    await others[0].start_etcd()
    await server.ready(one.store.voters, one.url, deadline=30)
    key = f"count/{sent:03}"
    await _until_done(one.store, key)
    await eventually(lambda: len(seen) == sent + 1)
    return sent + 1


async def _read(store: EtcdStore, key: str) -> bool:
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await store.get(key) is not None


async def _until_done(store: EtcdStore, key: str) -> None:
    async with asyncio.timeout(30):
        while not await _read(store, key):
            with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
                await store.commit([Unchanged(key, 0)], [Put(key, b"")])


async def test_a_frozen_voter_is_passed_over(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("stor")
        await first(one)
        await another(two, one)
        await another(three, one, Role.VOTER)
        one.identity = await members.refresh(one.store, one.settings, one.identity)
        seen: list[Change] = []
        patient = EtcdStore(
            [two.url, one.url, three.url],
            tls=tls.client_context(Path(one.settings.state) / "tls"),
            deadline=6,
            quiet=5,
        )

        async def watch() -> None:
            async for change in patient.watch("a", 1):
                seen.append(change)

        watching = asyncio.create_task(watch())
        try:
            await _until_done(one.store, "a/1")
            await eventually(lambda: len(seen) == 1)
            assert await patient.get("a/1") is not None
            two.process.send(signal.SIGSTOP)
            assert await patient.get("a/1") is not None
            assert (await patient.commit([], [Put("a/2", b"")])).held
            await eventually(lambda: len(seen) == 2)
        finally:
            two.process.send(signal.SIGCONT)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await patient.close()


async def test_one_voter_presence_owner_and_strangers(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, stranger = make("test1"), make("stranger")
        await first(one)
        await _move_there_and_back(one.store)
        await _presence_goes_with_etcd(one)
        await _strangers_are_turned_away(one, stranger)


async def _move_there_and_back(store: EtcdStore) -> None:
    record = DomainRecord(spec=DomainSpec(name="busybox"))
    owner = await owners.claim(store, "busybox", "test1", "boot-1", record)
    with pytest.raises(owners.OwnedElsewhere, match="domain busybox runs on test1"):
        await owners.claim(store, "busybox", "test2", "boot-2", None)
    times = []
    for move in range(20):
        target = "test2" if owner.node == "test1" else "test1"
        promise = await owners.reserve(store, "busybox", f"move-{move}", owner.node, target)
        began = time.perf_counter()
        owner = await owners.commit(store, owner, promise)
        times.append(time.perf_counter() - began)
        assert owner.node == target
    print(f"COMMIT: median {statistics.median(times) * 1e3:.1f} ms, max {max(times) * 1e3:.1f} ms")
    assert await owners.read(store, "busybox") == owner
    assert await keys.RESERVATIONS.all(store) == {}
    await owners.release(store, owner)
    assert await owners.read(store, "busybox") is None


async def _presence_goes_with_etcd(one: Member) -> None:
    heart = Heartbeat(one.store, "test1", ttl=6, clock=RealClock())
    beating = asyncio.create_task(heart.run())
    try:
        await eventually(lambda: not heart.lost())
        alive = await keys.ALIVE.get(one.store, "test1")
        assert alive is not None
        assert alive.node == "test1"
        one.process.send(signal.SIGSTOP)
        await eventually(heart.lost)
        assert heart.remaining() == 0
        one.process.send(signal.SIGCONT)
        await eventually(lambda: not heart.lost())
        assert await keys.ALIVE.get(one.store, "test1") is not None
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await heart.withdraw()
    assert await keys.ALIVE.get(one.store, "test1") is None


async def _strangers_are_turned_away(one: Member, stranger: Member) -> None:
    """Neither nobody's certificate nor another cluster's opens etcd's client port."""
    other = identity.init(
        stranger.settings, name="stranger", address=stranger.address, roles=[Role.VOTER], driver="", cluster="lab"
    )
    bare = tls.pinned_context(one.identity.cluster.ca)
    foreign = tls.client_context(Path(stranger.settings.state) / "tls")
    foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
    assert other.cluster.id != one.identity.cluster.id
    for context in (bare, foreign):
        store = EtcdStore([one.url], tls=context, deadline=1)
        with pytest.raises(StoreUnavailable):
            await store.get("cluster")
        await store.close()
    wary = EtcdStore([one.url], tls=tls.client_context(Path(stranger.settings.state) / "tls"), deadline=1)
    with pytest.raises(StoreUnavailable, match="certificate"):
        await wary.get("cluster")
    await wary.close()
