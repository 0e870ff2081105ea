"""Moves between two versions of QEMU under TCG, both ways: the machine's own, and the newest that Debian has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import newest_qemu
import qemu_parts as parts
from veery.config.settings import Qemu
from veery.errors import Refused, VeeryError
from veery.host import tls
from veery.host.clock import RealClock
from veery.hypervisor.qemu import build
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.qemu.monitor import CommandError, Monitor
from veery.lab.guest import Guest
from veery.model.domain import DomainSpec, DomainState
from veery.model.move import CopyOptions, CopyResult, MoveProgress, MoveSettings, Tuning
from veery.model.volume import Attachments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UP = {DomainState.RUNNING, DomainState.BLOCKED}
OWN = "qemu-system-x86_64"
MAC = "00:16:3e:00:00:09"
FILL = "dd if=/dev/urandom of=/tmp/blob bs=1M count=16 2>/dev/null; md5sum < /tmp/blob"
SUM = "md5sum < /tmp/blob"


class Node:
    """A node's driver on one version of QEMU; `tap` is the device that its copy of the domain gets."""

    def __init__(self, folder: Path, name: str, binary: str, tap: str, *, machine: str = "") -> None:
        self.name, self.tap, self.folder = name, tap, folder
        self.settings = Qemu(accel="tcg", binary=binary, machine=machine)
        self.tls = folder / f"{name}.tls"
        self.driver = QemuDriver(folder / name, self.tls, self.settings, RealClock())

    @contextlib.asynccontextmanager
    async def pinned(self, machine: str) -> AsyncIterator[QemuDriver]:
        """A driver whose new domains get the machine type `machine`."""
        settings = replace(self.settings, machine=machine)
        driver = QemuDriver(self.folder / f"{self.name}-{machine}", self.tls, settings, RealClock())
        await driver.open()
        try:
            yield driver
        finally:
            for reading in await driver.list():
                await driver.destroy(reading.uuid)
            await driver.close()


@pytest.fixture(scope="module")
def newest() -> str:
    """The program that is the newest QEMU."""
    try:
        return str(newest_qemu.program())
    except VeeryError as error:
        pytest.skip(f"the newest QEMU cannot be had here: {error}")


