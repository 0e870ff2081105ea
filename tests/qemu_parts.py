"""A domain that boots in two seconds, for tests of the qemu driver: a kernel, one static program, a shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from veery.config.settings import Qemu
from veery.errors import Failed
from veery.host.clock import RealClock
from veery.hypervisor.base import Console, Driver
from veery.hypervisor.qemu.driver import QemuDriver
from veery.lab.guest import Guest
from veery.lab.shell import doubled
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, VifSpec
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, LocalDisk

T = TypeVar("T")
MODULES = """virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net
virtio_blk virtio_balloon pvpanic pvpanic-mmio button evdev""".split()  # noqa: SIM905
INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in MODULES; do insmod /modules/$module.ko; done
acpid -f -c /etc/acpi -l /dev/null &
until ls -l /proc/$!/fd | grep -q event; do sleep 0.1; done
echo READY
exec setsid cttyhack sh
"""
BOOT = float(os.environ.get("VEERY_BOOT", "150"))
"""Seconds for a guest to do something; a nested one takes longer."""


def initramfs(guest: Guest, path: Path) -> Path:
    """A cpio archive (newc) with busybox and the modules of `guest`, written to `path`."""
    directory, program, link = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFLNK | 0o777
    names = ["bin", "dev", "proc", "sys", "tmp", "etc", "etc/acpi", "etc/acpi/PWRF", "modules"]
    entries = [(name, directory, b"") for name in names]
    entries += [("bin/busybox", program, Path("/bin/busybox").read_bytes()), ("bin/sh", link, b"busybox")]
    entries += [("init", program, INIT.replace("MODULES", " ".join(MODULES)).encode())]
    entries += [("etc/acpi/PWRF/00000080", program, b"#!/bin/sh\npoweroff -f\n")]
    for module in MODULES:
        found = next(guest.modules.rglob(f"{module}.ko"), None)
        if found is not None:
            entries.append((f"modules/{module}.ko", program, found.read_bytes()))
    return cpio(entries, path)


def cpio(entries: list[tuple[str, int, bytes]], path: Path) -> Path:
    """(name, mode, content) each, as a cpio archive (newc) at `path`."""
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        words = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    path.write_bytes(archive)
    return path


def domain(guest: Guest, ramdisk: Path, name: str = "busybox", **changes: object) -> DomainSpec:
    """A domain of 96 MiB that boots `guest` into a shell."""
    values: dict[str, object] = {
        "name": name,
        "uuid": str(uuid.uuid4()),
        "kernel": str(guest.kernel),
        "ramdisk": str(ramdisk),
        "cmdline": "quiet panic=-1",
        "memory": 96,
    }
    return DomainSpec(**(values | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Snapshot:
    """A domain that has booted, in a file: to wake it takes a tenth of the time that a boot takes."""

    spec: DomainSpec
    luggage: msgspec.Raw
    path: Path


def snapshot(guest: Guest, folder: Path) -> Snapshot:
    """Boot a domain of 96 (at most 128) MiB with a shell, and save it in `folder`. Not for a running loop."""

    async def make() -> Snapshot:
        driver = QemuDriver(folder / "run", None, Qemu(accel="tcg"), RealClock())
        await driver.open()
        spec = domain(guest, initramfs(guest, folder / "initrd"), maxmem=128)
        try:
            await driver.start(spec, Attachments())
            await booted(driver, spec.uuid)
            packed, luggage = await driver.pack(spec.uuid)
            await driver.save(spec.uuid, folder / "saved")
            return Snapshot(packed, msgspec.Raw(bytes(luggage)), folder / "saved")
        finally:
            await driver.destroy(spec.uuid)
            await driver.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(make())).result()


async def awake(driver: Driver, snapshot: Snapshot, name: str = "busybox", **changes: object) -> DomainSpec:
    """A domain that runs, woken from `snapshot` under a UUID of its own; its spec."""
    spec = replace(snapshot.spec, name=name, uuid=str(uuid.uuid4()), **changes)  # type: ignore[arg-type]
    await driver.restore(spec, Attachments(), snapshot.luggage, snapshot.path)
    return spec


def disk(path: Path, vdev: str = "xvda", size: int = 8 << 20) -> AttachedDisk:
    """A sparse file as a disk; it is made if it is not there."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(size)
    spec = DiskSpec(vdev=vdev, target=str(path))
    return AttachedDisk(spec=spec, source=LocalDisk(path=str(path), format=DiskFormat.RAW, block=False))


def attached(spec: DomainSpec) -> Attachments:
    """What a node would make of the file disks of `spec`, which has no interface."""
    return Attachments(disks=tuple(disk(Path(each.target), each.vdev) for each in spec.disks))


def vif(device: str, mac: str) -> AttachedVif:
    """An interface on a tap that exists."""
    return AttachedVif(spec=VifSpec(bridge="none", mac=mac), device=device)


@contextlib.contextmanager
def tap(name: str) -> Iterator[str]:
    """A tap on no bridge."""
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def stream() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


async def becomes(probe: Callable[[], Awaitable[T]], good: Callable[[T], bool], *, seconds: float = BOOT) -> T:
    """The first answer of `probe` that is `good`."""
    async with asyncio.timeout(seconds):
        while True:
            if good(answer := await probe()):
                return answer
            await asyncio.sleep(0.02)


async def until(console: Console, pattern: bytes, *, seconds: float = BOOT) -> bytes:
    """What the console says up to `pattern`."""
    heard = b""
    try:
        async with asyncio.timeout(seconds):
            while re.search(pattern, heard) is None:
                data = await console.read()
                assert data, f"the console ended: {heard[-500:]!r}"
                heard += data
    except TimeoutError:
        raise AssertionError(f"{seconds:g} s without {pattern!r}; the console said {heard[-500:]!r}") from None
    return heard


async def booted(driver: Driver, uuid: str, *, times: int = 1) -> None:
    """Return when the guest's shell has come up for the `times`th time."""
    await becomes(lambda: driver.backlog(uuid), lambda text: text.count(b"READY") >= times)


async def shell(driver: Driver, uuid: str, command: str, *, seconds: float = BOOT) -> str:
    """Run `command` in the guest; what it printed. A guest that is silent for long is given an Enter, as anybody would:
    three times in some thousand, on a machine with twice its work, one did not take what was typed after it had stood
    still."""
    mark = secrets.token_hex(4)
    console = await driver.console(uuid)
    nudging = asyncio.create_task(_nudge(console))
    try:
        await console.write(f"echo be''gin-{mark}; {command}; echo e''nd-{mark}\n".encode())
        end = doubled(f"end-{mark}")
        heard = (await until(console, end.encode(), seconds=seconds)).decode(errors="replace")
    finally:
        nudging.cancel()
        await asyncio.wait({nudging})
        await console.close()
    return re.split(end, re.split(doubled(f"begin-{mark}") + r"\r*\n", heard)[-1])[0].strip()


async def _nudge(console: Console) -> None:
    while True:
        await asyncio.sleep(30)
        print("the guest is silent: Enter")
        with contextlib.suppress(Failed):
            await console.write(b"\n")


@contextlib.contextmanager
def small_folder(path: Path, size: str) -> Iterator[Path]:
    """A folder with room for `size` bytes ("4m")."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
        shutil.rmtree(path)
