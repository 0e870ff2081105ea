"""The gate of a volume's move: COMMIT or drop, never both; and nothing starts or moves on a volume that moves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from veery.cluster import owner as owners
from veery.cluster import volumegate as gate
from veery.cluster.keys import VOLUMES
from veery.cluster.memory import MemoryStore
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.volume import Backing, Volume, VolumeMove

WAS = Volume(
    name="data",
    size=1 << 20,
    node="stor",
    backing=Backing.FILE,
    path="/a",
    iqn="iqn.x:data",
    tid=1,
    portal="10.0.0.1:1",
)
PLACE = replace(WAS, node="stor2", tid=2, portal="10.0.0.2:1")
MOVE = VolumeMove(id="m1", volume="data", source="stor", target="stor2", was=WAS, place=PLACE)
RECORD = DomainRecord(spec=DomainSpec(name="web", memory=64, disks=(DiskSpec(vdev="xvda", volume="data"),)))


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore(RealClock())
    await made.commit([], [VOLUMES.put("data", WAS)])
    return made


async def test_commit_names_the_target_and_a_late_drop_sees_it(store: MemoryStore) -> None:
    move = await gate.begin(store, MOVE, None)
    await gate.commit(store, move, None)
    assert await VOLUMES.get(store, "data") == PLACE
    assert gate.arrived(await gate.drop(store, move), move)


async def test_after_a_drop_no_commit_succeeds(store: MemoryStore) -> None:
    move = await gate.begin(store, MOVE, None)
    assert await gate.drop(store, move) == WAS
    with pytest.raises(Refused, match="was cancelled"):
        await gate.commit(store, move, None)
    again = await gate.begin(store, replace(MOVE, id="m2"), None)
    assert await gate.drop(store, move) == WAS  # the old move's end does not touch the new one
    await gate.commit(store, again, None)


async def test_one_move_at_a_time(store: MemoryStore) -> None:
    await gate.begin(store, MOVE, None)
    with pytest.raises(Refused, match="is being moved from stor to stor2"):
        await gate.begin(store, replace(MOVE, id="m2"), None)


async def test_no_domain_starts_on_a_volume_that_moves(store: MemoryStore) -> None:
    move = await gate.begin(store, MOVE, None)
    with pytest.raises(Refused, match="volume data is being moved"):
        await owners.claim(store, "web", "test1", "boot", RECORD)
    assert await owners.read(store, "web") is None
    await gate.drop(store, move)
    await owners.claim(store, "web", "test1", "boot", RECORD)


async def test_a_domain_and_its_volume_do_not_move_at_once(store: MemoryStore) -> None:
    owner = await owners.claim(store, "web", "test1", "boot", RECORD)
    move = await gate.begin(store, MOVE, owner)
    with pytest.raises(Refused, match="volume data is being moved"):
        await owners.reserve(store, "web", "d1", "test1", "test2", volumes={"data"})
    await gate.drop(store, move)
    await owners.reserve(store, "web", "d1", "test1", "test2", volumes={"data"})
    with pytest.raises(Refused, match="is being moved to test2"):
        await gate.begin(store, replace(MOVE, id="m2"), owner)


async def test_a_new_owner_shuts_the_gate(store: MemoryStore) -> None:
    owner = await owners.claim(store, "web", "test1", "boot", RECORD)
    move = await gate.begin(store, MOVE, owner)
    await owners.release(store, owner)
    with pytest.raises(Refused, match="was cancelled"):
        await gate.commit(store, move, owner)
    assert await VOLUMES.get(store, "data") == WAS


async def test_a_domain_that_starts_anew_breaks_the_move_off(store: MemoryStore) -> None:
    move = await gate.begin(store, MOVE, await owners.claim(store, "web", "test1", "boot", RECORD))
    await gate.break_off(store, ["data", "other"])
    assert await gate.standing(store, "data") is None
    with pytest.raises(Refused):
        await gate.commit(store, move, None)


async def test_no_number_is_given_twice(store: MemoryStore) -> None:
    given = await asyncio.gather(*(gate.take_tid(store, 5) for _ in range(6)))
    assert sorted(given) == [5, 6, 7, 8, 9, 10]
    assert await gate.take_tid(store, 3) == 11
