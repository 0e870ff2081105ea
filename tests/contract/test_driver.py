"""What base.Driver promises, asked of every driver we ship: the fake one, QEMU with real guests, and Xen by a scripted
xl; inside a nested Xen host (tests/nested) by the real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid as uuids
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qemu_parts as parts
import xen_parts
from veery.config.settings import Qemu
from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.hypervisor.base import ALONE, Driver
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.hypervisor.qemu.driver import QemuDriver
from veery.lab.guest import Guest
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, DomainState, OnEvent
from veery.model.move import CopyOptions, CopyResult, MoveProgress, MoveSettings, Phase, Tuning
from veery.model.volume import Attachments

PLAIN = MoveSettings(tls=False)
UP = {DomainState.RUNNING, DomainState.BLOCKED}


class FakeRig:
    """Two fake drivers in one world; guests do as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world = folder, World()
        self.near = FakeDriver("test1", self.world, RealClock())
        self.far = FakeDriver("test2", self.world, RealClock())

    def spec(self, name: str = "busybox", **changes: Any) -> DomainSpec:
        return DomainSpec(**({"name": name, "uuid": str(uuids.uuid4()), "memory": 96} | changes))

    async def up(self, driver: FakeDriver, name: str = "busybox", **changes: Any) -> DomainSpec:
        spec = self.spec(name, **changes)
        await driver.start(spec, Attachments())
        return spec

    async def booted(self, driver: FakeDriver, uuid: str, times: int = 1) -> None:
        driver.print(uuid, b"READY\r\n")

    async def tell(self, driver: FakeDriver, uuid: str, end: DomainEnd) -> None:
        driver.end(uuid, end)

    async def alive(self, driver: FakeDriver, uuid: str) -> bool:
        assert self.world.twice == []
        return driver.runs(uuid)

    async def scribble(self, driver: FakeDriver, uuid: str, text: str, block: int) -> None:
        """Write `text` at a block of 4 KiB of the domain's only disk."""
        (disk,) = await driver.local_disks(uuid)
        with Path(disk.path).open("r+b") as file:
            file.seek(block * 4096)
            file.write(text.encode())

    async def kill(self, driver: FakeDriver, reading: DomainReading) -> None:
        driver.crash_process(reading.uuid)

    async def again(self, driver: FakeDriver) -> FakeDriver:
        await driver.close()
        await driver.open()
        return driver

    async def close(self) -> None:
        assert self.world.twice == []


class QemuRig:
    """Two QEMU drivers on one machine, with folders of their own. The near one's QEMUs run as `user`, with
    threads for disks and io_uring; the far one's as root and without, as an older version starts them."""

    def __init__(self, folder: Path, guest: Guest, snapshot: parts.Snapshot, user: str = "") -> None:
        self.folder, self._guest, self._snapshot, self._user = folder, guest, snapshot, user
        self.near = self._driver(folder / "test1")
        self.far = self._driver(folder / "test2")

    def _driver(self, run: Path) -> QemuDriver:
        if run.name == "test1":
            near = Qemu(accel="tcg", user=self._user, iothreads="on", aio="on")
            return QemuDriver(run, None, near, RealClock())
        return QemuDriver(run, None, Qemu(accel="tcg"), RealClock())

    def spec(self, name: str = "busybox", **changes: Any) -> DomainSpec:
        return parts.domain(self._guest, Path(self._snapshot.spec.ramdisk), name, **changes)

    async def up(self, driver: QemuDriver, name: str = "busybox", **changes: Any) -> DomainSpec:
        return await parts.awake(driver, self._snapshot, name, **changes)

    async def booted(self, driver: QemuDriver, uuid: str, times: int = 1) -> None:
        await parts.booted(driver, uuid, times=times)

    async def tell(self, driver: QemuDriver, uuid: str, end: DomainEnd) -> None:
        command = {
            DomainEnd.POWEROFF: "poweroff -f",
            DomainEnd.REBOOT: "reboot -f",
            DomainEnd.CRASH: "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger",
        }[end]
        console = await driver.console(uuid)
        await console.write(f"{command}\n".encode())
        await console.close()

    async def alive(self, driver: QemuDriver, uuid: str) -> bool:
        return await parts.shell(driver, uuid, "echo $((6*7))") == "42"

    async def scribble(self, driver: QemuDriver, uuid: str, text: str, block: int) -> None:
        command = f"printf {text} | dd of=/dev/vda bs=4096 seek={block} conv=notrunc,sync,fsync 2>/dev/null; echo done"
        assert await parts.shell(driver, uuid, command) == "done"

    async def kill(self, driver: QemuDriver, reading: DomainReading) -> None:
        os.kill(reading.pid, signal.SIGKILL)

    async def again(self, driver: QemuDriver) -> QemuDriver:
        await driver.close()
        new = self._driver(self.folder / ("test1" if driver is self.near else "test2"))
        await new.open()
        if driver is self.near:
            self.near = new
        else:
            self.far = new
        return new

    async def close(self) -> None:
        for driver in (self.near, self.far):
            for reading in await driver.list():
                await driver.destroy(reading.uuid)
            await driver.close()


