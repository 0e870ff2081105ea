"""What a node gives to the domains on it that their guests do not see: threads for disks, the kernel's virtio-net, how
disks are read and written. Two nodes may choose differently: a move between them stays the same."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from veery.config.settings import Qemu
from veery.model.volume import LocalDisk

VHOST = Path("/dev/vhost-net")
URING_SWITCH = Path("/proc/sys/kernel/io_uring_disabled")
SYS_IO_URING_SETUP = 425  # x86-64
PARAMS_BYTES = 120  # struct io_uring_params


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`iothreads`: each disk of a domain from layout 3 on has a thread of its own; `vhost`: the kernel carries the
    packets of virtio interfaces from layout 2 on; `uring`: files are read and written by io_uring. The defaults are
    what domains always had."""

    iothreads: bool = False
    vhost: bool = False
    uring: bool = False

    def aio(self, source: LocalDisk, *, direct: bool) -> str:
        """How QEMU reads and writes a local disk, "" where that is left to it (a pool of threads). The same as
        Proxmox's defaults for disks past the host's cache: io_uring for files, Linux's native aio for block devices,
        which LVM makes mostly: there io_uring has hung. Through the cache both would block."""
        if not direct or not self.uring:
            return ""
        return "native" if source.block else "io_uring"


def choose(settings: Qemu, accel: str, *, vhost: Path = VHOST, apart: bool = False) -> Choice:
    """This node's choice: what is set, "auto" meaning that it is so under KVM. An emulated processor gains nothing.

    `apart`: QEMU does not run as root."""
    wanted = {"on": True, "off": False, "auto": accel == "kvm"}
    return Choice(
        iothreads=wanted[settings.iothreads],
        vhost=wanted[settings.vhost] and accel == "kvm" and vhost.exists(),
        uring=wanted[settings.aio] and has_uring(apart=apart),
    )


def has_uring(switch: Path = URING_SWITCH, *, apart: bool = False) -> bool:
    """Whether the kernel gives io_uring to a QEMU of root's, or to one that is not (`apart`)."""
    try:
        level = int(switch.read_text())
    except (OSError, ValueError):  # kernels before 6.6 have no switch
        level = 0
    if level > (0 if apart else 1):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(SYS_IO_URING_SETUP, 1, ctypes.byref(ctypes.create_string_buffer(PARAMS_BYTES)))
    if handle < 0:
        return False
    os.close(handle)
    return True
