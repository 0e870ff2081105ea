"""The qemu driver where it is more than the contract: real taps, LUNs and certificates, and bad luck."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from storage_parts import TEST1, TEST2, storage

import qemu_parts as parts
from veery.config.settings import Qemu
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.hypervisor.base import Trigger
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.qemu.monitor import Monitor
from veery.lab.guest import Guest
from veery.model.domain import DiskFormat, DiskLimits, DiskSpec, DomainReading, DomainSpec, DomainState
from veery.model.move import CopyOptions, CopyResult, MoveProgress, MoveSettings, Tuning
from veery.model.volume import AttachedDisk, Attachments, Initiator, IscsiLun, LocalDisk, Volume

PLAIN = MoveSettings(tls=False)
UP = {DomainState.RUNNING, DomainState.BLOCKED}


class Node:
    """One node's driver, which may be killed and started again."""

    def __init__(self, folder: Path, name: str, user: str = "") -> None:
        self.name, self.run, self.tls, self.user = name, folder / name, folder / f"{name}.tls", user
        self.driver = self._driver()

    def _driver(self) -> QemuDriver:
        return QemuDriver(self.run, self.tls, Qemu(accel="tcg", user=self.user), RealClock())

    async def again(self) -> QemuDriver:
        await self.driver.close()
        self.driver = self._driver()
        await self.driver.open()
        return self.driver

    async def reading(self) -> DomainReading:
        (reading,) = await self.driver.list()
        return reading


