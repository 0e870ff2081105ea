"""A domain saved to a file and started from it again, and every file from which it must not be.

The tests of this file share one domain, swift."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_parts import Node, Workshop, aside

NAME = "swift"


async def _make(near: Node, workshop: Workshop) -> Path:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    path = workshop.file(NAME)
    await near.veery("create", path)
    await near.booted(NAME)
    return path


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Path]:
    yield aside(_make(near, workshop))
    aside(workshop.clear(NAME))


@pytest.fixture
async def swift(made: Path, near: Node) -> Path:
    """The domain's file; the domain runs."""
    if await near.domain(NAME) == {}:
        await near.veery("create", made)
        await near.booted(NAME)
    return made


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 4 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_save_and_restore(swift: Path, near: Node, far: Node, tmp_path: Path) -> None:
    file = tmp_path / "swift.save"
    before = await near.domain(NAME)
    devices = await near.json("list", "-l", NAME)
    records = (await near.traces())["records"]
    assert NAME in records
    async with near.shell(NAME) as shell:
        await shell.run("echo remembered >/tmp/mark; (sleep 1000 & echo $! >/tmp/pid); echo kept >/root/mark; sync")
        up = float((await shell.run("cat /proc/uptime")).split()[0])
    await near.veery("save", NAME, file)
    gone = await near.traces()
    assert gone == {"taps": set(), "qemus": set(), "homes": set(), "owners": {}, "records": records}
    assert [path.name for path in tmp_path.iterdir()] == ["swift.save"]

    said = await near.veery("restore", file)
    assert said.startswith(f"Restored domain {NAME} (id=")
    after = await near.domain(NAME)
    assert (after["uuid"], after["memory"]) == (before["uuid"], before["memory"])
    assert after["domid"] != before["domid"]
    assert after["started"] == before["started"]
    (now,) = await near.json("list", "-l", NAME)
    assert now["config"] == devices[0]["config"]
    async with near.shell(NAME) as shell:
        assert await shell.run("cat /tmp/mark /root/mark; kill -0 $(cat /tmp/pid)") == "remembered\nkept"
        assert up <= float((await shell.run("cat /proc/uptime")).split()[0]) < up + 60

    # it runs: nobody may start the file a second time, here or there
    assert "already here" in await near.refused("restore", file)
    assert "is stale" in await far.refused("restore", file)
    await near.veery("destroy", NAME)
    assert f"{NAME} has run since it was saved" in await near.refused("restore", file)
    assert await near.traces() == gone


async def test_a_paused_domain_stays_paused(swift: Path, near: Node, tmp_path: Path) -> None:
    await near.veery("pause", NAME)
    await near.veery("save", NAME, tmp_path / "file")
    await near.veery("restore", tmp_path / "file")
    assert (await near.domain(NAME))["state"] == "paused"
    await near.veery("unpause", NAME)
    async with near.shell(NAME) as shell:
        assert await shell.run("echo on") == "on"


async def test_a_checkpoint_is_no_way_back(swift: Path, near: Node, tmp_path: Path) -> None:
    """The domain runs on and writes to its disks: the file may be restored by force only."""
    file = tmp_path / "point"
    domid = (await near.domain(NAME))["domid"]
    await near.veery("save", "-c", NAME, file)
    assert (await near.domain(NAME))["domid"] == domid
    async with near.shell(NAME) as shell:
        assert await shell.run("echo on") == "on"
        await shell.run("mount -o remount,ro /")  # so that the force below does no harm
    await near.veery("destroy", NAME)
    assert "stale" in await near.refused("restore", file)
    await near.veery("restore", "--force", "-p", file)
    assert (await near.domain(NAME))["state"] == "paused"
    await near.veery("save", "-p", NAME, tmp_path / "again")
    assert (await near.domain(NAME))["state"] == "paused"
    await near.veery("destroy", NAME)


async def test_a_saved_domain_that_was_let_run_after_all(swift: Path, near: Node, tmp_path: Path) -> None:
    """create starts it anew from its disks; the file is stale from then on."""
    await near.veery("save", NAME, tmp_path / "file")
    await near.veery("create", "-p", swift)
    await near.veery("destroy", NAME)
    assert "stale" in await near.refused("restore", tmp_path / "file")


async def test_files_that_are_none(swift: Path, near: Node, far: Node, tmp_path: Path) -> None:
    await near.veery("save", NAME, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("a text\n" * 100)
    (tmp_path / "short").write_bytes(good[:-1])
    (tmp_path / "hole").write_bytes(good[: len(good) // 4] + good[len(good) // 2 :])
    before = await near.traces()
    for name in ("empty", "text", "short"):
        assert "is not a save file" in await near.refused("restore", tmp_path / name)
    assert "No such file" in await near.refused("restore", tmp_path / "nothing")
    assert NAME in await near.refused("restore", tmp_path / "hole")
    assert await near.traces() == before
    await far.veery("restore", tmp_path / "good")  # a failed try did not use it up, and any node may take it
    async with far.shell(NAME) as shell:
        assert await shell.run("cat /root/mark") == "kept"
    await far.veery("destroy", NAME)


async def test_saving_where_nothing_can_be_written(swift: Path, near: Node, tiny: Path) -> None:
    (tiny / "old").write_bytes(b"an older file")
    before = await near.traces()
    domid = (await near.domain(NAME))["domid"]
    for path in (tiny / "old", tiny / "new"):
        assert "o space left" in await near.refused("save", NAME, path)
    assert {path.name: path.read_bytes() for path in tiny.iterdir()} == {"old": b"an older file"}
    assert "is a folder" in await near.refused("save", NAME, tiny)
    assert "its folder does not exist" in await near.refused("save", NAME, tiny / "no/file")
    assert await near.traces() == before
    assert (await near.domain(NAME))["domid"] == domid
    async with near.shell(NAME) as shell:
        assert await shell.run("echo alive") == "alive"