Rig = Any  # FakeRig | QemuRig | XenRig: each calls its own drivers by more than the Protocol


@pytest.fixture(scope="module")
def snapshot(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> parts.Snapshot:
    return parts.snapshot(guest, tmp_path_factory.mktemp("snapshot"))


# Where Xen runs (tests/nested sees to it), its driver alone is asked.
KINDS = ["xen"] if xen_parts.REAL else ["fake", "qemu", "apart", "xen"]
APART = {
    "test_moves_there_and_back",
    "test_devices_come_and_go",
    "test_save_and_restore",
    "test_a_disk_goes_along",
}
"""What is asked of a QEMU with a user of its own, too; the rest does not depend on its rights."""
HELD = {"test_a_copy_is_held_and_tuned", "test_a_held_copy_that_was_stopped_and_fails_runs_on"}
MOVES = {
    "test_moves_there_and_back",
    "test_moves_that_fail_leave_the_domain_running",
    "test_a_stream_that_stands_still",
    "test_devices_move_along",
}


@pytest.fixture(params=KINDS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made: Rig
    if request.param == "fake":
        made = FakeRig(tmp_path)
    elif request.param == "xen":
        if request.function.__name__ in HELD:
            pytest.skip("xl itself decides when it switches over")
        if xen_parts.REAL and request.function.__name__ in MOVES:
            pytest.skip("one Xen host cannot have a domain twice")
        if request.module.__name__ != "test_driver":
            pytest.skip("xl takes no disks along and has no post-copy")
        made = xen_parts.XenRig(tmp_path)
    else:
        if request.param == "apart" and request.function.__name__ not in APART:
            pytest.skip("as with root's rights")
        user = "200000-200099" if request.param == "apart" else ""
        made = QemuRig(tmp_path, request.getfixturevalue("guest"), request.getfixturevalue("snapshot"), user)
    await made.near.open()
    await made.far.open()
    try:
        yield made
    finally:
        await made.close()


async def the(driver: Driver, uuid: str) -> DomainReading:
    return next(reading for reading in await driver.list() if reading.uuid == uuid)


async def seen(driver: Driver, uuid: str, states: set[DomainState]) -> DomainReading:
    """Wait until the domain is in one of `states`."""
    return await parts.becomes(lambda: the(driver, uuid), lambda reading: reading.state in states)


async def event(driver: Driver) -> DomainEvent:
    async with asyncio.timeout(60):
        return await anext(driver.events().__aiter__())


async def refused(work: Awaitable[object]) -> str:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.message


class Move:
    """One move of domain `uuid` from `near` to `far`, step by step."""

    def __init__(
        self, near: Driver, far: Driver, uuid: str, settings: MoveSettings = PLAIN, means: CopyOptions = ALONE
    ) -> None:
        self.near, self.far, self.uuid, self.settings, self.means = near, far, uuid, settings, means
        self.progress: list[MoveProgress] = []
        self._streams: tuple[socket.socket, ...] = ()

    async def prepare(self) -> DomainReading:
        spec, luggage = await self.near.pack(self.uuid)
        _, attachments = await self.near.spec(self.uuid)
        attachments = replace(attachments, domid=0)
        backlog = await self.near.backlog(self.uuid)
        luggage = msgspec.Raw(bytes(luggage))
        return await self.far.prepare(spec, attachments, luggage, backlog, tls=False, peer="test1")

    async def copy(self, cut: Callable[[], Awaitable[None]] | None = None) -> CopyResult:
        """Send and receive; `cut` is called once bytes have moved."""
        self._streams = near, far = parts.stream()
        sending = asyncio.create_task(
            self.near.send(self.uuid, near, self.settings, self.progress.append, peer="test2", means=self.means)
        )
        receiving = asyncio.create_task(self._receive(far))
        try:
            if cut is not None:
                await self.moving()
                await cut()
            result = await sending
            await receiving
            return result
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            near.close()
            far.close()

    async def _receive(self, stream: socket.socket) -> None:
        try:
            await self.far.receive(self.uuid, stream)
        except Failed:
            stream.close()
            raise

    async def moving(self) -> None:
        """Return once bytes have moved."""

        async def moved() -> bool:
            return any(reading.transferred for reading in self.progress)

        await parts.becomes(moved, bool)

    async def whole(self, *, paused: bool = False) -> CopyResult:
        await self.prepare()
        result = await self.copy()
        await self.far.finish(self.uuid, paused=paused)
        await self.near.destroy(self.uuid)
        return result


async def test_a_life(rig: Rig) -> None:
    driver, spec = rig.near, rig.spec(vcpus=2, maxmem=128)
    domid = await driver.take_domid()
    started = await driver.start(spec, Attachments(domid=domid))
    assert started.domid == domid or (domid == 0 and started.domid > 0)  # 0: the hypervisor numbers domains itself
    assert (started.name, started.uuid, started.vcpus) == ("busybox", spec.uuid, 2)
    assert started.state in UP
    await rig.booted(driver, spec.uuid)
    assert await rig.alive(driver, spec.uuid)
    assert await driver.spec(spec.uuid) == (spec, Attachments(domid=started.domid))
    assert [cpu.number for cpu in await driver.vcpus(spec.uuid)] == [0, 1]
    assert b"READY" in await driver.backlog(spec.uuid)

    await driver.pause(spec.uuid)
    assert (await the(driver, spec.uuid)).state is DomainState.PAUSED
    await driver.pause(spec.uuid)
    await driver.unpause(spec.uuid)
    assert (await the(driver, spec.uuid)).state in UP
    assert await rig.alive(driver, spec.uuid)

    await driver.rename(spec.uuid, "bb")
    await driver.set_memory(spec.uuid, 112)
    await refused(driver.set_memory(spec.uuid, 129))
    assert (await the(driver, spec.uuid)).name == "bb"
    await parts.becomes(lambda: the(driver, spec.uuid), lambda reading: reading.memory == 112)

    console = await driver.console(spec.uuid)
    await driver.destroy(spec.uuid)
    assert await driver.list() == ()
    async with asyncio.timeout(10):
        while await console.read():
            pass
    await console.close()
    await driver.destroy(spec.uuid)
    host = await driver.host()
    assert 0 < host.memory_free <= host.memory_total
    assert "busybox" in await driver.log()


async def test_what_is_refused_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    driver, spec = rig.near, rig.spec()
    await driver.start(spec, Attachments(), paused=True)
    assert "missing" in await refused(driver.start(rig.spec("b", kernel="/missing/vmlinuz"), Attachments()))
    assert "busybox" in await refused(driver.start(rig.spec("busybox"), Attachments()))
    assert "already" in await refused(driver.start(replace(spec, name="c"), Attachments()))
    assert "memory" in await refused(driver.start(rig.spec("d", memory=1 << 30), Attachments()))
    assert [reading.name for reading in await driver.list()] == ["busybox"]
    nobody = str(uuids.uuid4())
    for method in (
        "spec",
        "pack",
        "shutdown",
        "reboot",
        "pause",
        "unpause",
        "vcpus",
        "console",
        "backlog",
        "resume",
        "finish",
    ):
        assert nobody in await refused(getattr(driver, method)(nobody))
    assert nobody in await refused(driver.rename(nobody, "x"))
    assert nobody in await refused(driver.save(nobody, tmp_path / "x"))
    await refused(driver.detach_disk(spec.uuid, "xvdz"))
    await refused(driver.detach_vif(spec.uuid, "00:16:3e:00:00:99"))
    assert not (tmp_path / "x").exists()


async def test_domains_outlive_the_driver(rig: Rig) -> None:
    driver, spec, other = rig.near, rig.spec(), rig.spec("held")
    before = await driver.start(spec, Attachments())
    await driver.start(other, Attachments(), paused=True)
    await rig.booted(driver, spec.uuid)
    driver = await rig.again(driver)
    after = await the(driver, spec.uuid)
    assert (after.domid, after.pid, after.started) == (before.domid, before.pid, before.started)
    assert (await seen(driver, other.uuid, {DomainState.PAUSED})).domid == before.domid + 1
    await seen(driver, spec.uuid, UP)
    assert b"READY" in await driver.backlog(spec.uuid)
    assert await rig.alive(driver, spec.uuid)
    assert await driver.take_domid() in (before.domid + 2, 0)
    await rig.kill(driver, await the(driver, spec.uuid))
    assert await event(driver) == DomainEvent(spec.uuid, DomainEnd.DIED)
    assert [reading.name for reading in await driver.list()] == ["held"]


async def test_guests_end_by_themselves(rig: Rig) -> None:
    driver, spec = rig.near, rig.spec()
    first = await driver.start(spec, Attachments())
    other = await rig.up(driver, "stays-down", on_reboot=OnEvent.DESTROY)
    await rig.booted(driver, spec.uuid)
    await asyncio.sleep(0.01)
    await driver.reboot(spec.uuid)
    reading = await parts.becomes(lambda: the(driver, spec.uuid), lambda now: now.started != first.started)
    assert reading.state in UP
    assert reading.pid == first.pid

    await rig.tell(driver, other.uuid, DomainEnd.REBOOT)
    assert await event(driver) == DomainEvent(other.uuid, DomainEnd.REBOOT)
    assert (await the(driver, other.uuid)).state is DomainState.SHUTDOWN
    await driver.destroy(other.uuid)

    await rig.booted(driver, spec.uuid, times=2)
    await driver.shutdown(spec.uuid)
    assert await event(driver) == DomainEvent(spec.uuid, DomainEnd.POWEROFF)
    assert (await the(driver, spec.uuid)).state is DomainState.SHUTDOWN


async def test_a_crash(rig: Rig) -> None:
    driver = rig.near
    spec = await rig.up(driver, on_crash=OnEvent.PRESERVE)
    await rig.tell(driver, spec.uuid, DomainEnd.CRASH)
    assert await event(driver) == DomainEvent(spec.uuid, DomainEnd.CRASH)
    assert (await the(driver, spec.uuid)).state is DomainState.CRASHED
    driver = await rig.again(driver)
    if not isinstance(rig, FakeRig):  # told once more: whoever was told may have died
        assert await event(driver) == DomainEvent(spec.uuid, DomainEnd.CRASH)
    assert (await the(driver, spec.uuid)).state is DomainState.CRASHED


async def test_moves_there_and_back(rig: Rig) -> None:
    spec = rig.spec()
    before = await rig.near.start(spec, Attachments())
    await rig.booted(rig.near, spec.uuid)
    assert await rig.alive(rig.near, spec.uuid)
    move = Move(rig.near, rig.far, spec.uuid)
    half = await move.prepare()
    assert half.state is DomainState.INCOMING
    await refused(rig.far.unpause(spec.uuid))
    result = await move.copy()
    assert result.bytes > 0
    assert {reading.phase for reading in move.progress} == {Phase.COPY}
    assert max(reading.total for reading in move.progress) >= 96 << 20
    assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
    assert (await the(rig.far, spec.uuid)).state is DomainState.INCOMING
    await refused(rig.near.unpause(spec.uuid))  # two copies would run
    await rig.far.finish(spec.uuid, started=before.started + 7)  # it rebooted while it was copied
    await rig.far.finish(spec.uuid)
    await rig.near.destroy(spec.uuid)
    after = await the(rig.far, spec.uuid)
    assert after.state in UP
    assert after.started == before.started + 7
    assert b"READY" in await rig.far.backlog(spec.uuid)
    assert await rig.alive(rig.far, spec.uuid)

    if isinstance(rig, xen_parts.XenRig):
        await rig.far.pause(spec.uuid)
        move = Move(rig.far, rig.near, spec.uuid)
        await move.prepare()
        assert "paused" in await refused(move.copy())  # under Xen a guest takes part in its own move
        await rig.near.destroy(spec.uuid)
        await rig.far.unpause(spec.uuid)
    else:
        await rig.far.pause(spec.uuid)
    await Move(rig.far, rig.near, spec.uuid).whole(paused=True)
    assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
    assert await rig.far.list() == ()
    await rig.near.unpause(spec.uuid)
    assert await rig.alive(rig.near, spec.uuid)


async def test_moves_that_fail_leave_the_domain_running(rig: Rig) -> None:
    spec = await rig.up(rig.near)
    slow = replace(PLAIN, bandwidth=32 << 20)

    move = Move(rig.near, rig.far, spec.uuid, slow)  # the target dies in the middle
    await move.prepare()
    with pytest.raises(Failed):
        await move.copy(lambda: rig.far.destroy(spec.uuid))
    await rig.near.resume(spec.uuid)
    assert await rig.alive(rig.near, spec.uuid)
    assert await rig.far.list() == ()

    move = Move(rig.near, rig.far, spec.uuid, slow)  # a user changes his mind
    await move.prepare()
    copying = asyncio.create_task(move.copy())
    await move.moving()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert (await the(rig.near, spec.uuid)).state in UP
    with pytest.raises(Failed):
        await rig.far.finish(spec.uuid)
    await rig.far.destroy(spec.uuid)
    assert await rig.alive(rig.near, spec.uuid)

    move = Move(rig.near, rig.far, spec.uuid)  # everything was sent, and then the owner stayed
    await move.prepare()
    await move.copy()
    await rig.far.destroy(spec.uuid)
    await rig.near.resume(spec.uuid)
    await rig.near.resume(spec.uuid)
    assert (await the(rig.near, spec.uuid)).state in UP
    assert await rig.alive(rig.near, spec.uuid)

    await Move(rig.near, rig.far, spec.uuid, replace(PLAIN, live=False)).whole()
    assert await rig.alive(rig.far, spec.uuid)


async def test_a_copy_is_held_and_tuned(rig: Rig) -> None:
    spec = await rig.up(rig.near)
    await refused(rig.near.tune(spec.uuid, Tuning(bandwidth=0)))
    slow = replace(PLAIN, bandwidth=4 << 20)
    move = Move(rig.near, rig.far, spec.uuid, slow, CopyOptions(hold=True, throttle=True, delta=True))
    await move.prepare()
    copying = asyncio.create_task(move.copy())
    await move.moving()
    await rig.near.tune(spec.uuid, Tuning(bandwidth=0, downtime=2000, throttle=20))

    async def rounds() -> int:
        return max((reading.rounds for reading in move.progress), default=0)

    first = await parts.becomes(rounds, lambda count: count >= 2)
    await parts.becomes(rounds, lambda count: count > first)  # it goes on, though all would fit the downtime
    assert not copying.done()
    assert (await the(rig.near, spec.uuid)).state in UP
    await rig.near.tune(spec.uuid, Tuning(stop=True))
    result = await copying
    assert result.rounds > first
    await refused(rig.near.tune(spec.uuid, Tuning(bandwidth=0)))
    await rig.far.finish(spec.uuid)
    await rig.near.destroy(spec.uuid)
    assert await rig.alive(rig.far, spec.uuid)


async def test_a_held_copy_that_was_stopped_and_fails_runs_on(rig: Rig) -> None:
    spec = await rig.up(rig.near)
    move = Move(rig.near, rig.far, spec.uuid, replace(PLAIN, bandwidth=4 << 20), CopyOptions(hold=True))
    await move.prepare()

    async def stop_and_cut() -> None:
        await rig.near.tune(spec.uuid, Tuning(stop=True))
        assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
        await rig.far.destroy(spec.uuid)

    with pytest.raises(Failed):
        await move.copy(stop_and_cut)
    assert (await the(rig.near, spec.uuid)).state in UP
    assert await rig.alive(rig.near, spec.uuid)


async def test_a_stream_that_stands_still(rig: Rig) -> None:
    spec = await rig.up(rig.near)
    near, far = parts.stream()
    with contextlib.closing(near), contextlib.closing(far), pytest.raises(Failed, match="no byte moved"):
        await rig.near.send(spec.uuid, near, replace(PLAIN, stall=1.0), lambda _: None, peer="test2")
    assert (await the(rig.near, spec.uuid)).state in UP
    assert await rig.alive(rig.near, spec.uuid)


async def test_devices_come_and_go(rig: Rig, tmp_path: Path) -> None:
    disks = (parts.disk(tmp_path / "a.img", "xvda"), parts.disk(tmp_path / "b.img", "xvdb"))
    spec = await rig.up(rig.near)
    for disk in disks:
        await rig.near.attach_disk(spec.uuid, disk)
    await refused(rig.near.attach_disk(spec.uuid, disks[1]))
    assert (await rig.near.spec(spec.uuid))[0].disks == (disks[0].spec, disks[1].spec)
    await rig.near.resize_disk(spec.uuid, "xvdb", 16 << 20)
    await rig.near.detach_disk(spec.uuid, "xvda")
    assert (await rig.near.spec(spec.uuid))[0].disks == (disks[1].spec,)
    await refused(rig.near.detach_disk(spec.uuid, "xvda"))
    await refused(rig.near.resize_disk(spec.uuid, "xvda", 16 << 20))
    assert await rig.alive(rig.near, spec.uuid)


async def test_devices_move_along(rig: Rig, tmp_path: Path) -> None:
    disks = (parts.disk(tmp_path / "a.img", "xvda"), parts.disk(tmp_path / "b.img", "xvdb"))
    spec = await rig.up(rig.near)
    for disk in disks:
        await rig.near.attach_disk(spec.uuid, disk)
    await Move(rig.near, rig.far, spec.uuid).whole()  # it stays where it was plugged
    assert (await rig.far.spec(spec.uuid))[1].disks == disks
    await rig.far.detach_disk(spec.uuid, "xvda")
    assert (await rig.far.spec(spec.uuid))[0].disks == (disks[1].spec,)
    assert await rig.alive(rig.far, spec.uuid)


async def test_save_and_restore(rig: Rig, tmp_path: Path) -> None:
    spec, path = await rig.up(rig.near), tmp_path / "save"
    before = await the(rig.near, spec.uuid)
    path.write_bytes(b"header".ljust(4096))
    packed, luggage = await rig.near.pack(spec.uuid)
    luggage = msgspec.Raw(bytes(luggage))
    await rig.near.save(spec.uuid, path, offset=4096)
    assert path.read_bytes().startswith(b"header")
    assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
    await rig.near.unpause(spec.uuid)  # "xl save -c": it may go on
    assert await rig.alive(rig.near, spec.uuid)
    backlog = await rig.near.backlog(spec.uuid)
    await rig.near.destroy(spec.uuid)

    with pytest.raises(Refused):
        await rig.far.restore(packed, Attachments(), luggage, tmp_path / "missing")
    after = await rig.far.restore(packed, Attachments(), luggage, path, backlog=backlog, offset=4096)
    assert (await rig.far.backlog(spec.uuid)).startswith(backlog)
    assert after.started == before.started
    assert after.state in UP
    assert await rig.alive(rig.far, spec.uuid)
    with pytest.raises(Failed):
        await rig.far.save(spec.uuid, tmp_path / "no" / "such")
    assert (await seen(rig.far, spec.uuid, UP)).name == spec.name
    assert await rig.alive(rig.far, spec.uuid)
