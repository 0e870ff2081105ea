"""Orders to a node whose version does not support the cluster's level: refused before anything is begun."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from veery.cluster.keys import ALIVE, DOMAINS, LEVEL_KEY, LEVELS, NODES, OWNERS, VOLUME_MOVES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Store
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.migrate.phases import Hold
from veery.model.cluster import ClusterLevel, DomainRecord, Owner, Presence
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.node import Node, Role
from veery.model.volume import Backing, Volume
from veery.node.evacuation import fit
from veery.node.volume_moves.moves import VolumeMoves
from veery.node.volumes import VolumeService

BOTH = (Role.HYPERVISOR, Role.STORAGE)
NODES_HERE = {name: Node(name=name, address=name, roles=BOTH) for name in ("here", "old", "new")}
TROUBLE = "its veery supports level 0, the cluster is at level 1"


async def cluster(level: int = 1, **levels: int) -> Store:
    store = MemoryStore(RealClock())
    puts = [NODES.put(name, node) for name, node in NODES_HERE.items()]
    known = {"here": 1, "old": 0, "new": 1, **levels}
    puts += [ALIVE.put(name, Presence(node=name, started=1.0, level=able)) for name, able in known.items()]
    await store.commit([], [*puts, LEVELS.put(LEVEL_KEY, ClusterLevel(level=level))])
    return store


def row(name: str, level: int | None, *, alive: bool = True) -> dict[str, Any]:
    presence = None if level is None else Presence(node=name, started=1.0, level=level)
    return {"node": NODES_HERE[name], "alive": alive, "presence": presence}


def test_targets_of_an_evacuation() -> None:
    rows = [row("here", 1), row("old", 0), row("new", 1)]
    assert fit(rows, "here", 1) == ["new"]
    assert fit(rows, "here", 0) == ["old", "new"]
    assert fit([row("here", 1), row("old", 0), row("new", None)], "here", 1) == ["new"], "its record cannot be read"
    with pytest.raises(Refused, match=f"no other hypervisor can take in a domain: old: {TROUBLE}"):
        fit([row("here", 1), row("old", 0), row("new", None, alive=False)], "here", 1)
    with pytest.raises(Refused, match="no other hypervisor is alive"):
        fit([row("here", 1), row("new", None, alive=False)], "here", 1)


def service(store: Store, here: str = "here") -> VolumeService:
    return VolumeService(here, store, SimpleNamespace(), SimpleNamespace(), None)  # type: ignore[arg-type]


async def test_the_storage_node_of_a_new_volume() -> None:
    store = await cluster()
    assert await service(store).storage_node() == "here"
    assert await service(store).storage_node("new") == "new"
    assert await service(store, "elsewhere").storage_node() == "here"
    with pytest.raises(Refused, match=f"old cannot make a volume: {TROUBLE}"):
        await service(store).storage_node("old")
    assert await service(await cluster(here=0, new=0, level=0)).storage_node("old") == "old"
    assert await service(await cluster(here=0)).storage_node() == "new"
    with pytest.raises(Refused, match="no storage node supports the cluster's level"):
        await service(await cluster(here=0, new=0)).storage_node()


class Silent:
    """As Peers: another node must not be asked."""

    async def call(self, name: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{name} got an order")


class Served:
    """As Volumes: this node serves one volume."""

    def __init__(self) -> None:
        self.volume = Volume(
            name="disk",
            size=1 << 20,
            node="here",
            backing=Backing.FILE,
            path="/x",
            iqn="iqn.x:disk",
            tid=1,
            portal="127.0.0.1:3260",
        )

    def leaving(self, _: str) -> Any:
        return contextlib.nullcontext()

    async def sound(self, _: str) -> Volume:
        return self.volume


@pytest.mark.parametrize(
    ("owner", "target", "told"),
    [
        ("", "old", f"old cannot take in a volume: {TROUBLE}"),
        ("old", "new", f"old cannot switch the disk of web: {TROUBLE}"),
    ],
)
async def test_a_volume_does_not_move(tmp_path: Path, owner: str, target: str, told: str) -> None:
    store = await cluster()
    if owner:
        spec = DomainSpec(name="web", memory=64, disks=(DiskSpec(vdev="xvda", volume="disk"),))
        put = OWNERS.put("web", Owner(domain="web", node=owner, boot="1"))
        await store.commit([], [DOMAINS.put("web", DomainRecord(spec=spec)), put])
    nothing: Any = SimpleNamespace()
    own: Any = SimpleNamespace(node="here", mine=Served)
    peers: Any = Silent()
    moves = VolumeMoves(
        own, nothing, nothing, nothing, store=store, peers=peers, clock=RealClock(), hold=Hold(tmp_path / "hold"),
        folder=tmp_path / "moves",
    )  # fmt: skip
    running = asyncio.create_task(moves.run())
    await asyncio.sleep(0)
    try:
        with pytest.raises(Refused, match=told):
            await moves.source.start("disk", target, rate=0, remove_source=False, report=lambda *_: None)
        assert await VOLUME_MOVES.get(store, "disk") is None
        assert list((tmp_path / "moves").glob("*")) == []
    finally:
        running.cancel()
        await asyncio.wait({running})
