"""The cluster's level: it rises when every node can do more, never falls, and keeps out who cannot do it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from veery.cluster import join, keys, levels
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Delete, Put
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.model.cluster import LEVEL, ClusterLevel, Presence, Token
from veery.model.codec import convert, decode, encode, plain
from veery.model.health import Health
from veery.model.health import Level as Grade
from veery.model.node import Node, Role
from veery.node.doctor import judge_levels


async def cluster(**able: int | None) -> MemoryStore:
    """A store with one node for each name; None: it is absent."""
    store = MemoryStore(RealClock())
    for number, (name, level) in enumerate(able.items()):
        node = Node(name=name, address=f"10.0.0.{number}", roles=(Role.HYPERVISOR,))
        await store.commit([], [keys.NODES.put(name, node)])
        if level is not None:
            await store.commit([], [keys.ALIVE.put(name, Presence(node=name, started=1.0, level=level))])
    return store


async def at(store: MemoryStore, level: int) -> None:
    await store.commit([], [keys.LEVELS.put(keys.LEVEL_KEY, ClusterLevel(level=level))])


async def test_it_rises_when_all_can() -> None:
    store = await cluster(a=LEVEL, b=LEVEL)
    assert await levels.read(store) == 0
    assert await levels.rise(store, "a", epoch=5.0) == LEVEL
    assert await levels.read(store) == LEVEL
    assert await levels.told(store) == str(LEVEL)
    revision = await store.revision()
    assert await levels.rise(store, "b", epoch=6.0) == LEVEL
    assert await store.revision() == revision  # nothing more is written


@pytest.mark.parametrize("other", [0, None])
async def test_an_old_or_an_absent_node_keeps_it_low(other: int | None) -> None:
    store = await cluster(a=LEVEL, b=other)
    assert await levels.rise(store, "a", epoch=5.0) == 0
    assert await store.get(keys.LEVEL_KEY) is None
    assert "b (0)" in await levels.told(store)


async def test_a_node_that_cannot_be_read_keeps_it_low() -> None:
    store = await cluster(a=LEVEL)
    await store.commit([], [Put(keys.NODES.key("b"), b"{")])
    assert await levels.rise(store, "a", epoch=5.0) == 0


async def test_it_never_falls() -> None:
    store = await cluster(a=LEVEL, b=0)
    await at(store, LEVEL)
    assert await levels.rise(store, "a", epoch=5.0) == LEVEL
    await at(store, LEVEL + 6)  # a newer version raised it
    assert await levels.rise(store, "a", epoch=5.0) == LEVEL + 6
    assert await levels.read(store) == LEVEL + 6


async def test_nothing_rises_while_a_node_is_let_in() -> None:
    store = await cluster(a=LEVEL)
    await store.commit([], [Put(keys.JOINING, b"b")])
    assert await levels.rise(store, "a", epoch=5.0) == 0
    await store.commit([], [Delete(keys.JOINING)])
    assert await levels.rise(store, "a", epoch=5.0) == LEVEL


async def test_of_an_admission_and_a_rise_one_is_taken() -> None:
    store = await cluster(a=LEVEL)
    condition, again = await levels.admission(store, "b", 0)
    await levels.rise(store, "a", epoch=5.0)
    assert not (await store.commit([condition], [again])).held
    with pytest.raises(Refused, match=f"b supports level 0, the cluster is at level {LEVEL}"):
        await levels.admission(store, "b", 0)
    condition, again = await levels.admission(store, "b", LEVEL)
    assert (await store.commit([condition], [again])).held
    assert await levels.read(store) == LEVEL
    assert not (await store.commit([condition], [again])).held  # written again: a rise that was read before fails


async def test_a_newcomer_of_an_older_version_is_refused_before_anything_is_done() -> None:
    store = await cluster(a=LEVEL)
    await at(store, LEVEL)
    token = keys.TOKENS.key(join._hash("s" * 22))
    await store.commit([], [Put(token, encode(Token(expires=2e9)))])
    node = Node(name="b", address="10.0.0.9", roles=(Role.HYPERVISOR,))
    request = join.JoinRequest(secret="s" * 22, node=node, csr="", epoch=1e9)
    before = await store.revision()
    with pytest.raises(Refused, match="cluster is at level") as refused:
        await join.admit(store, None, request, epoch=1e9)  # type: ignore[arg-type]
    assert "on b" in refused.value.hint
    assert await store.revision() == before


async def test_a_heartbeat_tells_the_level() -> None:
    store = await cluster(a=None)
    beat = asyncio.create_task(Heartbeat(store, "a", ttl=10, clock=RealClock()).run())
    async with asyncio.timeout(30):
        while (await levels.able(store))["a"] != LEVEL:
            await asyncio.sleep(0.01)
    beat.cancel()
    assert await levels.rise(store, "a", epoch=1.0) == LEVEL


def test_values_of_a_version_without_levels_are_read() -> None:
    presence = {"node": "a", "started": 1.0, "version": "0.1.0"}
    assert decode(encode(presence), Presence).level == 0
    request = {"secret": "s", "node": {"name": "b", "address": "x", "roles": []}, "csr": "", "epoch": 1.0}
    assert convert(request, join.JoinRequest).level == 0
    assert plain(convert(request, join.JoinRequest))["level"] == 0


def test_doctor_names_a_node_below_the_level(tmp_path: Path) -> None:
    def health(node: str, able: int) -> Health:
        return Health(node=node, version="1", epoch=1.0, bridges={}, findings=(), able=able)

    (found,) = judge_levels([health("a", 2), health("b", 1)], 2)
    assert (found.node, found.level, found.what) == ("b", Grade.BAD, "level")
    assert judge_levels([health("a", 2)], 1) == []
