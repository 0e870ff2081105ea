"""Upkeep of a real etcd: a full store that takes writes again, copies, and members that differ."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
from pathlib import Path

import pytest
from cluster_parts import Member, another, eventually, first, rig

from veery.cluster import server, upkeep
from veery.cluster.gateway import Declined
from veery.cluster.keys import EVENTS
from veery.cluster.store import Put, StoreUnavailable
from veery.errors import OutcomeUnknown, Refused
from veery.host.clock import RealClock
from veery.host.process import Service
from veery.host.tasks import stop
from veery.model.units import MIB
from veery.node.storecompare import StoreCompare
from veery.node.storehealth import judge_alarms, judge_hashes, judge_members, judge_store, read
from veery.node.storeupkeep import StoreUpkeep

SMALL = 4  # MiB
MARK = b"only here to be damaged " * 20


def small(member: Member) -> Member:
    member.settings = dataclasses.replace(member.settings, etcd=dataclasses.replace(member.settings.etcd, quota=SMALL))
    return member


async def test_a_full_store_takes_writes_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = (small(make(name)) for name in ("test1", "test2", "stor"))
        await first(one)
        await another(two, one)
        await another(three, one)
        with pytest.raises(Declined, match="full") as told:
            for _ in range(40):
                await one.store.commit([], [Put("junk/a", bytes(MIB // 2))])
        assert told.value.hint == "veery cluster defrag"
        nodes = [each.identity.node for each in (one, two, three)]
        found = judge_store("test1", await read(one.store.voters, nodes), quota=SMALL * MIB)
        assert any(row.level == "bad" and "NOSPACE" in row.told and "defrag" in row.advice for row in found), found

        done = await upkeep.defragment(one.store.voters, quota=SMALL * MIB)
        assert {each.name for each in done} == {"test1", "test2", "stor"}
        assert all(each.after < each.before for each in done)
        await one.store.commit([], [Put("junk/b", b"again")])
        rows = judge_members(await read(one.store.voters, nodes), quota=SMALL * MIB)
        rows += judge_store("test1", await read(one.store.voters, nodes), quota=SMALL * MIB)
        assert not [row for row in rows if row.level == "bad"], rows

        await two.stop_etcd()
        with pytest.raises(Refused, match="voter test2 does not answer"):
            await upkeep.defragment(one.store.voters, quota=SMALL * MIB)


async def test_a_copy_of_the_store_is_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one = make("test1")
        await first(one)
        await one.store.commit([], [Put("junk/a", bytes(MIB // 2))])
        path = tmp_path / "copy.db"
        size = await upkeep.backup(one.store.gateway, path)
        data = path.read_bytes()
        assert (len(data), path.stat().st_mode & 0o777) == (size, 0o600)
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        assert bytes(MIB // 2) in data
        with pytest.raises(Refused, match="exists already"):
            await upkeep.backup(one.store.gateway, path)
        assert [each.name for each in tmp_path.glob("*.part")] == []


async def test_a_member_with_other_data_is_found_and_the_store_stops(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("stor")
        await first(one)
        await another(two, one)
        await another(three, one)
        nodes = [each.identity.node for each in (one, two, three)]
        await one.store.commit([], [Put("junk/a", MARK)])
        file = Path(two.settings.state) / "etcd" / "member" / "snap" / "db"
        await eventually(lambda: MARK in file.read_bytes())
        row = judge_hashes("test1", await read(one.store.voters, nodes))
        assert (row.level, row.told.startswith("3 of 3")) == ("ok", True), row

        with file.open("rb+") as db:  # etcd has it mapped, and its pages carry no checksum
            data = db.read()
            for place in (each.start() for each in re.finditer(MARK, data)):
                db.seek(place)
                db.write(b"#" * len(MARK))
        row = judge_hashes("test1", await read(one.store.voters, nodes))
        assert (row.level, row.told.startswith("test2 differs at revision ")) == ("bad", True), row
        told = [await StoreCompare(each.name, each.store, RealClock()).look() for each in (one, two, three)]
        assert [each.startswith("test2 differs") for each in told if each] == [True], "the leader tells it"
        (event,) = (await EVENTS.all(one.store)).values()
        assert (event.level, event.what, "test2 differs" in event.text) == ("alarm", "store-alarm", True)

        for each in (one, two, three):
            await _start_with(each, {server.CHECK_INTERVAL: "2s"})
        await server.ready(one.store.voters, one.url, deadline=60)

        async def alarmed() -> bool:
            return any("CORRUPT" in row.told for row in judge_alarms("test1", await read(one.store.voters, nodes)))

        async with asyncio.timeout(120):
            while not await alarmed():
                await asyncio.sleep(0.5)

        async def refused() -> bool:
            """A write may get no answer while the members learn of the alarm; none succeeds."""
            try:
                await one.store.commit([], [Put("junk/b", b"nobody decides anything")])
            except StoreUnavailable as error:
                return "corrupt" in error.message
            except OutcomeUnknown:
                return False
            raise AssertionError("it was written")

        async with asyncio.timeout(120):
            while not await refused():
                await asyncio.sleep(0.5)


async def _start_with(member: Member, changes: dict[str, str]) -> None:
    """Start this voter's etcd anew, with other words in its command line."""
    await member.stop_etcd()
    command = [str(word) for word in server.command(member.settings, member.identity)]
    assert set(changes) <= set(command)
    words = [changes.get(word, word) for word in command]
    member.run_etcd(Service("etcd", lambda: words, run=Path(member.settings.run), env=server.environment()))


async def test_copies_stay_as_they_are_while_the_store_is_not_trusted(tmp_path: Path) -> None:
    """One that was restored from an old copy would otherwise push the good ones out, one a day."""
    async with rig(tmp_path) as make:
        one = make("test1")
        await first(one)
        trusted = False
        state = Path(one.settings.state)
        keeper = StoreUpkeep("test1", one.store, (), state=state, clock=RealClock(), quota=MIB, trusted=lambda: trusted)
        keeper.copies.mkdir()
        for number in range(9):
            old = keeper.copies / f"store-20200101T00000{number}Z.db"
            old.write_bytes(b"old")
            os.utime(old, (1.6e9, 1.6e9))
        work = asyncio.ensure_future(keeper.run())
        try:
            await asyncio.sleep(2)
            assert len(upkeep.kept(keeper.copies)) == 9
        finally:
            await stop(work)
        trusted = True
        work = asyncio.ensure_future(keeper.run())
        try:
            await eventually(lambda: len(upkeep.kept(keeper.copies)) == 7)
            assert upkeep.kept(keeper.copies)[0].stat().st_size > 100
        finally:
            await stop(work)
