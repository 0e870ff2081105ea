"""What a node gives to its domains that their guests do not see: threads for disks, the kernel's virtio-net, how disks
are read and written. Two nodes may choose differently, and domains still move between them."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.config.settings import Qemu
from veery.errors import Failed, Refused
from veery.model.volume import LocalDisk

VHOST = Path("/dev/vhost-net")
SYS = Path("/sys")
PREALLOC_THREADS = 4  # threads that clear huge pages before a domain starts
URING_SWITCH = Path("/proc/sys/kernel/io_uring_disabled")
SYS_IO_URING_SETUP = 425  # x86-64
PARAMS_BYTES = 120  # struct io_uring_params


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A node's settings for its domains. `iothreads`: each disk of a domain from layout 3 on has a thread of its own.
    `vhost`: the kernel carries the packets of virtio interfaces from layout 2 on. `uring`: files are read and written
    by io_uring. `huge`: KiB of the pages that make up the memory of domains (0: ordinary pages). `numa`: the NUMA node
    of the host that provides the memory while it has any (-1: any node). The defaults are the behaviour of older
    versions."""

    iothreads: bool = False
    vhost: bool = False
    uring: bool = False
    huge: int = 0
    numa: int = -1

    def memory(self) -> dict[str, Any]:
        """Return the kind of QEMU object for guest memory, and its options besides name and size."""
        place: dict[str, Any] = {"host-nodes": [self.numa], "policy": "preferred"} if self.numa >= 0 else {}
        if not self.huge:
            return {"qom-type": "memory-backend-ram"} | place
        pages = {"share": True, "hugetlb": True, "hugetlbsize": self.huge << 10}
        taken = {"prealloc": True, "prealloc-threads": PREALLOC_THREADS}
        return {"qom-type": "memory-backend-memfd"} | pages | taken | place

    def obstacle(self, memory: int, layout: int) -> tuple[str, str]:
        """Return why this node cannot provide `memory` MiB in its way, and what to do; ("", "") where it can."""
        if self.huge and layout < 2:
            hint = "stop and start the domain, or move it to a node without hugepages under [qemu]"
            return "it has huge pages only, and a domain of layout 1 cannot use them", hint
        if self.huge and memory % max(1, self.huge >> 10):
            return f"{memory} MiB is not a multiple of its {self.huge >> 10} MiB pages", "change memory= and maxmem="
        return "", ""

    def free_pages(self, root: Path = SYS) -> int:
        """Return the MiB of free huge pages. Raises Failed."""
        path = pool(root, self.huge) / "free_hugepages"
        try:
            return int(path.read_text()) * self.huge >> 10
        except (OSError, ValueError) as error:
            raise Failed(f"{path}: {error}") from error

    def processors(self, root: Path = SYS) -> set[int]:
        """Return the processors of the NUMA node; empty: any."""
        if self.numa < 0:
            return set()
        listed = (root / f"devices/system/node/node{self.numa}/cpulist").read_text().strip()
        spans = ((part.partition("-")[0], part.rpartition("-")[2]) for part in listed.split(",") if part)
        return {number for first, last in spans for number in range(int(first), int(last) + 1)}

    def aio(self, source: LocalDisk, *, direct: bool) -> str:
        """Return how QEMU reads and writes a local disk, "" where QEMU decides (a pool of threads). The same as
        Proxmox's defaults for disks past the host's cache: io_uring for files, Linux's native aio for block devices,
        which are mostly LVM's: io_uring has hung there. Through the cache both would block."""
        if not direct or not self.uring:
            return ""
        return "native" if source.block else "io_uring"


def choose(settings: Qemu, accel: str, *, vhost: Path = VHOST, apart: bool = False, root: Path = SYS) -> Choice:
    """Return this node's choice from its settings; "auto" means "on under KVM", because an emulated processor gains
    nothing.

    `apart`: QEMU does not run as root; `root` is /sys. Raises Refused for what the host lacks."""
    huge = {"": 0, "2M": 2 << 10, "1G": 1 << 20}[settings.hugepages]
    if huge and not pool(root, huge).is_dir():
        raise Refused(
            f"the kernel has no pages of {settings.hugepages}",
            hint='set hugepages = "" under [qemu]; for 1G boot with hugepagesz=1G hugepages=N',
        )
    if settings.numa_node >= 0 and not (root / f"devices/system/node/node{settings.numa_node}").is_dir():
        raise Refused(
            f"the machine has no NUMA node {settings.numa_node}",
            hint="set numa_node = -1 under [qemu]: lscpu lists them",
        )
    wanted = {"on": True, "off": False, "auto": accel == "kvm"}
    return Choice(
        iothreads=wanted[settings.iothreads],
        vhost=wanted[settings.vhost] and accel == "kvm" and vhost.exists(),
        uring=wanted[settings.aio] and has_uring(apart=apart),
        huge=huge,
        numa=settings.numa_node,
    )


def pool(root: Path, huge: int) -> Path:
    """Return the folder in which the kernel describes its huge pages of `huge` KiB."""
    return root / f"kernel/mm/hugepages/hugepages-{huge}kB"


def has_uring(switch: Path = URING_SWITCH, *, apart: bool = False) -> bool:
    """Return whether the kernel allows io_uring to a QEMU that runs as root, or to one that does not (`apart`)."""
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
