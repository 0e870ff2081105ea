"""What a guest may read and write on its disks a second, told to QEMU over QMP.

libvirt does the same. The limit is one of the disk's device, so it holds when the disk goes over to another LUN. The
command line is the same with and without limits. What veery itself copies of the disk (`migrate --with-disks`, a volume
that moves) is not held back."""

from __future__ import annotations

import dataclasses
from typing import Any

from veery.hypervisor.qemu.build import disk_id
from veery.hypervisor.qemu.domain import Domain
from veery.model.domain import DiskLimits, DiskSpec


def throttle(disk: DiskSpec) -> dict[str, Any] | None:
    """The arguments of block_set_io_throttle; None for a disk without limits. It wants all six values, 0 for none."""
    if disk.limits is None or disk.cdrom:
        return None
    values = {each.name: getattr(disk.limits, each.name) for each in dataclasses.fields(DiskLimits)}
    return {"id": f"/machine/peripheral/{disk_id(disk)}/virtio-backend", **values}


async def limit(domain: Domain, *disks: DiskSpec) -> None:
    """Have QEMU keep the limits of `disks`, which the domain has. Raises Failed."""
    for disk in disks:
        if (arguments := throttle(disk)) is not None:
            await domain.monitor.execute("block_set_io_throttle", arguments)