@pytest.fixture(scope="module")
def snapshot(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> parts.Snapshot:
    return parts.snapshot(guest, tmp_path_factory.mktemp("snapshot"))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    made = Node(tmp_path, "test1"), Node(tmp_path, "test2")
    for node in made:
        await node.driver.open()
    try:
        yield made
    finally:
        for node in made:
            for reading in await node.driver.list():
                await node.driver.destroy(reading.uuid)
            await node.driver.close()


async def prepare(
    near: QemuDriver, far: QemuDriver, uuid: str, attachments: Attachments | None = None, **how: object
) -> None:
    spec, luggage = await near.pack(uuid)
    _, here = await near.spec(uuid)
    given = {"tls": False, "peer": "test1"} | how
    wanted = replace(here if attachments is None else attachments, domid=0)
    await far.prepare(spec, wanted, msgspec.Raw(bytes(luggage)), await near.backlog(uuid), **given)  # type: ignore[arg-type]


async def copy(
    near: QemuDriver,
    far: QemuDriver,
    uuid: str,
    settings: MoveSettings = PLAIN,
    *,
    peer: str = "test2",
    progress: list[MoveProgress] | None = None,
) -> CopyResult:
    seen = [] if progress is None else progress
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        async with asyncio.TaskGroup() as group:
            group.create_task(far.receive(uuid, other))
            sending = group.create_task(near.send(uuid, one, settings, seen.append, peer=peer))
        return sending.result()


async def move(near: QemuDriver, far: QemuDriver, uuid: str, attachments: Attachments | None = None) -> None:
    await prepare(near, far, uuid, attachments)
    await copy(near, far, uuid)
    await far.finish(uuid)
    await near.destroy(uuid)


async def test_a_stopped_qemu_hangs_nobody(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    pid = (await near.reading()).pid
    progress: list[MoveProgress] = []
    await prepare(near.driver, far.driver, spec.uuid)
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        settings = replace(PLAIN, bandwidth=8 << 20, stall=1.0)
        sending = asyncio.create_task(near.driver.send(spec.uuid, one, settings, progress.append, peer="test2"))
        receiving = asyncio.create_task(far.driver.receive(spec.uuid, other))

        async def moved() -> bool:
            return bool(progress) and progress[-1].transferred > 0

        await parts.becomes(moved, bool)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Failed, match="did not answer"):
                await sending
            with pytest.raises(Failed):
                await receiving
            begun = time.monotonic()
            assert (await near.reading()).uuid == spec.uuid
            assert [cpu.number for cpu in await near.driver.vcpus(spec.uuid)] == [0]
            assert time.monotonic() - begun < 4  # less than one answer that is waited for (monitor.DEADLINE)
            driver = await near.again()  # finds it, although it does not answer
            assert (await near.reading()).pid == pid
        finally:
            os.kill(pid, signal.SIGCONT)
    await far.driver.destroy(spec.uuid)

    async def resumed() -> bool:
        with contextlib.suppress(Failed, OutcomeUnknown):
            await driver.resume(spec.uuid)
            return True
        return False

    await parts.becomes(resumed, bool)
    assert await parts.shell(driver, spec.uuid, "echo $((6*7))") == "42"
    os.kill(pid, signal.SIGSTOP)
    # Only now: the order stands in QEMU's socket, and a QEMU that goes on carries it out.
    with pytest.raises(OutcomeUnknown, match="does not answer"):
        await driver.shutdown(spec.uuid)
    await driver.destroy(spec.uuid)
    assert await driver.list() == ()
    assert not Path(f"/proc/{pid}/exe").exists()


async def test_a_switch_over_beyond_its_guard_is_taken_back(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    """The policy gentle: a target that does not come to an end of its last part keeps the domain no longer."""
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    await prepare(near.driver, far.driver, spec.uuid)
    target = (await far.reading()).pid
    progress: list[MoveProgress] = []
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        means = CopyOptions(hold=True, guard=300.0)
        receiving = asyncio.create_task(far.driver.receive(spec.uuid, other))
        sending = asyncio.create_task(
            near.driver.send(spec.uuid, one, PLAIN, progress.append, peer="test2", means=means)
        )

        async def sent_once() -> bool:
            assert not sending.done(), sending.result()
            return bool(progress) and progress[-1].rounds >= 2

        await parts.becomes(sent_once, bool)
        os.kill(target, signal.SIGSTOP)
        try:
            await near.driver.tune(spec.uuid, Tuning(stop=True))
            with pytest.raises(Failed, match="the switch-over took more than 300 ms") as caught:
                await sending
            assert "--policy balanced" in caught.value.hint
        finally:
            os.kill(target, signal.SIGCONT)
        with contextlib.suppress(Failed):  # all of it may have been on its way: then it is there, and stands still
            await receiving
            assert (await far.reading()).state in {DomainState.INCOMING, DomainState.PAUSED}
    assert (await near.reading()).state in {DomainState.RUNNING, DomainState.BLOCKED}
    assert await parts.shell(near.driver, spec.uuid, "echo $((6*7))") == "42"
    await far.driver.destroy(spec.uuid)
    await move(near.driver, far.driver, spec.uuid)  # and a retry goes
    assert await parts.shell(far.driver, spec.uuid, "echo $((6*7))") == "42"


async def test_moves_with_tls_know_their_peer(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, far = nodes
    ca = tls.make_ca("lab", epoch=time.time())
    for node in nodes:
        request = tls.make_request(node.name)
        cert = tls.sign(ca, request.cert, name=node.name, addresses=["127.0.0.1"], epoch=time.time())
        tls.write_folder(node.tls, ca=ca.cert, node=tls.KeyPair(cert, request.key))
    spec = await parts.awake(near.driver, snapshot)
    encrypted = MoveSettings()

    await prepare(near.driver, far.driver, spec.uuid, tls=True, peer="test3")  # not the name in the certificate
    with pytest.raises(ExceptionGroup) as caught:
        await copy(near.driver, far.driver, spec.uuid, encrypted)
    assert caught.group_contains(Failed)
    await far.driver.destroy(spec.uuid)

    await prepare(near.driver, far.driver, spec.uuid, tls=True, peer="test1")
    with pytest.raises(ExceptionGroup) as caught:
        await copy(near.driver, far.driver, spec.uuid, encrypted, peer="test3")
    assert caught.group_contains(Failed)
    await far.driver.destroy(spec.uuid)

    await prepare(near.driver, far.driver, spec.uuid, tls=True, peer="test1")
    with pytest.raises(ExceptionGroup):  # a plain stream, where an encrypted one is asked for
        await copy(near.driver, far.driver, spec.uuid, replace(PLAIN, stall=2.0))
    await far.driver.destroy(spec.uuid)

    assert (await parts.becomes(near.reading, lambda now: now.state in UP)).uuid == spec.uuid
    await prepare(near.driver, far.driver, spec.uuid, tls=True, peer="test1")
    await copy(near.driver, far.driver, spec.uuid, encrypted)
    await far.driver.finish(spec.uuid)
    await near.driver.destroy(spec.uuid)
    assert await parts.shell(far.driver, spec.uuid, "echo $((6*7))") == "42"


async def test_a_daemon_killed_in_the_middle_of_a_move(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    await prepare(near.driver, far.driver, spec.uuid)
    await near.driver.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [sys.executable, Path(__file__).with_name("qemu_sender.py"), near.run, spec.uuid]
        sender = await asyncio.create_subprocess_exec(
            *words, str(listener.getsockname()[1]), stdout=asyncio.subprocess.PIPE
        )
        try:
            listener.setblocking(False)
            async with asyncio.timeout(60):
                other, _ = await asyncio.get_running_loop().sock_accept(listener)
            with contextlib.closing(other):
                receiving = asyncio.create_task(far.driver.receive(spec.uuid, other))
                assert sender.stdout is not None
                async with asyncio.timeout(60):
                    assert await sender.stdout.readline() == b"moving\n"
                sender.kill()
                await sender.wait()
                driver = await near.again()
                with pytest.raises(Refused, match="a move or a save holds it"):
                    await driver.unpause(spec.uuid)
                await driver.resume(spec.uuid)
                with pytest.raises(Failed):
                    await receiving
        finally:
            if sender.returncode is None:
                sender.kill()
                await sender.wait()
    assert (await near.reading()).state in UP
    assert await parts.shell(driver, spec.uuid, "echo $((6*7))") == "42"
    assert (await (await far.again()).list())[0].state is DomainState.INCOMING
    await far.driver.destroy(spec.uuid)

    await prepare(driver, far.driver, spec.uuid)  # both daemons end after everything was sent
    await copy(driver, far.driver, spec.uuid)
    await near.again()
    await far.again()
    assert (await parts.becomes(near.reading, lambda now: now.state is DomainState.PAUSED)).uuid == spec.uuid
    with pytest.raises(Refused):
        await near.driver.unpause(spec.uuid)
    assert (await far.reading()).state is DomainState.INCOMING
    await near.driver.destroy(spec.uuid)
    await far.driver.finish(spec.uuid)
    assert await parts.shell(far.driver, spec.uuid, "echo $((6*7))") == "42"


async def test_what_a_killed_daemon_left_half_done_is_mended(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot
) -> None:
    near, _ = nodes
    spec = await parts.awake(near.driver, snapshot)
    other = replace(spec, name="half", uuid="7c2f4b1e-0000-4000-8000-000000000009")
    await near.driver.start(other, Attachments(), paused=True)
    half = next(each for each in await near.driver.list() if each.name == "half")
    saving = next(each for each in await near.driver.list() if each.name == spec.name)
    await near.driver.pause(spec.uuid)
    await near.driver.close()
    for reading, before, after in (
        (half, '"stage":"running"', '"stage":"starting"'),
        (saving, '"stage":"running","held":true', '"stage":"saving","held":false'),
    ):
        record = near.run / "domains" / str(reading.domid) / "record.json"
        assert record.stat().st_mode & 0o777 == 0o600
        assert before in record.read_text()
        record.write_text(record.read_text().replace(before, after))
    (near.run / "domains" / str(half.domid) / "pid").unlink()
    await near.again()
    assert [reading.name for reading in await near.driver.list()] == [spec.name]
    assert not Path(f"/proc/{half.pid}/exe").exists()
    assert not (near.run / "domains" / str(half.domid)).exists()
    await parts.becomes(near.reading, lambda now: now.state in UP)
    assert await parts.shell(near.driver, spec.uuid, "echo $((6*7))") == "42"


async def test_interfaces_and_disks_keep_their_places(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    mac = "00:16:3e:00:00:07"
    disk = parts.disk(tmp_path / "b.img", "xvdb")
    with parts.tap(f"vqa{os.getpid() % 100000}") as here, parts.tap(f"vqb{os.getpid() % 100000}") as there:
        await near.driver.attach_disk(spec.uuid, disk)
        await near.driver.attach_vif(spec.uuid, parts.vif(here, mac))
        with pytest.raises(Refused, match="already"):
            await near.driver.attach_vif(spec.uuid, parts.vif(here, mac))
        with pytest.raises(Failed):
            await near.driver.attach_vif(spec.uuid, parts.vif("no-such-tap/", "00:16:3e:00:00:08"))
        assert [vif.spec.mac for vif in (await near.driver.spec(spec.uuid))[1].vifs] == [mac]
        look = "sleep 0.3; cat /sys/class/net/eth0/address; ls /sys/block; readlink /sys/block/vda/device"

        async def both(text: str) -> str:
            return await parts.shell(near.driver, spec.uuid, look)

        before = await parts.becomes(lambda: both(""), lambda text: mac in text and "vda" in text)
        await parts.shell(near.driver, spec.uuid, "echo written-here > /dev/vda; sync")
        attachments = Attachments(disks=(disk,), vifs=(parts.vif(there, mac),))
        await move(near.driver, far.driver, spec.uuid, attachments)
        assert await parts.shell(far.driver, spec.uuid, look) == before
        assert "written-here" in await parts.shell(far.driver, spec.uuid, "head -c 12 /dev/vda")
        await far.driver.resize_disk(spec.uuid, "xvdb", 16 << 20)
        assert await parts.shell(far.driver, spec.uuid, "sleep 0.3; cat /sys/block/vda/size") == str((16 << 20) // 512)
        await far.driver.detach_vif(spec.uuid, mac)
        await far.driver.detach_disk(spec.uuid, "xvdb")
        assert "vda" not in await parts.shell(far.driver, spec.uuid, "ls /sys/block")
        assert (await far.driver.spec(spec.uuid))[0].vifs == ()
        await move(far.driver, near.driver, spec.uuid)
        assert await parts.shell(near.driver, spec.uuid, "ls /sys/class/net") == "lo"


async def test_a_disk_keeps_its_limits(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, guest: Guest, tmp_path: Path
) -> None:
    """Of a disk that is attached, that has moved, and that was there from the start. A slow machine only makes a read
    take longer: the least time is asked for."""
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    plain = parts.disk(tmp_path / "b.img", "xvdb")
    disk = replace(plain, spec=replace(plain.spec, limits=DiskLimits(bps=1 << 20)))

    async def seconds(node: Node, uuid: str, skip: int) -> float:
        read = f"until [ -b /dev/vda ]; do sleep 0.1; done; dd if=/dev/vda of=/dev/null bs=64k count=32 skip={skip}"
        begun = time.monotonic()
        assert "32+0 records in" in await parts.shell(node.driver, uuid, f"{read} 2>&1")
        return time.monotonic() - begun

    await near.driver.attach_disk(spec.uuid, disk)
    assert await seconds(near, spec.uuid, 0) > 1
    await move(near.driver, far.driver, spec.uuid, Attachments(disks=(disk,)))
    assert (await far.driver.spec(spec.uuid))[0].disks == (disk.spec,)
    assert await seconds(far, spec.uuid, 64) > 1
    await far.driver.destroy(spec.uuid)

    first = parts.domain(guest, parts.initramfs(guest, tmp_path / "initrd"), disks=(disk.spec,))
    await near.driver.start(first, Attachments(disks=(disk,)))
    await parts.booted(near.driver, first.uuid)
    assert await seconds(near, first.uuid, 64) > 1


def lun(volume: Volume, initiator: Initiator) -> AttachedDisk:
    source = IscsiLun(
        portal=volume.portal, iqn=volume.iqn, lun=1, initiator=initiator.iqn, user=initiator.user,
        password=initiator.password,
    )  # fmt: skip
    return AttachedDisk(spec=DiskSpec(vdev="xvda", volume=volume.name), source=source)


async def test_a_lun_goes_along(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, far = nodes
    async with storage(TEST1, TEST2) as stor:
        volume = await stor.volumes.create("busybox", 8 << 20)
        spec = await parts.awake(near.driver, snapshot)
        await near.driver.attach_disk(spec.uuid, lun(volume, TEST1))
        write = "until [ -b /dev/vda ]; do sleep 0.1; done; echo on-the-lun > /dev/vda; sync; echo ok"
        assert await parts.shell(near.driver, spec.uuid, write) == "ok"
        await move(near.driver, far.driver, spec.uuid, Attachments(disks=(lun(volume, TEST2),)))
        assert "on-the-lun" in await parts.shell(far.driver, spec.uuid, "head -c 10 /dev/vda")
        pid = (await far.reading()).pid
        words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert TEST2.iqn.encode() in words
        assert TEST2.password.encode() not in words

        wrong = replace(TEST1, password="not-the-password")
        other = replace(
            spec, name="other", uuid="7c2f4b1e-0000-4000-8000-00000000000a", disks=(lun(volume, wrong).spec,)
        )
        with pytest.raises(Failed, match=r"(?i)auth"):
            await near.driver.start(other, Attachments(disks=(lun(volume, wrong),)))
        gone = replace(volume, iqn=f"{volume.iqn}-gone")
        with pytest.raises(Failed, match=r"(?i)not found"):
            await near.driver.start(other, Attachments(disks=(lun(gone, TEST1),)))
        assert await near.driver.list() == ()
        assert list((near.run / "domains").glob("[0-9]*")) == []
        await far.driver.destroy(spec.uuid)


async def test_a_full_disk_stops_a_save_and_not_the_domain(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    near, _ = nodes
    spec = await parts.awake(near.driver, snapshot)
    with parts.small_folder(tmp_path / "small", "4m") as small:
        with pytest.raises(Failed, match="No space left"):
            await near.driver.save(spec.uuid, small / "save")
        assert list(small.iterdir()) == []
    assert await parts.shell(near.driver, spec.uuid, "echo $((6*7))") == "42"
    (tmp_path / "garbage").write_bytes(b"garbage" * 1000)
    packed, luggage = await near.driver.pack(spec.uuid)
    luggage = msgspec.Raw(bytes(luggage))
    await near.driver.destroy(spec.uuid)
    with pytest.raises(Failed, match="migration stream"):
        await near.driver.restore(packed, Attachments(), luggage, tmp_path / "garbage")
    assert await near.driver.list() == ()
    assert (tmp_path / "garbage").exists()


async def test_a_console_for_many(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, _ = nodes
    spec = await parts.awake(near.driver, snapshot)
    one, other = await near.driver.console(spec.uuid), await near.driver.console(spec.uuid)
    await one.write(b"echo to-all-$((40+2))\n")
    for console in (one, other):
        assert b"to-all-42" in await parts.until(console, b"to-all-42")
    waiting = asyncio.create_task(other.read())
    await other.close()
    await asyncio.wait({waiting}, timeout=10)
    assert waiting.done()
    await near.again()
    assert await one.read() != b"never"  # it ends with its driver: what is left, then b""
    late = await near.driver.console(spec.uuid)
    assert b"to-all-42" in await parts.until(late, b"to-all-42")

    await late.close()


async def test_the_command_line_stands_for_every_kind_of_disk(
    nodes: tuple[Node, Node], guest: Guest, tmp_path: Path
) -> None:
    near, _ = nodes
    parts.disk(tmp_path / "a,b.img")
    hard = DiskSpec(vdev="xvda", target=str(tmp_path / "a,b.img"), discard=False)
    locked = DiskSpec(vdev="hdb", target=str(tmp_path / "a,b.img"), readwrite=False)
    drive = DiskSpec(vdev="hdc", cdrom=True, readwrite=False)
    spec = DomainSpec(
        name="a,b", uuid="7c2f4b1e-0000-4000-8000-00000000000b", memory=64, vcpus=1, maxvcpus=3,
        disks=(hard, drive),
    )  # fmt: skip
    source = LocalDisk(path=hard.target, format=DiskFormat.RAW, block=False)
    disks = (AttachedDisk(spec=hard, source=source), AttachedDisk(spec=drive, source=None))
    await near.driver.start(spec, Attachments(disks=disks))
    assert (await near.reading()).name == "a,b"
    with pytest.raises(Failed, match="lock"):  # QEMU's own lock on a file that another QEMU writes
        await near.driver.start(
            replace(spec, name="c", uuid="7c2f4b1e-0000-4000-8000-00000000000c", disks=(hard,)),
            Attachments(disks=disks[:1]),
        )
    wrong = LocalDisk(path=hard.target, format=DiskFormat.QCOW2, block=False)
    with pytest.raises(Failed, match=r"(?i)qcow2|lock"):
        await near.driver.start(
            replace(spec, name="d", uuid="7c2f4b1e-0000-4000-8000-00000000000d", disks=(locked,)),
            Attachments(disks=(AttachedDisk(spec=locked, source=wrong),)),
        )
    assert len(await near.driver.list()) == 1
    assert "lock" in await near.driver.log()


async def test_a_cd_is_changed_while_the_domain_runs_and_its_drive_moves(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    near, far = nodes
    one, two = (parts.disk(tmp_path / f"{name}.iso").source for name in ("one", "two"))
    drive = DiskSpec(vdev="hdc", cdrom=True, readwrite=False, format=DiskFormat.EMPTY)
    spec = DomainSpec(name="cd", uuid="7c2f4b1e-0000-4000-8000-00000000000e", memory=64, disks=(drive,))
    await near.driver.start(spec, Attachments(disks=(AttachedDisk(spec=drive, source=None),)))

    async def change(source: LocalDisk | None) -> None:
        held = replace(drive, target=source.path, format=DiskFormat.RAW) if source else drive
        await near.driver.change_medium(spec.uuid, AttachedDisk(spec=held, source=source))
        assert (await near.driver.spec(spec.uuid))[0].disks == (held,)

    assert isinstance(one, LocalDisk)
    assert isinstance(two, LocalDisk)
    for source in (one, two, None, one):
        await change(source)
    with pytest.raises(Failed, match="hdc is empty now"):
        await change(LocalDisk(path=str(tmp_path / "none.iso"), format=DiskFormat.RAW, block=False))
    assert (await near.driver.spec(spec.uuid))[0].disks == (drive,)
    with pytest.raises(Refused, match="no CD-ROM drive hdd"):
        await near.driver.change_medium(spec.uuid, AttachedDisk(spec=replace(drive, vdev="hdd"), source=None))
    await move(near.driver, far.driver, spec.uuid)
    assert (await far.driver.spec(spec.uuid))[0].disks == (drive,)
    await far.driver.change_medium(
        spec.uuid, AttachedDisk(spec=replace(drive, target=two.path, format=DiskFormat.RAW), source=two)
    )


async def test_what_reaches_a_guest_that_answers_nothing_else(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    near, _ = nodes
    spec = await parts.awake(near.driver, snapshot)
    await parts.shell(near.driver, spec.uuid, "mount -t proc p /proc 2>/dev/null; echo 1 > /proc/sys/kernel/sysrq")
    console = await near.driver.console(spec.uuid)
    await near.driver.sysrq(spec.uuid, "h")
    assert b"sysrq: HELP" in await parts.until(console, b"sysrq: HELP")
    await near.driver.trigger(spec.uuid, Trigger.NMI)
    await console.close()
    core = tmp_path / "core"
    await near.driver.dump_core(spec.uuid, core)
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert core.stat().st_size > spec.memory << 20
    assert core.stat().st_mode & 0o077 == 0
    with pytest.raises(Failed):
        await near.driver.dump_core(spec.uuid, tmp_path / "nowhere" / "core")
    assert await parts.shell(near.driver, spec.uuid, "echo $((6*7))") == "42"


async def test_without_kvm_or_qemu_the_driver_says_so(tmp_path: Path, snapshot: parts.Snapshot) -> None:
    missing = QemuDriver(tmp_path / "a", None, Qemu(binary="no-such-qemu", accel="tcg"), RealClock())
    await missing.open()
    with pytest.raises(Refused, match="not installed"):
        await missing.start(replace(snapshot.spec, name="x"), Attachments())
    assert (await missing.host()).accelerator == ""
    await missing.close()

    chosen = QemuDriver(tmp_path / "b", None, Qemu(), RealClock())
    await chosen.open()
    host = await chosen.host()
    await chosen.close()
    assert host.accelerator in {"kvm", "tcg"}
    assert host.software["qemu"].startswith(("9.", "1"))
    assert (tmp_path / "b" / "accel.json").exists()
    assert host.facts["accelerator_reason"] in await chosen.log()

    old = tmp_path / "old-qemu"
    old.write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
    old.chmod(0o755)
    outdated = QemuDriver(tmp_path / "c", None, Qemu(binary=str(old), accel="tcg"), RealClock())
    await outdated.open()
    with pytest.raises(Refused, match=r"7\.2\.22 is too old"):
        await outdated.start(snapshot.spec, Attachments())
    await outdated.close()


async def active(domain: Path) -> bool:
    """Whether a QEMU may write to its one disk; the socket is the one for moves, which nobody holds just now."""
    async with contextlib.AsyncExitStack() as stack:
        monitor = Monitor("disks", domain / "qmp1", lambda name, data: None)
        stack.push_async_callback(monitor.close)
        await monitor.connect(deadline=30)
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True}, deadline=30)
        return any(node["active"] for node in nodes if node["node-name"] == "disk-xvdb")


async def test_no_two_copies_may_write_a_disk_at_any_time(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    """The source gives its disks up when it has sent the last byte, before the hand-over; the target takes them when it
    is let go, after it. In between nobody writes; and a source that goes on takes them again."""
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    await near.driver.attach_disk(spec.uuid, parts.disk(tmp_path / "b.img", "xvdb"))

    def folder(node: Node, reading: DomainReading) -> Path:
        return node.run / "domains" / str(reading.domid)

    here = folder(near, await near.reading())
    for paused in (False, True):
        assert await active(here)
        await prepare(near.driver, far.driver, spec.uuid)
        there = folder(far, await far.reading())
        assert not await active(there)
        await copy(near.driver, far.driver, spec.uuid)
        assert (await active(here), await active(there)) == (False, False)
        if not paused:  # taken back
            await far.driver.destroy(spec.uuid)
            await near.driver.resume(spec.uuid)
            assert await active(here)
            assert await parts.shell(near.driver, spec.uuid, "echo here > /dev/vda; sync; head -c 4 /dev/vda") == "here"
            await near.driver.pause(spec.uuid)
    await far.driver.finish(spec.uuid, paused=True)
    assert (await active(here), await active(there)) == (False, True)
    await near.driver.destroy(spec.uuid)
    await far.driver.unpause(spec.uuid)
    assert await parts.shell(far.driver, spec.uuid, "head -c 4 /dev/vda") == "here"


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A block device that is the file at `path`."""
    made = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True, timeout=60)
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True, timeout=60)


async def test_a_drive_writes_its_cache_out_while_memory_is_copied(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    """The guest asks for no flush; QEMU does only once the domain stands."""
    near, far = nodes
    image = tmp_path / "drive.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    with loop_device(image) as device:
        stat = Path("/sys/class/block") / Path(device).name / "stat"

        def flushes() -> int:  # Linux, Documentation/block/stat.rst
            return int(stat.read_text().split()[15])

        spec = await parts.awake(near.driver, snapshot)
        disk = DiskSpec(vdev="xvdb", target=device)
        source = LocalDisk(path=device, format=DiskFormat.RAW, block=True)
        await near.driver.attach_disk(spec.uuid, AttachedDisk(spec=disk, source=source))
        await prepare(near.driver, far.driver, spec.uuid)
        before, one, other = flushes(), *parts.stream()
        with contextlib.closing(one), contextlib.closing(other):
            receiving = asyncio.create_task(far.driver.receive(spec.uuid, other))
            means = CopyOptions(hold=True)
            sending = asyncio.create_task(
                near.driver.send(spec.uuid, one, PLAIN, lambda _: None, peer="test2", means=means)
            )

            async def flushed() -> bool:
                assert not sending.done()
                return flushes() > before

            await parts.becomes(flushed, bool)
            assert (await near.reading()).state in UP
            await near.driver.tune(spec.uuid, Tuning(stop=True))
            await sending
            await receiving
        await far.driver.finish(spec.uuid)
        await near.driver.destroy(spec.uuid)
        await far.driver.destroy(spec.uuid)
