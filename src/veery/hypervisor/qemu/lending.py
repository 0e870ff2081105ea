"""What a running QEMU that is not root is given for one order: a file, a disk, a tap, certificates. A QEMU that runs as
root (`Home.apart` is false) opens all of this by itself, also one that an older version of veery started."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from veery.errors import Failed, VeeryError
from veery.hypervisor.qemu import devices, handover
from veery.hypervisor.qemu.argv import carries, fdset
from veery.hypervisor.qemu.choice import Choice
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import Monitor
from veery.hypervisor.qemu.process import Home
from veery.model.volume import AttachedDisk, AttachedVif, LocalDisk

TAP, NETWORK = "tap", "vhost"
"""getfd's names of a tap and of the kernel's virtio-net while they are passed."""


@contextlib.asynccontextmanager
async def disk(
    domain: Domain, attached: AttachedDisk, choice: Choice = devices.PLAIN
) -> AsyncIterator[devices.Options | None]:
    """Yield the block node of a disk, as devices.blockdev returns it, for one blockdev-add within the body. Raises
    Failed, Refused."""
    node = devices.blockdev(attached, choice=choice)
    if node is None or not domain.home.apart or not isinstance(attached.source, LocalDisk):
        yield node
        return
    with handover.disk_opened(attached) as handle:
        async with _set(domain.monitor, handle) as name:
            yield devices.blockdev(attached, name, choice)


@contextlib.asynccontextmanager
async def file(domain: Domain, monitor: Monitor, path: Path, flags: int) -> AsyncIterator[str]:
    """Yield the name by which QEMU opens `path` with `flags` (os.open) within the body. Raises Failed."""
    if not domain.home.apart:
        yield str(path)
        return
    with handover.file_opened(path, flags) as handle:
        async with _set(monitor, handle) as name:
            yield name


async def tap(domain: Domain, vif: AttachedVif, choice: Choice = devices.PLAIN) -> devices.Options:
    """Return the options of one netdev_add, as devices.netdev does. Raises Failed."""
    vhost = ""
    if carries(domain.record.build, vif, choice):
        with handover.vhost_opened() as handle:
            await domain.monitor.pass_fd(NETWORK, handle)
        vhost = NETWORK
    if not domain.home.apart:
        return devices.netdev(vif, vhost=vhost)
    with handover.tap_opened(vif) as handle:
        await domain.monitor.pass_fd(TAP, handle)
    return devices.netdev(vif, TAP, vhost)


@contextlib.contextmanager
def certificates(home: Home, tls: Path, endpoint: str) -> Iterator[Path]:
    """Yield the folder of certificates for one object-add: QEMU reads them once, at that moment.

    A QEMU that is not root gets copies, in a folder that it can read and only root can write."""
    if not home.apart:
        yield tls
        return
    gid = home.own.stat().st_gid
    folder = Path(tempfile.mkdtemp(prefix="tls-", dir=home.own))
    try:
        os.chown(folder, 0, gid)
        folder.chmod(0o750)
        for name in ("ca-cert.pem", "ca-crl.pem", "dh-params.pem", f"{endpoint}-cert.pem", f"{endpoint}-key.pem"):
            if (tls / name).exists():
                copy = folder / name
                copy.touch(mode=0o600)
                copy.write_bytes((tls / name).read_bytes())
                os.chown(copy, 0, gid)
                copy.chmod(0o640)
        yield Path(folder.name)  # QEMU's working directory is home.own
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def take_back(domain: Domain, name: str) -> None:
    """Make a QEMU that is not root forget certificates: an attacker who breaks out of it would otherwise have the
    node's key. Never raises."""
    if domain.home.apart:
        with contextlib.suppress(VeeryError):  # it has no certificates, or has ended
            await domain.monitor.execute("object-del", {"id": name})


def refuse_another(connection: socket.socket, pid: int) -> None:
    """Raise Failed unless process `pid` listens at the other end: QEMU may have put a link in the socket's place."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[0] != pid:
        raise Failed(f"process {pid} does not listen where its socket should be")


async def settle(domain: Domain) -> None:
    """Remove what a new QEMU has found and opened: the sets on its command line, the copies of kernel and ramdisk.
    Raises Failed, OutcomeUnknown."""
    if domain.home.apart:
        domain.home.drop_boot_files()
        for row in await domain.monitor.execute("query-fdsets"):
            await _remove(domain.monitor, int(row["fdset-id"]))


@contextlib.asynccontextmanager
async def _set(monitor: Monitor, handle: int) -> AsyncIterator[str]:
    number = await monitor.add_fd(handle)
    try:
        yield fdset(number)
    finally:
        with contextlib.suppress(VeeryError):  # a QEMU that is gone has closed it
            await _remove(monitor, number)


async def _remove(monitor: Monitor, number: int) -> None:
    await monitor.execute("remove-fd", {"fdset-id": number})
