"""How old a node's last heartbeat is, by the storage node's own clock."""

from __future__ import annotations

from pathlib import Path

from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.model.node import Node, Role
from veery.node.node_cache import NodeCache
from veery.node.storage_heartbeats import HeartbeatWatcher
from veery.storage.heartbeat import BLOCK_BYTES, HeartbeatBlock, HeartbeatFile, encode, slot

TEST1 = Node(name="test1", address="172.16.31.1", roles=(Role.HYPERVISOR,))
FAR = Node(name="far", address="172.32.31.1", roles=(Role.HYPERVISOR,))  # the same last 20 bits
STOR = Node(name="stor", address="172.16.31.3", roles=(Role.STORAGE,))


class HandClock(RealClock):
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


def _write(file: HeartbeatFile, node: Node, number: int, *, stopped: bool = False) -> None:
    with file.path.open("r+b") as raw:
        raw.seek(slot(node.address) * BLOCK_BYTES)
        raw.write(encode(HeartbeatBlock(node.name, number, stopped)))


async def test_only_a_change_is_a_sign(tmp_path: Path) -> None:
    clock, file = HandClock(), HeartbeatFile(tmp_path / "heartbeats")
    node_cache = NodeCache(MemoryStore(RealClock()), tmp_path / "nodes.json", clock)
    node_cache.keep({node.name: node for node in (TEST1, FAR, STOR)})
    file.make()
    _write(file, TEST1, 41)  # left from before we watched
    watcher = HeartbeatWatcher(STOR, file, node_cache, clock, portal="172.16.31.3:3260", iqn="iqn.x:heartbeat:stor")
    watcher.look()
    clock.time += 2
    watcher.look()
    assert watcher.told().signs == {}

    _write(file, TEST1, 42)
    watcher.look()
    clock.time += 5
    watcher.look()
    told = watcher.told()
    assert (told.watched, told.signs["test1"].age, told.signs["test1"].stopped) == (7.0, 5.0, False)
    _write(file, TEST1, 43, stopped=True)
    watcher.look()
    assert watcher.told().signs["test1"].stopped

    _write(file, FAR, 44)  # a block of two nodes: nobody is taken for alive by it
    watcher.look()
    clock.time += 1
    watcher.look()
    assert set(watcher.told().signs) == {"test1"}
    assert watcher.told().signs["test1"].age == 1.0


async def test_neighbours_are_known_after_a_restart(tmp_path: Path) -> None:
    store = MemoryStore(RealClock())
    NodeCache(store, tmp_path / "nodes.json", RealClock()).keep({"test1": TEST1})
    again = NodeCache(store, tmp_path / "nodes.json", RealClock())
    assert await again.find("172.16.31.1") == TEST1
    (tmp_path / "nodes.json").write_text("{")
    assert NodeCache(store, tmp_path / "nodes.json", RealClock()).nodes == {}
