"""How nodes come in and go out, and what is refused, with a real etcd and over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_parts import Member, another, first, rig

from veery.cluster import identity, join, keys, members
from veery.cluster.store import Delete, Put
from veery.errors import Refused
from veery.host import tls
from veery.model.cluster import Owner, Presence
from veery.model.fence import Armed
from veery.model.ha import FenceRecord, FenceState
from veery.model.node import Role
from veery.model.volume import Backing, Volume


async def _join(newcomer: Member, token: str, peer: str, **other: object) -> identity.Identity:
    wish: dict[str, object] = {
        "name": newcomer.name,
        "address": newcomer.address,
        "roles": [Role.HYPERVISOR],
        "driver": "qemu",
    }
    return await join.join(newcomer.settings, token=token, peer=peer, **{**wish, **other})  # type: ignore[arg-type]


def _untouched(newcomer: Member) -> bool:
    state = Path(newcomer.settings.state)
    return not (state / "identity.json").exists() and not (state / "tls").exists()


async def test_who_is_let_in_and_who_is_not(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        token = await join.make_token(one.store, "test1")
        with pytest.raises(Refused, match="the name test1 is taken"):
            await _join(two, token, one.address, name="test1")
        with pytest.raises(Refused, match="is test1's address"):
            await _join(two, token, one.address, address=one.address)
        both = r"test2 has 2\d{3}(-\d\d){2} (\d\d:){2}\d\d, the cluster 2\d{3}(-\d\d){2} (\d\d:){2}\d\d UTC"
        for clock in (time.time, lambda: 0.0):  # the newcomer sees it by itself, or is told by an older veery's way
            one.clock = clock
            with pytest.raises(Refused, match=rf"clock of test2 is 4[0-9] s ahead: {both}$") as skewed:
                await _join(two, token, one.address, epoch=time.time() + 45)
            assert "chrony" in skewed.value.hint
            with pytest.raises(Refused, match=rf"clock of test2 is .* behind: {both}$"):
                await _join(two, token, one.address, epoch=time.time() - 45)
        with pytest.raises(Refused, match="not an IP address"):
            await _join(two, token, one.address, address="somewhere")
        with pytest.raises(Refused, match="not a token"):
            await _join(two, "veery.short.one", one.address)
        with pytest.raises(Refused, match="cannot connect to"):
            await _join(two, token, f"{two.address}:{two.settings.api.port}")
        assert _untouched(two)

        who = await _join(two, token, f"{one.address}:{one.settings.api.port}")
        assert who.etcd is None
        assert who.voters == (one.url,)
        assert identity.load(Path(two.settings.state)) == who
        await two.start()
        record = await keys.NODES.get(two.store, "test2")
        assert record == who.node
        assert record.initiator.endswith(":node:test2")

        with pytest.raises(Refused, match="belongs to cluster lab already"):
            await _join(two, token, one.address)
        with pytest.raises(Refused, match="token is unknown, used or too old"):
            await _join(three, token, one.address)
        stale = await join.make_token(one.store, "test1", epoch=time.time() - 3700)
        with pytest.raises(Refused, match="token is unknown, used or too old"):
            await _join(three, stale, one.address)
        assert _untouched(three)
        assert list(await keys.NODES.all(one.store)) == ["test1", "test2"]


async def test_a_witness_joins_and_a_node_brings_the_addresses_of_its_networks(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("witness")
        await first(one)
        networks = replace(
            two.settings,
            storage=replace(two.settings.storage, address="127.31.20.2"),
            relocation=replace(two.settings.relocation, address="127.31.30.2"),
        )
        two.settings = networks
        await _join(two, await join.make_token(one.store, "test1"), f"{one.address}:{one.settings.api.port}")
        await two.start()
        record = await keys.NODES.get(one.store, "test2")
        assert record is not None
        assert (record.storage_address, record.relocation_address) == ("127.31.20.2", "127.31.30.2")
        assert set(record.addresses) == {two.address, "127.31.20.2", "127.31.30.2"}

        token = await join.make_token(one.store, "test1")
        who = await _join(three, token, f"{one.address}:{one.settings.api.port}", roles=[Role.VOTER], driver="")
        assert who.etcd is not None
        await three.start()
        record = await keys.NODES.get(three.store, "witness")
        assert record is not None
        assert (record.roles, record.driver, record.has(Role.HYPERVISOR)) == ((Role.VOTER,), "", False)
        found = await one.store.voters.all()
        assert len(found) == 2
        assert not any(each.learner for each in found)


async def test_only_the_hash_of_a_token_is_kept(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one = make("test1")
        await first(one)
        token = await join.make_token(one.store, "test1")
        secret, mark = join.read_token(token)
        assert mark == tls.fingerprint(one.identity.cluster.ca)
        kept = (await one.store.scan("")).entries
        assert any(entry.key.startswith("token/") and entry.lease for entry in kept)
        assert not any(secret in entry.key or secret.encode() in entry.value for entry in kept)


async def test_a_token_can_be_listed_and_taken_back_and_ends_with_its_node(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one, Role.HYPERVISOR)
        by_one, by_two = await join.make_token(one.store, "test1"), await join.make_token(two.store, "test2")
        with pytest.raises(Refused, match="no longer in the cluster"):
            await join.make_token(one.store, "test9")
        rows = await join.tokens(one.store)
        assert [row.node for row in rows] == ["test1", "test2"]
        assert not any(row.id in by_one + by_two for row in rows)
        with pytest.raises(Refused, match="no token"):
            await join.revoke_token(one.store, "")
        await join.revoke_token(one.store, rows[0].id)
        with pytest.raises(Refused, match="token is unknown"):
            await _join(three, by_one, one.address)

        kept = await one.store.scan("token/")
        await members.leave(one.store, one.store.voters, one.settings, "test2")
        assert await join.tokens(one.store) == ()
        with pytest.raises(Refused, match="token is unknown"):
            await _join(three, by_two, one.address)
        # one that was made at the last moment is worth nothing either, also when the name joins anew
        await one.store.commit([], [Put(entry.key, entry.value) for entry in kept.entries])
        with pytest.raises(Refused, match="made by test2, which was removed"):
            await _join(three, by_two, one.address)
        await one.store.commit([], [keys.NODES.put("test2", two.identity.node)])
        with pytest.raises(Refused, match="made by test2, which was removed"):
            await _join(three, by_two, one.address)
        assert _untouched(three)


async def test_a_node_at_another_address_is_not_told_the_token(tmp_path: Path) -> None:
    """Any certificate of the CA is not enough: whoever was put out still has one."""
    async with rig(tmp_path) as make:
        one, three = make("test1"), make("test3")
        await first(one)
        token = await join.make_token(one.store, "test1")
        there = ("127.31.16.77", one.settings.api.port)

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward, back = await asyncio.open_connection(one.address, one.settings.api.port)
            both = [asyncio.create_task(_pour(reader, back)), asyncio.create_task(_pour(onward, writer))]
            await asyncio.wait(both)

        relay = await asyncio.start_server(carry, *there)
        async with relay:
            with pytest.raises(Refused, match="has no certificate for that address"):
                await _join(three, token, there[0])
        assert len(await join.tokens(one.store)) == 1
        assert _untouched(three)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def test_another_cluster_at_the_address_learns_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("other"), make("test3")
        await first(one)
        await first(two)
        token = await join.make_token(one.store, "test1")
        with pytest.raises(Refused, match="is not in the cluster that made the token"):
            await _join(three, token, two.address)
        assert _untouched(three)


async def test_of_two_with_one_token_one_comes_in(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        token = await join.make_token(one.store, "test1")
        done = await asyncio.gather(*(_join(each, token, one.address) for each in (two, three)), return_exceptions=True)
        assert sorted(type(each) for each in done if isinstance(each, Exception)) == [Refused]
        assert len(await keys.NODES.all(one.store)) == 2
        assert await one.store.get(keys.JOINING) is None


async def test_voters_leave_but_never_the_majority(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two = make("test1"), make("test2")
        await first(one)
        await one.store.voters.add_learner("https://127.31.16.99:1")  # an admission that died half-way
        await another(two, one)
        assert sorted(voter.name for voter in await one.store.voters.all()) == ["test1", "test2"]

        await one.store.commit([], [keys.OWNERS.put("busybox", Owner(domain="busybox", node="test2", boot="b"))])
        with pytest.raises(Refused, match="node test2 runs busybox"):
            await members.leave(one.store, one.store.voters, one.settings, "test2")
        await one.store.commit([], [keys.OWNERS.put("busybox", Owner(domain="busybox", node="test1", boot="b"))])

        await members.leave(one.store, one.store.voters, one.settings, "test2")
        assert [voter.name for voter in await one.store.voters.all()] == ["test1"]
        assert list(await keys.NODES.all(one.store)) == ["test1"]
        assert await keys.INITIATORS.get(one.store, "test2") is None
        with pytest.raises(Refused, match="no node 'test2'"):
            await members.leave(one.store, one.store.voters, one.settings, "test2")
        with pytest.raises(Refused, match="test1 is the last voter"):
            await one.store.voters.remove((await one.store.voters.all())[0].id)


async def test_a_dead_node_is_forgotten_and_a_living_one_is_not(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two = make("test1"), make("test2")
        await first(one)
        await another(two, one)
        store, voters = one.store, one.store.voters

        async def forget(*, volumes: bool = False) -> None:
            await members.forget(store, voters, one.settings, "test2", volumes=volumes)

        await store.commit([], [keys.ALIVE.put("test2", Presence(node="test2", started=0.0))])
        with pytest.raises(Refused, match="node test2 is present"):
            await forget()
        await store.commit([], [Delete(keys.ALIVE.key("test2"))])
        await store.commit([], [keys.OWNERS.put("busybox", Owner(domain="busybox", node="test2", boot="b"))])
        with pytest.raises(Refused, match="node test2 owns busybox, and nothing proves that it is off"):
            await forget()
        await store.commit([], [Delete(keys.OWNERS.key("busybox"))])
        volume = Volume(
            name="data",
            size=1 << 20,
            node="test2",
            backing=Backing.FILE,
            path="/x",
            iqn="iqn.x:data",
            tid=1,
            portal="p:1",
        )
        await store.commit([], [keys.VOLUMES.put("data", volume)])
        with pytest.raises(Refused, match="with node test2 these are lost: volume data"):
            await forget()
        assert sorted(await keys.NODES.all(store)) == ["test1", "test2"]
        assert len(await voters.all()) == 2

        fence = FenceRecord(state=FenceState.FENCED, method="power")
        await store.commit(
            [], [keys.FENCES.put("test2", fence), keys.ARMED.put("test2", Armed(node="test2", timeout=30))]
        )
        await forget(volumes=True)
        assert [voter.name for voter in await voters.all()] == ["test1"]
        left = {entry.key for entry in (await store.scan("")).entries if "test2" in entry.key or "data" in entry.key}
        assert left == set()
        with pytest.raises(Refused, match="no node 'test2'"):
            await forget()
