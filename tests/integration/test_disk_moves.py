"""Domains that move with disks that only their node has: a raw root and a qcow2 beside it, from test1 to test2.

The lab's nodes share one filesystem, so the target's files always have a folder of their own here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, aside, until

from guest_parts import start_counting
from veery.host.run import run
from veery.lab import faults
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.storage.image import build_into

NAME = "nomad"
ROOT, DATA = 48 << 20, 96 << 20


@dataclass(frozen=True)
class Nomad:
    """The domain's file, and the folders of its disks on the two nodes."""

    file: Path
    here: Path
    there: Path

    def files(self) -> set[str]:
        """What lies in both folders, as FOLDER/NAME."""
        return {f"{path.parent.name}/{path.name}" for folder in (self.here, self.there) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def image(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem to copy."""
    path = tmp_path_factory.mktemp("image") / "root.img"
    with path.open("wb") as file:
        file.truncate(ROOT)
    aside(build_into(path, ROOT, kernel=workshop.guest.kernel, modules=workshop.guest.modules))
    return path


async def _make(near: Node, workshop: Workshop, image: Path, folder: Path, room: int = 0) -> Nomad:
    """Started on `near`; with `room`, its disks have so many bytes there to grow into."""
    await workshop.clear(NAME)
    nomad = Nomad(folder / NAME, folder / "here", folder / "there")
    for path in (nomad.here, nomad.there):
        path.mkdir()
    if room:
        size = f"size={allocated(image) + room}"
        await run(["mount", "-t", "tmpfs", "-o", size, "disks", nomad.here], deadline=20)
    root, data = nomad.here / "root.img", nomad.here / "data.qcow2"
    await run(["cp", "--sparse=always", image, root], deadline=30)
    await run(["qemu-img", "create", "-q", "-f", "qcow2", data, str(DATA)], deadline=30)
    disks = [f"{root},raw,xvda,w", f"{data},qcow2,xvdb,w"]
    workshop.file(NAME, disk=disks).replace(nomad.file)
    await near.veery("create", nomad.file)
    await start_counting(near.lab, near.name, NAME)
    async with Shell(near.lab.client(near.name).address, NAME) as shell:
        await shell.run("echo brought >/dev/vdb; sync")
    return nomad


@pytest.fixture
def nomad(near: Node, workshop: Workshop, image: Path, tmp_path: Path) -> Iterator[Nomad]:
    """A domain with two local disks that runs on test1 and counts."""
    yield aside(_make(near, workshop, image, tmp_path))
    aside(workshop.clear(NAME))


@pytest.fixture
def cramped(near: Node, workshop: Workshop, image: Path, tmp_path: Path) -> Iterator[Nomad]:
    """The same, on a filesystem that is soon full."""
    try:
        yield aside(_make(near, workshop, image, tmp_path, room=12 << 20))
    finally:
        aside(workshop.clear(NAME))
        aside(run(["umount", tmp_path / "here"], deadline=20))


@contextlib.asynccontextmanager
async def guest(node: Node) -> AsyncIterator[Shell]:
    async with Shell(node.lab.client(node.name).address, NAME) as shell:
        await shell.ready()
        yield shell


async def count(node: Node) -> int:
    async with guest(node) as shell:
        return int((await shell.run("cat /tmp/count")).split()[-1])


async def goes_on(node: Node, before: int) -> None:
    """The counter has gone on, and goes on, in memory and on the disk."""
    assert await count(node) >= before

    async def further() -> bool:
        return await count(node) > before

    await until(further, "the counter goes on")


async def nothing_open(lab: Lab) -> str:
    """No journal, reservation, NBD socket or process that belongs to no domain."""
    for name in ("test1", "test2"):
        home = lab.plan.home(name)
        left = [*(home / "lib" / "journal").glob("*.json"), *(home / "run" / "domains").glob("*/nbd")]
        if left:
            return f"{name}: {left}"
        sockets = (await lab.run(name, ["ss", "-xlH"])).out
        if "veery-disks-" in sockets:
            return f"{name}: {sockets}"
    return ""


async def settled(lab: Lab) -> None:
    async def still() -> bool:
        return not await nothing_open(lab)

    await until(still, f"nothing left: {await nothing_open(lab)}", within=90)


async def clean(node: Node, path: Path) -> None:
    """The filesystem in `path` is whole; its domain must not run."""
    checked = await node.lab.run(node.name, ["e2fsck", "-fn", path], check=False)
    assert checked.code == 0, checked.out


async def quiet(node: Node) -> None:
    """Nothing more is written."""
    async with guest(node) as shell:
        await shell.run("kill $(cat /tmp/counter.pid); mount -o remount,ro /; sync")


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_there_with_its_disks_and_back(nomad: Nomad, near: Node, far: Node, lab: Lab) -> None:
    told = await near.refused("migrate", NAME, "test2")
    assert "xvda" in told
    assert "--with-disks" in told

    before = await count(near)
    result = await near.result("migrate", "--with-disks", "--disk-dir", str(nomad.there), NAME, "test2", within=180)
    assert result.code == 0, result.err
    assert re.search(r"MiB of disks; kept on test1: \S+root.img.moved-to-test2, \S+", result.out)
    steps = re.findall(r"  (BEGIN|PREPARE|COPY \w+|LOADED|COMMIT|FINISH|CONFIRM)  ", result.err + "  ")
    assert "COPY disks" in steps
    assert await near.domain(NAME) == {}
    await goes_on(far, before)
    async with guest(far) as shell:
        assert "brought" in await shell.run("head -c 7 /dev/vdb; echo")
    assert nomad.files() == {
        *("here/root.img.moved-to-test2", "here/data.qcow2.moved-to-test2"),
        *("there/nomad-xvda.raw", "there/nomad-xvdb.qcow2"),
    }
    assert allocated(nomad.there / "nomad-xvdb.qcow2") < 8 << 20
    assert allocated(nomad.there / "nomad-xvda.raw") < ROOT
    await settled(lab)
    assert (await near.traces())["taps"] == set()
    assert len((await far.traces())["taps"]) == 1

    # Back, its files removed behind it; and a plain restart where the bytes are.
    before = await count(far)
    home = nomad.here / "again"
    home.mkdir()
    back = ("migrate", "--with-disks", "--remove-source", "--disk-dir", str(home), NAME, "test1")
    assert "kept" not in await far.veery(*back, within=180)
    await goes_on(near, before)
    assert list(nomad.there.iterdir()) == []
    await settled(lab)
    await quiet(near)
    await near.veery("destroy", NAME)
    await clean(near, home / "nomad-xvda.raw")


async def test_stale_files_start_nothing(nomad: Nomad, near: Node, far: Node) -> None:
    """Even when a user puts the old files back where they were."""
    await near.veery("migrate", "--with-disks", "--disk-dir", str(nomad.there), NAME, "test2", within=180)
    await far.veery("destroy", NAME)
    for name in ("root.img", "data.qcow2"):
        (nomad.here / f"{name}.moved-to-test2").rename(nomad.here / name)
    told = await near.refused("create", nomad.file)
    assert "was moved to test2" in told
    assert str(nomad.there / "nomad-xvda.raw") in told
    assert (await near.store())[0] == {}
    await near.veery("delete", NAME)
    await near.veery("create", nomad.file)


async def test_what_the_target_lacks_is_told_at_once(nomad: Nomad, near: Node, far: Node, lab: Lab) -> None:
    told = await near.result("migrate", "--with-disks", NAME, "test2")  # the same path: one filesystem in this lab
    assert told.code == 1
    assert "root.img exists already; " in told.err
    assert "data.qcow2 exists already" in told.err
    assert "hint: name another folder of the target for its disks: --disk-dir" in told.err
    told = await near.result("migrate", "--with-disks", "--disk-dir", "/no/such", NAME, "test2")
    assert told.code == 1
    assert "there is no folder /no/such" in told.err
    told = await near.refused("migrate", "--disk-dir", "/srv", NAME, "test2")
    assert "--with-disks" in told
    assert nomad.files() == {"here/root.img", "here/data.qcow2"}
    assert await far.domains() == {}
    await settled(lab)
    await goes_on(near, await count(near))


async def _copying(lab: Lab, nomad: Nomad, *more: str) -> Any:
    """A slow move, its disks under way: the task."""
    argv = ("migrate", "--with-disks", "--rate", "4M", "--disk-dir", str(nomad.there), *more, NAME, "test2")
    moving = asyncio.create_task(lab.veery("test1", *argv, deadline=180, check=False))
    data = nomad.there / "nomad-xvda.raw"

    async def flows() -> bool:
        return data.exists() and allocated(data) > 1 << 20

    await until(flows, "its disks flow")
    return moving


@pytest.mark.parametrize("victim", ["test2", pytest.param("test1", marks=pytest.mark.slow)])
async def test_a_daemon_killed_while_disks_flow(nomad: Nomad, near: Node, far: Node, lab: Lab, victim: str) -> None:
    before = await count(near)
    moving = await _copying(lab, nomad)
    await faults.kill(lab, victim, "veeryd")
    if victim == "test2":
        told = await moving
        assert told.code == 1
        assert "nomad runs on test1" in told.err
    await lab.start(victim)
    await moving
    await settled(lab)
    assert await far.domains() == {}
    assert nomad.files() == {"here/root.img", "here/data.qcow2"}
    await goes_on(near, before)
    await near.veery("migrate", "--with-disks", "--disk-dir", str(nomad.there), NAME, "test2", within=180)
    await goes_on(far, before)
    await settled(lab)
    await quiet(far)
    await far.veery("destroy", NAME)
    await clean(far, nomad.there / "nomad-xvda.raw")


async def test_cancelled_while_disks_flow(nomad: Nomad, near: Node, far: Node, lab: Lab) -> None:
    before = await count(near)
    moving = await _copying(lab, nomad)
    (row,) = [row for row in await near.json("moves", "--json") if row["state"] == "running"]
    await near.veery("move", "cancel", row["id"])
    told = await moving
    assert told.code == 1
    assert "nomad runs on test1" in told.err
    await settled(lab)
    assert nomad.files() == {"here/root.img", "here/data.qcow2"}
    assert await far.domains() == {}
    await goes_on(near, before)


async def test_a_folder_of_the_target_that_is_full_during_a_move(nomad: Nomad, near: Node, far: Node, lab: Lab) -> None:
    """The move is undone, and the domain runs on with the disks that it had."""
    before, wanted = await count(near), 16 << 20
    size = allocated(nomad.here / "root.img") + allocated(nomad.here / "data.qcow2") + (2 << 20)
    await run(["mount", "-t", "tmpfs", "-o", f"size={size}", "disks", nomad.there], deadline=20)
    try:
        moving = await _copying(lab, nomad, "--rate", "512K", "--compress", "no")  # the whole move takes minutes
        async with guest(near) as shell:
            await shell.run(f"(tr '\\0' x </dev/zero | head -c {wanted} >/dev/vdb; sync; touch /tmp/written) & :")
        told = await moving
        assert told.code == 1, told
        assert "broke: No space left on device" in told.err
        assert "hint: does the target still have space for it? --disk-dir" in told.err
        await goes_on(near, before)
        await settled(lab)
        assert nomad.files() == {"here/root.img", "here/data.qcow2"}
        assert await far.domains() == {}
        async with guest(near) as shell:
            check = f"while [ ! -e /tmp/written ]; do sleep 0.2; done; head -c {wanted} /dev/vdb | tr -cd x | wc -c"
            assert await shell.run(f"echo 3 >/proc/sys/vm/drop_caches; {check}", deadline=120) == str(wanted)
    finally:
        await run(["umount", "--lazy", nomad.there], deadline=20)


async def test_a_disk_that_is_full_during_a_move(cramped: Nomad, near: Node, far: Node, lab: Lab) -> None:
    """QEMU stops the domain at the write that finds no room. The move goes on, and there the same write is done."""
    before, wanted = await count(near), 24 << 20
    moving = await _copying(lab, cramped, "--rate", "512K")  # this takes minutes: the disk is full before
    (move,) = [row["id"] for row in await near.json("moves", "--json") if row["state"] == "running"]

    async def stands() -> bool:
        row = await near.domain(NAME)
        return row.get("state") == "paused" and "o space" in row["reason"]

    async def told_of() -> bool:
        return f"{NAME} is stopped by an error of its disk" in (await near.result("events")).out

    async def hurried() -> bool:
        return (await near.result("move", "set", move, "--bandwidth", "1G")).code == 0

    try:
        async with guest(near) as shell:
            await shell.run(f"(tr '\\0' x </dev/zero | head -c {wanted} >/dev/vdb; sync; touch /tmp/written) & :")
        await until(stands, "its disk is full", within=120)
        assert f"after the repair: veery unpause {NAME}" in (await near.result("list")).err
        rows = json.loads((await near.result("doctor", "test1", "--json")).out)
        (row,) = [row for row in rows if row["what"] == "domains"]
        assert row["level"] == "bad"
        assert "o space" in row["told"]
        assert "is being moved" in row["advice"]
        await until(told_of, "the alarm of its disk", within=60)
        await until(hurried, "the copy is faster", within=120)
    finally:
        told = await moving
    assert told.code == 0, told.err
    await goes_on(far, before)
    await settled(lab)
    async with guest(far) as shell:
        check = f"while [ ! -e /tmp/written ]; do sleep 0.2; done; head -c {wanted} /dev/vdb | tr -cd x | wc -c"
        assert await shell.run(f"echo 3 >/proc/sys/vm/drop_caches; {check}", deadline=120) == str(wanted)
