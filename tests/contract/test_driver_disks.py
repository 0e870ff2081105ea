"""What base.DiskMover promises: local disks that go along on a move, with the fake driver and with QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_driver import PLAIN, UP, Move, QemuRig, Rig, refused, rig, snapshot, the

import qemu_parts as parts
from veery.errors import Failed, Refused
from veery.hypervisor.base import DiskMover
from veery.migrate import pump
from veery.model.domain import DiskFormat, DomainSpec, DomainState
from veery.model.volume import AttachedDisk, LocalDisk
from veery.storage import local

__all__ = ["rig", "snapshot"]  # fixtures

SIZE = 64 << 20


class DiskMove(Move):
    """A move that takes the domain's only disk to another file."""

    async def prepare_disk(self, target: Path) -> Path:
        """The half domain, its empty disk made and served: the socket."""
        (disk,) = await self.near.local_disks(self.uuid)  # type: ignore[attr-defined]
        going = local.take(replace(disk, target=str(target)))
        await local.form(going)
        spec, luggage = await self.near.pack(self.uuid)
        _, attachments = await self.near.spec(self.uuid)
        spec = replace(spec, disks=(replace(spec.disks[0], target=str(target)),))
        there = AttachedDisk(spec=spec.disks[0], source=LocalDisk(path=str(target), format=disk.format, block=False))
        attachments = replace(attachments, domid=0, disks=(there,))
        await self.far.prepare(spec, attachments, luggage, b"", tls=False, peer="test1")
        served = await self.far.export_disks(self.uuid, ["xvda"], tls=False, peer="test1")  # type: ignore[attr-defined]
        return Path(served)

    async def mirror(self, through: str) -> None:
        """Copy the disk; whole when it returns."""
        await self.near.mirror_disks(  # type: ignore[attr-defined]
            self.uuid, ["xvda"], through, self.settings, self.progress.append, peer="test2"
        )


async def its_pid(rig: Rig, uuid: str) -> int:
    """The source's process; 0 where there is none."""
    return (await the(rig.near, uuid)).pid if isinstance(rig, QemuRig) else 0


@contextlib.asynccontextmanager
async def way(served: Path, pid: int) -> AsyncIterator[str]:
    """What the two daemons do between the two: here in one process. `pid` is the source's."""

    async def connect() -> socket.socket:
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await asyncio.get_running_loop().sock_connect(far, str(served))
        return far

    async with pump.outlet(connect, pid, 15.0) as name:
        yield name


async def with_disk(rig: Rig, path: Path, kind: DiskFormat = DiskFormat.RAW) -> DomainSpec:
    """A domain that runs on `near` with one disk of 64 MiB, of which 1 MiB is written."""
    spec: DomainSpec = await rig.up(rig.near)
    disk = parts.disk(path, size=SIZE)
    with path.open("r+b") as file:
        file.seek(3 << 20)
        file.write(bytes(range(256)) * 4096)
    if kind is DiskFormat.QCOW2:
        raw, path = path, path.with_suffix(".qcow2")
        await parts_run("qemu-img", "convert", "-O", "qcow2", raw, path)
        disk = replace(
            disk,
            spec=replace(disk.spec, target=str(path), format=kind),
            source=LocalDisk(path=str(path), format=kind, block=False),
        )
    await rig.near.attach_disk(spec.uuid, disk)
    return spec


async def parts_run(*words: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, words))
    assert await process.wait() == 0


def block(path: Path, number: int) -> str:
    """The text at a block of 4 KiB."""
    with path.open("rb") as file:
        file.seek(number * 4096)
        return file.read(4096).rstrip(b"\0").decode()


