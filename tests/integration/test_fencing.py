"""Fences on real parts: a hypervisor of the lab shut out by the storage node, while its domain writes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, aside, scan, until

from veery.client.http import Client
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put, Store
from veery.errors import VeeryError
from veery.ha.fence.base import NotProven
from veery.ha.fence.storage import StorageFence
from veery.host.clock import RealClock
from veery.lab import faults
from veery.lab.services import Lab
from veery.model.codec import convert
from veery.model.fence import Clean, Cut, Fenced

NAME = "plover"
WRITE = "while :; do date >>/written; sync; done"


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Workshop]:
    """A volume; the cluster does nothing by itself meanwhile: it would let a fenced node in that is there."""
    aside(near.veery("disarm"))
    aside(workshop.clear(NAME))
    aside(workshop.volume(NAME))
    yield workshop
    aside(workshop.clear(NAME))
    aside(near.veery("arm"))


@pytest.fixture
async def plover(made: Workshop, near: Node) -> Workshop:
    """One domain that writes all the time, on test1."""
    await made.clear()
    if not await near.domain(NAME):
        await near.veery("create", made.file(NAME))
    async with near.shell(NAME) as shell:
        await shell.run(f"{{ {WRITE}; }} & true")
    return made


class Asks:
    """A fence's way to other nodes' APIs: their sockets, as this machine has them all."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def __call__(self, node: str, method: str, path: str, *, deadline: float) -> Any:
        client: Client = self._lab.client(node, deadline=deadline)
        order = client.get if method == "GET" else client.post
        return await asyncio.to_thread(order, path)


class Bytes:
    """The volume's file on the storage node."""

    def __init__(self, lab: Lab) -> None:
        self._path: Path = lab.plan.home("stor") / "lib/volumes" / f"{NAME}.img"

    def changed(self) -> int:
        return self._path.stat().st_mtime_ns

    async def written(self) -> None:
        before = self.changed()

        async def moved() -> bool:
            return self.changed() != before

        await until(moved, "a write")

    async def still(self, seconds: float) -> None:
        before = self.changed()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            assert self.changed() == before, "written to by a node that is fenced"


async def _begin(lab: Lab, node: str) -> Fenced:
    return convert(await asyncio.to_thread(lab.client("stor").post, f"/v1/fences/{node}", {}), Fenced)


async def _cut(lab: Lab, node: str) -> Cut:
    return convert(await Asks(lab)("stor", "POST", f"/v1/fences/{node}/cut", deadline=30), Cut)


async def test_a_fenced_node_writes_nothing_until_it_is_let_in(
    plover: Workshop, lab: Lab, near: Node, far: Node, stor: Node
) -> None:
    disk = Bytes(lab)
    await disk.written()
    with pytest.raises(VeeryError, match="test1 is not fenced"):  # the record comes first, or it would not last
        await _cut(lab, "test1")

    fence = await _begin(lab, "test1")
    assert await _begin(lab, "test1") == fence
    cut = await _cut(lab, "test1")

    assert (cut.storage, cut.fence) == ("stor", fence.created)
    assert cut.targets == 2  # the volume, and the heartbeats
    await disk.still(3)  # QEMU tries again after two seconds
    (target,) = [one for one in await stor.targets() if one["iqn"].endswith(NAME)]
    assert target["sessions"] == []
    assert [name.rpartition(":")[2] for name in target["acl"]] == ["test2"]
    await faults.kill(lab, "stor", "tgtd")  # the next one must not let it in either

    async def proven() -> bool:
        try:
            return bool(convert(await Asks(lab)("stor", "GET", "/v1/fences/test1/cut", deadline=10), Cut).targets)
        except VeeryError:
            return False

    await until(proven, "tgtd is back and test1 still shut out")
    await disk.still(3)

    rows = (await far.veery("fence", "list")).splitlines()
    assert rows[1].split()[:2] == ["test1", "fencing"]
    assert "state    : fencing" in await far.veery("fence", "show", "test1")
    assert "is alive" in await far.refused("fence", "confirm", "test1", "--yes")

    clean = convert(await asyncio.to_thread(lab.client("test1").get, "/v1/clean"), Clean)
    assert (list(clean.kept), clean.stale, clean.fence) == ([NAME], (), fence.created)
    assert NAME in await far.veery("fence", "lift", "test1")  # nobody else had it: it runs on
    await disk.written()
    async with near.shell(NAME) as shell:
        assert await shell.run("echo unharmed") == "unharmed"
    assert "test1 is not fenced" in await far.refused("fence", "lift", "test1")


async def test_a_frozen_node_is_cut_off_and_its_copy_ended_when_it_wakes(
    plover: Workshop, lab: Lab, near: Node, far: Node
) -> None:
    """Its domain is taken away while it stands still; what wakes writes nothing, is ended, and only then let in."""
    disk = Bytes(lab)
    await disk.written()
    await faults.freeze(lab, "test1")
    try:
        fence = await _begin(lab, "test1")
        way = StorageFence(await _records(lab), Asks(lab))
        with pytest.raises(NotProven, match="another fence"):
            await way.proof(replace(fence, created=1), 0.0)
        await way.off(fence, 0.0)
        proof = await way.proof(fence, 0.0)
        assert "stor (2 targets)" in proof.seen
        script = Path(__file__).with_name("take_domain.py")
        told = await lab.run("stor", [sys.executable, script, lab.plan.settings("stor"), NAME, "test1"])
        assert told.out.strip() == "True"
        await far.veery("create", plover.file(NAME))
        await far.booted(NAME)
        await far.veery("pause", NAME)
        await asyncio.sleep(1)
    finally:
        faults.thaw(lab, "test1")
    await disk.still(3)
    await near.gone(NAME)
    await disk.still(3)
    assert (await far.domain(NAME))["state"] == "paused"
    await until(lambda: _lifted(far), "test1 let in")
    await far.veery("unpause", NAME)
    async with far.shell(NAME) as shell:
        assert await shell.run("echo unharmed") == "unharmed"
    await far.veery("destroy", NAME)


async def _records(lab: Lab) -> Store:
    """What the lab's store holds now, as a store to read from."""
    copy = MemoryStore(RealClock())
    for prefix in ("volume/", "node/", "domain/", "owner/"):
        rows = await scan(lab, prefix)
        for name, value in rows.items():
            await copy.commit([], [Put(prefix + name, json.dumps(value).encode())])
    return copy


async def _lifted(node: Node) -> bool:
    return (await node.result("fence", "lift", "test1")).code == 0


async def test_an_operators_word_is_taken_for_an_absent_node_only(lab: Lab, near: Node, far: Node) -> None:
    assert "no node test7" in (await far.refused("fence", "confirm", "test7", "--yes")).replace("'", "")
    assert "stdin is not a terminal" in await far.refused("fence", "confirm", "test2")
    await faults.power_off(lab, "test1")
    try:

        async def absent() -> bool:
            rows = await asyncio.to_thread(lab.client("test2").get, "/v1/nodes")
            return not next(row["alive"] for row in rows if row["node"]["name"] == "test1")

        await until(absent, "test1 absent")
        await far.veery("fence", "confirm", "test1", "--yes")
        shown = await far.veery("fence", "show", "test1")
        assert "state    : fenced" in shown
        assert "@local confirmed that it is off" in shown
    finally:
        await faults.power_on(lab, "test1")
    await lab.healthy()
    await until(lambda: _lifted(far), "test1 let in")
    assert (await far.veery("fence", "list")).splitlines()[1:] == []
