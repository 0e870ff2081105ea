"""The role of a storage node, given and taken away: on a store in memory, and a real process in tgtd's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veery.cluster.identity import Identity
from veery.cluster.keys import NODES, VOLUME_MOVES, VOLUMES
from veery.cluster.memory import MemoryStore
from veery.config.settings import Settings, StorageSettings
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.host.process import Process
from veery.model.cluster import Cluster
from veery.model.node import Node, Role
from veery.model.volume import Backing, Volume, VolumeMove
from veery.node.storagerole import StorageRole, end_target, judge_loss, warn

NODE = Node(name="test1", address="127.31.78.1", roles=(Role.HYPERVISOR, Role.VOTER))
STOR = replace(NODE, roles=(*NODE.roles, Role.STORAGE))


def volume(name: str, node: str) -> Volume:
    return Volume(
        name=name,
        size=1 << 20,
        node=node,
        backing=Backing.FILE,
        path=f"/x/{name}",
        iqn=f"iqn.x:{name}",
        tid=1,
        portal="127.31.78.1:3260",
    )


def move(name: str, source: str, target: str) -> VolumeMove:
    was, place = volume(name, source), volume(name, target)
    return VolumeMove(id="1", volume=name, source=source, target=target, was=was, place=place)


made_store: dict[StorageRole, MemoryStore] = {}


class Member:
    """As Membership, in memory."""

    def __init__(self, node: Node) -> None:
        cluster = Cluster(name="lab", id="1", ca="", authority="iqn.x")
        self.identity = Identity(cluster=cluster, node=node, voters=("https://127.31.78.1:2379",))

    async def become(self, identity: Identity) -> None:
        self.identity = identity


class Here:
    """As Volumes, which can be closed; `late` is a volume that was made while it was closed."""

    def __init__(self, store: MemoryStore, late: Volume | None = None) -> None:
        self.store, self.late, self.closed = store, late, ""

    async def close(self, why: str) -> None:
        if self.late is not None:
            await self.store.commit([], [VOLUMES.put(self.late.name, self.late)])
        self.closed = why


async def role(root: Path, node: Node, *, late: Volume | None = None, **storage: Any) -> tuple[StorageRole, Member]:
    store, member = MemoryStore(RealClock()), Member(node)
    await store.commit([], [NODES.put(node.name, node)])
    here: Any = Here(store, late) if node.has(Role.STORAGE) else None
    settings = Settings(state=str(root), run=str(root / "run"), storage=StorageSettings(portal_port=19260, **storage))
    made = StorageRole(settings, store, member, here)
    made_store[made] = store
    return made, member


async def roles(made: StorageRole) -> tuple[Role, ...]:
    record = await NODES.get(made_store[made], "test1")
    assert record is not None
    return record.roles


async def test_a_node_becomes_a_storage_node_and_none_again(tmp_path: Path) -> None:
    made, member = await role(tmp_path, NODE)
    told = await made.on()
    assert told.nodes == ("test1",)
    assert "share a filesystem" in told.warning
    assert member.identity.node.roles == await roles(made) == (*NODE.roles, Role.STORAGE)
    assert (tmp_path / "volumes").is_dir()
    assert (await made.on()).nodes == ("test1",), "a second order changes nothing"
    told = await made.off()
    assert (told.nodes, "no storage node is left" in told.warning) == ((), True)
    assert member.identity.node.roles == await roles(made) == NODE.roles
    assert (await made.off()).nodes == ()


async def test_a_pool_or_a_port_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made, member = await role(tmp_path, NODE, pool=str(tmp_path / "file" / "pool"))
    with pytest.raises(Refused, match="file/pool"):
        await made.on()
    elsewhere, _ = await role(tmp_path, replace(NODE, address="192.0.2.1"))
    with pytest.raises(Refused, match=r"cannot listen on 192\.0\.2\.1:19260"):
        await elsewhere.on()
    assert member.identity.node == NODE
    assert await roles(made) == NODE.roles


async def test_a_node_that_holds_a_volume_keeps_the_role(tmp_path: Path) -> None:
    made, member = await role(tmp_path, STOR)
    await made_store[made].commit([], [VOLUMES.put("data", volume("data", "test1"))])
    with pytest.raises(Refused, match="it holds volume data"):
        await made.off()
    assert member.identity.node == STOR


async def test_a_volume_that_was_made_meanwhile_keeps_the_role(tmp_path: Path) -> None:
    made, member = await role(tmp_path, STOR, late=volume("late", "test1"))
    with pytest.raises(Refused, match="it holds volume late"):
        await made.off()
    assert member.identity.node == STOR
    assert await roles(made) == STOR.roles


async def test_a_volume_that_moves_to_it_keeps_the_role(tmp_path: Path) -> None:
    made, _ = await role(tmp_path, STOR)
    await made_store[made].commit([], [VOLUME_MOVES.put("data", move("data", "stor", "test1"))])
    with pytest.raises(Refused, match="volume data moves from or to it"):
        await made.off()


def test_what_the_role_is_needed_for() -> None:
    assert "no other role" in judge_loss(replace(NODE, roles=(Role.STORAGE,)), (), ())
    assert judge_loss(STOR, [volume("data", "stor")], [move("data", "a", "b")]) == ""
    assert (warn(()) != "", warn(("stor",))) == (True, "")


async def test_the_tgtd_of_a_former_storage_node_is_ended(tmp_path: Path) -> None:
    (tmp_path / "served.json").write_text("{}")
    process = Process.spawn(["sleep", "600"], log_file=tmp_path / "log")
    process.save(tmp_path / "tgtd.pid")
    await end_target(tmp_path, tmp_path)
    assert not process.alive()
    assert [path.name for path in tmp_path.glob("*.pid")] == [path.name for path in tmp_path.glob("*.json")] == []
    await end_target(tmp_path, tmp_path)  # nothing is there