async def test_a_disk_goes_along(rig: Rig, tmp_path: Path) -> None:
    near, far = tmp_path / "near.img", tmp_path / "far.img"
    spec = await with_disk(rig, near)
    assert isinstance(rig.near, DiskMover)
    (disk,) = await rig.near.local_disks(spec.uuid)
    assert (disk.vdev, disk.path, disk.size, disk.block) == ("xvda", str(near), SIZE, False)
    move = DiskMove(rig.near, rig.far, spec.uuid)
    async with way(await move.prepare_disk(far), await its_pid(rig, spec.uuid)) as through:
        await move.mirror(through)
        assert {reading.step for reading in move.progress} == {"disks"}
        assert move.progress[-1].disk_remaining == 0
        await rig.scribble(rig.near, spec.uuid, "late", 100)  # each write goes to both now
        await move.copy()
    assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
    assert block(far, 100) == "late"
    assert far.read_bytes() == near.read_bytes()
    await rig.far.finish(spec.uuid)
    await rig.near.destroy(spec.uuid)
    assert await rig.alive(rig.far, spec.uuid)
    await rig.scribble(rig.far, spec.uuid, "after", 101)
    assert block(far, 101) == "after"
    assert block(near, 101) == ""
    if isinstance(rig, QemuRig):
        assert far.stat().st_blocks * 512 < 8 << 20  # what was sparse is
        assert not list((rig.folder / "test2" / "domains").glob("*/nbd"))


async def test_qcow2_goes_along(rig: Rig, tmp_path: Path) -> None:
    if not isinstance(rig, QemuRig):
        return
    spec = await with_disk(rig, tmp_path / "near.img", DiskFormat.QCOW2)
    (disk,) = await rig.near.local_disks(spec.uuid)
    assert (disk.format, disk.size) == (DiskFormat.QCOW2, SIZE)
    far = tmp_path / "far.qcow2"
    move = DiskMove(rig.near, rig.far, spec.uuid)
    async with way(await move.prepare_disk(far), await its_pid(rig, spec.uuid)) as through:
        await move.mirror(through)
        await move.copy()
    await rig.far.finish(spec.uuid)
    await rig.near.destroy(spec.uuid)
    await rig.far.destroy(spec.uuid)
    await parts_run("qemu-img", "compare", "-q", tmp_path / "near.qcow2", far)
    await parts_run("qemu-img", "check", "-q", far)
    assert far.stat().st_blocks * 512 < 8 << 20


async def test_what_breaks_leaves_the_domain_running(rig: Rig, tmp_path: Path) -> None:
    near, far = tmp_path / "near.img", tmp_path / "far.img"
    spec = await with_disk(rig, near)
    move = DiskMove(rig.near, rig.far, spec.uuid, replace(PLAIN, stall=3.0))

    with pytest.raises(Failed):  # nobody there
        await move.mirror("veery-nobody")
    assert await rig.alive(rig.near, spec.uuid)

    served = await move.prepare_disk(far)  # the way is lost between the two copies
    async with way(served, await its_pid(rig, spec.uuid)) as through:
        await move.mirror(through)
        await refused(rig.near.pause(spec.uuid))
    with pytest.raises(Failed):
        await move.copy()
    await rig.near.resume(spec.uuid)
    assert (await the(rig.near, spec.uuid)).state in UP
    await rig.scribble(rig.near, spec.uuid, "on", 7)
    assert block(near, 7) == "on"
    await rig.far.destroy(spec.uuid)
    far.unlink()

    async with way(
        await move.prepare_disk(far), await its_pid(rig, spec.uuid)
    ) as through:  # everything was copied, and then the owner stayed
        await move.mirror(through)
        await move.copy()
        await rig.far.destroy(spec.uuid)
        await rig.near.resume(spec.uuid)
    await rig.scribble(rig.near, spec.uuid, "still", 8)
    assert block(near, 8) == "still"
    far.unlink()

    await Move(rig.near, rig.far, spec.uuid).whole()  # and a plain move of it works as before
    assert await rig.alive(rig.far, spec.uuid)