@contextlib.asynccontextmanager
async def cluster(tmp_path: Path, *binaries: str, machine: str = "") -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that know each other, on these QEMUs."""
    ca = tls.make_ca("lab", epoch=time.time())
    with parts.tap(f"vqa{os.getpid() % 100000}") as here, parts.tap(f"vqb{os.getpid() % 100000}") as there:
        made = (
            Node(tmp_path, "test1", binaries[0], here, machine=machine),
            Node(tmp_path, "test2", binaries[1], there, machine=machine),
        )
        for node in made:
            request = tls.make_request(node.name)
            cert = tls.sign(ca, request.cert, name=node.name, addresses=["127.0.0.1"], epoch=time.time())
            tls.write_folder(node.tls, ca=ca.cert, node=tls.KeyPair(cert, request.key))
            await node.driver.open()
        told = [(await node.driver.abilities()).machines for node in made]
        for node in made:
            node.driver.give(frozenset(), frozenset(), machines=told)
        try:
            yield made
        finally:
            for node in made:
                for reading in await node.driver.list():
                    await node.driver.destroy(reading.uuid)
                await node.driver.close()


@pytest.fixture
async def nodes(tmp_path: Path, newest: str) -> AsyncIterator[tuple[Node, Node]]:
    async with cluster(tmp_path, OWN, newest) as made:
        yield made


def attached(node: Node, path: Path) -> Attachments:
    return Attachments(disks=(parts.disk(path),), vifs=(parts.vif(node.tap, MAC),))


async def up(node: Node, guest: Guest, tmp_path: Path) -> DomainSpec:
    """A domain with a disk and an interface that has booted on `node`."""
    here = attached(node, tmp_path / "disk.img")
    disks, vifs = tuple(disk.spec for disk in here.disks), tuple(vif.spec for vif in here.vifs)
    spec = parts.domain(guest, parts.initramfs(guest, tmp_path / "initrd"), disks=disks, vifs=vifs)
    await node.driver.start(spec, here)
    await parts.booted(node.driver, spec.uuid)
    return spec


async def offer(near: Node, far: Node, uuid: str, path: Path, **how: Any) -> None:
    spec, luggage = await near.driver.pack(uuid)
    given = {"tls": True, "peer": near.name} | how
    backlog = await near.driver.backlog(uuid)
    await far.driver.prepare(spec, attached(far, path), msgspec.Raw(bytes(luggage)), backlog, **given)


async def move(near: Node, far: Node, uuid: str, path: Path, *, paused: bool = False, **means: Any) -> CopyResult:
    """Move a domain as two daemons would, by TLS."""
    await offer(near, far, uuid, path)
    allowed = CopyOptions(peer_version=(await far.driver.abilities()).version, **means)
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        async with asyncio.TaskGroup() as group:
            group.create_task(far.driver.receive(uuid, other))
            sending = group.create_task(
                near.driver.send(uuid, one, MoveSettings(), lambda _: None, peer=far.name, means=allowed)
            )
    await far.driver.finish(uuid, paused=paused)
    await near.driver.destroy(uuid)
    return sending.result()


async def test_there_and_back_twice(nodes: tuple[Node, Node], guest: Guest, tmp_path: Path) -> None:
    """It begins on the older one; then one that began on the newer."""
    path = tmp_path / "disk.img"
    versions = [(await node.driver.abilities()).version for node in nodes]
    assert versions[0] != versions[1], "two versions are wanted"
    for first, second in (nodes, nodes[::-1]):
        spec = await up(first, guest, tmp_path)
        total = await parts.shell(first.driver, spec.uuid, FILL)
        assert re.match(r"[0-9a-f]{32}", total)
        for turn in range(4):
            near, far = (first, second) if turn % 2 == 0 else (second, first)
            await parts.shell(near.driver, spec.uuid, f"echo turn-{turn} > /dev/vda; sync")
            result = await move(near, far, spec.uuid, path)
            assert result.bytes > 0
            assert await parts.shell(far.driver, spec.uuid, SUM) == total
            assert await parts.shell(far.driver, spec.uuid, "head -c 6 /dev/vda") == f"turn-{turn}"
            assert MAC in await parts.shell(far.driver, spec.uuid, "cat /sys/class/net/eth0/address")
        await first.driver.destroy(spec.uuid)


async def test_a_paused_domain_there_and_back_twice(nodes: tuple[Node, Node], guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    for first, second in (nodes, nodes[::-1]):
        spec = await up(first, guest, tmp_path)
        total = await parts.shell(first.driver, spec.uuid, FILL)
        await parts.shell(first.driver, spec.uuid, "echo stands > /dev/vda; sync")
        await first.driver.pause(spec.uuid)
        for turn in range(4):
            near, far = (first, second) if turn % 2 == 0 else (second, first)
            await move(near, far, spec.uuid, path, paused=True)
            (reading,) = await far.driver.list()
            assert (reading.state, reading.held) == (DomainState.PAUSED, True)
        await first.driver.unpause(spec.uuid)
        assert await parts.shell(first.driver, spec.uuid, SUM) == total
        wrote = "echo goes-on > /dev/vda && sync && head -c 7 /dev/vda"
        assert await parts.shell(first.driver, spec.uuid, wrote) == "goes-on"
        await first.driver.destroy(spec.uuid)


async def hold(near: Node, far: Node, uuid: str, path: Path) -> None:
    """Move a domain by a copy that is held until all was sent, and a while longer."""
    await offer(near, far, uuid, path)
    progress: list[MoveProgress] = []
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        receiving = asyncio.create_task(far.driver.receive(uuid, other))
        sending = asyncio.create_task(
            near.driver.send(uuid, one, MoveSettings(), progress.append, peer=far.name, means=CopyOptions(hold=True))
        )

        async def all_sent() -> bool:
            assert not sending.done(), sending.exception() or "it switched over before it was told to"
            return bool(progress) and progress[-1].rounds >= 3

        await parts.becomes(all_sent, bool)
        await asyncio.sleep(2)
        assert not sending.done()
        assert [reading.state in UP for reading in await near.driver.list()] == [True]
        await near.driver.tune(uuid, Tuning(stop=True))
        await sending
        await receiving
    await far.driver.finish(uuid)
    await near.driver.destroy(uuid)


async def test_a_copy_that_is_held_waits_for_our_word_both_ways(
    nodes: tuple[Node, Node], guest: Guest, tmp_path: Path
) -> None:
    spec = await up(nodes[0], guest, tmp_path)
    total = await parts.shell(nodes[0].driver, spec.uuid, FILL)
    for near, far in (nodes, nodes[::-1]):
        await hold(near, far, spec.uuid, tmp_path / "disk.img")
        assert await parts.shell(far.driver, spec.uuid, SUM) == total


async def test_a_file_saved_by_one_is_restored_by_the_other(
    nodes: tuple[Node, Node], guest: Guest, tmp_path: Path
) -> None:
    path, saved = tmp_path / "disk.img", tmp_path / "saved"
    spec = await up(nodes[0], guest, tmp_path)
    total = await parts.shell(nodes[0].driver, spec.uuid, FILL)
    for near, far in (nodes, nodes[::-1]):
        packed, luggage = await near.driver.pack(spec.uuid)
        luggage = msgspec.Raw(bytes(luggage))
        await near.driver.save(spec.uuid, saved)
        await near.driver.destroy(spec.uuid)
        await far.driver.restore(packed, attached(far, path), luggage, saved)
        saved.unlink()
        assert await parts.shell(far.driver, spec.uuid, SUM) == total


async def leave(near: Node, far: Node, uuid: str, path: Path) -> None:
    """Move a domain by post-copy, when little of it has been sent."""
    await offer(near, far, uuid, path, post_copy=True)
    progress: list[MoveProgress] = []
    settings, means = MoveSettings(bandwidth=16 << 20), CopyOptions(post_copy=True)
    one, other = parts.stream()
    with contextlib.closing(one), contextlib.closing(other):
        receiving = asyncio.create_task(far.driver.receive(uuid, other))
        sending = asyncio.create_task(
            near.driver.send(uuid, one, settings, progress.append, peer=far.name, means=means)
        )

        async def moving() -> bool:
            assert not sending.done(), sending.exception()
            return bool(progress) and progress[-1].transferred > 0

        await parts.becomes(moving, bool)
        await near.driver.tune(uuid, Tuning(post_copy=True))
        assert (await sending).poised
        await near.driver.release(uuid)
        await receiving
        await far.driver.finish(uuid)
        await near.driver.drain(uuid, progress.append, stall=60.0)

        async def whole() -> bool:
            return await far.driver.whole(uuid)

        await parts.becomes(whole, bool)
    await near.driver.destroy(uuid)


async def test_a_domain_leaves_by_post_copy_both_ways(nodes: tuple[Node, Node], guest: Guest, tmp_path: Path) -> None:
    spec = await up(nodes[0], guest, tmp_path)
    total = await parts.shell(nodes[0].driver, spec.uuid, FILL)
    for near, far in (nodes, nodes[::-1]):
        await leave(near, far, spec.uuid, tmp_path / "disk.img")
        assert await parts.shell(far.driver, spec.uuid, SUM) == total


async def test_the_machine_type_is_one_that_both_have(nodes: tuple[Node, Node], guest: Guest, tmp_path: Path) -> None:
    """As chosen now, and as chosen once the oldest is gone from both. One that only the newer has stays there."""
    path = tmp_path / "disk.img"
    older, newer = [(await node.driver.abilities()).machines for node in nodes]
    assert build.machine_type([older, newer]) == build.MACHINE
    for away in range(2):
        spec = await up(nodes[away], guest, tmp_path)
        _, luggage = await nodes[away].driver.pack(spec.uuid)
        assert msgspec.json.decode(bytes(luggage))["machine"] == build.MACHINE
        await nodes[away].driver.destroy(spec.uuid)
    rest = [tuple(name for name in told if name != build.MACHINE) for told in (older, newer)]
    chosen, alone = build.machine_type(rest), build.machine_type(rest[1:])
    assert chosen in older, "the newest that both have"
    assert chosen in newer
    assert alone not in older
    for first, second in (nodes, nodes[::-1]):
        async with first.pinned(chosen) as driver:
            here = attached(first, path)
            spec = parts.domain(
                guest, parts.initramfs(guest, tmp_path / "initrd"), disks=tuple(d.spec for d in here.disks)
            )
            spec = replace(spec, vifs=tuple(vif.spec for vif in here.vifs))
            await driver.start(spec, here)
            await parts.booted(driver, spec.uuid)
            packed, luggage = await driver.pack(spec.uuid)
            luggage = msgspec.Raw(bytes(luggage))
            await driver.save(spec.uuid, tmp_path / "saved")
            await driver.destroy(spec.uuid)
        await second.driver.restore(packed, attached(second, path), luggage, tmp_path / "saved")
        (tmp_path / "saved").unlink()
        await move(second, first, spec.uuid, path)
        await move(first, second, spec.uuid, path)
        assert await parts.shell(second.driver, spec.uuid, "echo $((6*7))") == "42"
        await second.driver.destroy(spec.uuid)
    async with nodes[1].pinned(alone) as driver:
        spec = parts.domain(guest, tmp_path / "initrd", name="newer")
        await driver.start(spec, Attachments(), paused=True)
        packed, luggage = await driver.pack(spec.uuid)
        with pytest.raises(Refused, match=f"does not know the machine type {alone}"):
            await nodes[0].driver.prepare(
                packed, Attachments(), msgspec.Raw(bytes(luggage)), b"", tls=False, peer="test2"
            )


async def test_two_of_the_newest_hold_a_copy_and_encrypt_it_by_aes(newest: str, guest: Guest, tmp_path: Path) -> None:
    """The newest machine type that new domains ever get still waits for our word."""
    machine = f"pc-q35-{'.'.join(str(part) for part in build.NEWEST)}"
    async with cluster(tmp_path, newest, newest, machine=machine) as (near, far):
        spec = await up(near, guest, tmp_path)
        _, luggage = await near.driver.pack(spec.uuid)
        assert msgspec.json.decode(bytes(luggage))["machine"] == machine
        total = await parts.shell(near.driver, spec.uuid, FILL)
        await hold(near, far, spec.uuid, tmp_path / "disk.img")
        result = await move(far, near, spec.uuid, tmp_path / "disk.img")
        assert result.cipher == "AES-128-GCM"
        assert await parts.shell(near.driver, spec.uuid, SUM) == total


@pytest.mark.parametrize("binary", [OWN, "newest"])
async def test_more_streams_than_one_cannot_be_handed_over(binary: str, newest: str, tmp_path: Path) -> None:
    """Why veery has neither multifd nor postcopy-preempt: QEMU makes their connections itself, or not at all."""
    settings = Qemu(accel="tcg", binary=newest if binary == "newest" else OWN)
    driver = QemuDriver(tmp_path / "run", None, settings, RealClock())
    await driver.open()
    try:
        spec = DomainSpec(name="one", uuid="7c2f4b1e-0000-4000-8000-00000000000e", memory=64)
        reading = await driver.start(spec, Attachments(), paused=True)
        socket = tmp_path / "run" / "domains" / str(reading.domid) / "qmp1"
        for wanted in (("multifd",), ("postcopy-ram", "postcopy-preempt")):
            async with contextlib.AsyncExitStack() as stack:
                monitor = Monitor("one", socket, lambda name, data: None)
                stack.push_async_callback(monitor.close)
                await monitor.connect(deadline=30)
                states = [{"capability": name, "state": True} for name in wanted]
                await monitor.execute("migrate-set-capabilities", {"capabilities": states})
                near, far = parts.stream()
                stack.callback(near.close)
                stack.callback(far.close)
                await monitor.pass_fd("stream", near.fileno())
                channel = {"channel-type": "main", "addr": {"transport": "socket", "type": "fd", "str": "stream"}}
                with pytest.raises(CommandError, match="multi-channel"):
                    await monitor.execute("migrate", {"channels": [channel]})
                off = [{"capability": name, "state": False} for name in reversed(wanted)]
                await monitor.execute("migrate-set-capabilities", {"capabilities": off})
    finally:
        for reading in await driver.list():
            await driver.destroy(reading.uuid)
        await driver.close()
