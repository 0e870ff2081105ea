"""Files that only root may open, opened here for a QEMU that does not run as root, and passed by descriptor.

A disk's descriptor goes into an fdset (qemu(1), -add-fd; QMP's add-fd). QEMU opens /dev/fdset/N and keeps a copy of the
descriptor; then the set is removed. This is necessary: QEMU's locks (OFD, fcntl(2)) belong to what all copies share,
and end only with the last copy. The access mode must be exactly the one that QEMU asks for (so no node has
auto-read-only), and from QEMU 9.1 on O_DIRECT must match too."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from veery.errors import Failed, Refused
from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.argv import Handed
from veery.hypervisor.qemu.choice import VHOST
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, LocalDisk

KVM, TUN = Path("/dev/kvm"), Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000  # linux/if_tun.h; as QEMU itself opens a tap


def opened(stack: ExitStack, attachments: Attachments, console_log: Path, *, kvm: bool) -> Handed:
    """Open all that a new QEMU needs; `stack` closes veeryd's copies. Raises Failed, Refused."""
    return Handed(
        disks={
            disk.spec.vdev: stack.enter_context(disk_opened(disk))
            for disk in attachments.disks
            if isinstance(disk.source, LocalDisk)
        },
        taps={devices.tap_id(vif): stack.enter_context(tap_opened(vif)) for vif in attachments.vifs},
        console_log=stack.enter_context(_opened(console_log, os.O_WRONLY | os.O_APPEND)),
        kvm=stack.enter_context(_opened(KVM, os.O_RDWR)) if kvm else None,
        boot=True,
    )


@contextmanager
def disk_opened(disk: AttachedDisk) -> Iterator[int]:
    """Yield a descriptor of a local disk, opened as QEMU would open it. Raises Failed, and Refused for a path that is
    not a disk."""
    assert isinstance(disk.source, LocalDisk)
    path = Path(disk.source.path)
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise Refused(f"disk {disk.spec.vdev}: {path} is neither a file nor a block device")
    writable = disk.spec.readwrite and not disk.spec.cdrom
    direct = os.O_DIRECT if devices.past_cache(disk.source, disk.spec) else 0
    with _opened(path, (os.O_RDWR if writable else os.O_RDONLY) | direct) as handle:
        yield handle


@contextmanager
def tap_opened(vif: AttachedVif) -> Iterator[int]:
    """Yield a descriptor of an interface's tap. Raises Failed."""
    with _opened(TUN, os.O_RDWR | os.O_NONBLOCK) as handle:
        request = struct.pack("16sH22x", vif.device.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        try:
            fcntl.ioctl(handle, TUNSETIFF, request)
        except OSError as error:
            hint = f"see what uses it with: ip -details link show {vif.device}" if error.errno == errno.EBUSY else ""
            raise Failed(f"tap {vif.device}: {error.strerror}", hint=hint) from error
        yield handle


@contextmanager
def vhost_opened(path: Path = VHOST) -> Iterator[int]:
    """Yield a descriptor of the kernel's virtio-net. Raises Failed."""
    with _opened(path, os.O_RDWR) as handle:
        yield handle


@contextmanager
def file_opened(path: Path, flags: int) -> Iterator[int]:
    """Yield a descriptor of a file for QEMU to read or write; only root may open a file that is made here. Raises
    Failed."""
    with _opened(path, flags) as handle:
        yield handle


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error
    try:
        yield handle
    finally:
        os.close(handle)
