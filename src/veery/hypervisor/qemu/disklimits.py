"""Limits on what a guest may read and write on its disks per second, set in QEMU over QMP.

libvirt does the same. The limit belongs to the disk's device, so it stays when the disk is switched to another LUN. The
command line is the same with and without limits. What veery itself copies of the disk (`migrate --with-disks`, a volume
that moves) is not limited."""

from __future__ import annotations

import dataclasses
from typing import Any

from veery.hypervisor.qemu.build import disk_id
from veery.hypervisor.qemu.domain import Domain
from veery.model.domain import DiskLimits, DiskSpec


def throttle(disk: DiskSpec) -> dict[str, Any] | None:
    """Return the arguments of block_set_io_throttle; None for a disk without limits. QEMU wants all six values, 0 for
    no limit."""
    if disk.limits is None or disk.cdrom:
        return None
    values = {each.name: getattr(disk.limits, each.name) for each in dataclasses.fields(DiskLimits)}
    return {"id": f"/machine/peripheral/{disk_id(disk)}/virtio-backend", **values}


async def limit(domain: Domain, *disks: DiskSpec) -> None:
    """Make QEMU keep the limits of `disks`, which the domain has. Raises Failed."""
    for disk in disks:
        if (arguments := throttle(disk)) is not None:
            await domain.monitor.execute("block_set_io_throttle", arguments)