async def test_its_bandwidth_is_changed_on_the_way(rig: Rig, tmp_path: Path) -> None:
    """QEMU has 16 MiB under way before it rests: at the first speed, the rest takes more than an hour."""
    if not isinstance(rig, QemuRig):
        return
    near, far = tmp_path / "near.img", tmp_path / "far.img"
    spec = await with_disk(rig, near)
    with near.open("r+b") as file:
        file.seek(4 << 20)
        file.write(bytes(range(1, 256)) * ((32 << 20) // 255))
    with pytest.raises(Refused):
        await rig.near.tune_disks(spec.uuid, 1 << 20)  # type: ignore[attr-defined]
    slow = DiskMove(rig.near, rig.far, spec.uuid, replace(PLAIN, bandwidth=4 << 10))
    async with way(await slow.prepare_disk(far), await its_pid(rig, spec.uuid)) as through:
        copying = asyncio.create_task(slow.mirror(through))
        await parts.becomes(lambda: asyncio.sleep(0.05, slow.progress), bool)
        await rig.near.tune_disks(spec.uuid, 1 << 10)  # type: ignore[attr-defined]
        await rig.near.tune_disks(spec.uuid, 0)  # type: ignore[attr-defined]
        async with asyncio.timeout(120):
            await copying
        assert slow.progress[-1].disk_remaining == 0
        await slow.copy()
    await rig.far.finish(spec.uuid)
    await rig.near.destroy(spec.uuid)
    assert far.read_bytes() == near.read_bytes()


async def test_a_qemu_killed_while_its_disk_is_copied(rig: Rig, tmp_path: Path) -> None:
    if not isinstance(rig, QemuRig):
        return
    spec = await with_disk(rig, tmp_path / "near.img")
    slow = DiskMove(rig.near, rig.far, spec.uuid, replace(PLAIN, bandwidth=1 << 20))
    async with way(await slow.prepare_disk(tmp_path / "far.img"), await its_pid(rig, spec.uuid)) as through:
        copying = asyncio.create_task(slow.mirror(through))
        await parts.becomes(lambda: asyncio.sleep(0.05, slow.progress), bool)
        await rig.kill(rig.near, await the(rig.near, spec.uuid))
        with pytest.raises(Failed):
            await copying
    await parts.becomes(rig.near.list, lambda found: not found)
    assert not list((rig.folder / "test1" / "domains").glob("[0-9]*"))
    await rig.far.destroy(spec.uuid)

    spec = await with_disk(rig, tmp_path / "more.img")  # and the target's
    slow = DiskMove(rig.near, rig.far, spec.uuid, replace(PLAIN, bandwidth=1 << 20))
    async with way(await slow.prepare_disk(tmp_path / "there.img"), await its_pid(rig, spec.uuid)) as through:
        copying = asyncio.create_task(slow.mirror(through))
        await parts.becomes(lambda: asyncio.sleep(0.05, slow.progress), bool)
        await rig.kill(rig.far, await the(rig.far, spec.uuid))
        with pytest.raises(Failed, match="xvda broke"):
            await copying
    assert (await the(rig.near, spec.uuid)).state in UP
    await rig.near.pause(spec.uuid)
    await rig.near.unpause(spec.uuid)
    assert await rig.alive(rig.near, spec.uuid)


async def test_a_daemon_that_died_with_its_mirrors(rig: Rig, tmp_path: Path) -> None:
    if not isinstance(rig, QemuRig):
        return
    near, far = tmp_path / "near.img", tmp_path / "far.img"
    spec = await with_disk(rig, near)
    move = DiskMove(rig.near, rig.far, spec.uuid)
    async with way(await move.prepare_disk(far), await its_pid(rig, spec.uuid)) as through:
        await move.mirror(through)
        move.near = driver = await rig.again(rig.near)
        await driver.resume(spec.uuid)
        assert (await the(driver, spec.uuid)).state in UP
    await rig.far.destroy(spec.uuid)
    far.unlink()
    async with way(await move.prepare_disk(far), await its_pid(rig, spec.uuid)) as through:
        await move.mirror(through)
        await move.copy()
    await rig.far.finish(spec.uuid)
    await driver.destroy(spec.uuid)
    assert far.read_bytes() == near.read_bytes()
    assert await rig.alive(rig.far, spec.uuid)
