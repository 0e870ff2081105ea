"""The medium in a CD-ROM drive, changed while the domain runs (QAPI's blockdev-open-tray and its kin)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from veery.errors import Failed, Refused, VeeryError
from veery.hypervisor.qemu import devices, hotplug, lending
from veery.hypervisor.qemu.build import disk_id
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import CommandError
from veery.model.domain import DiskFormat
from veery.model.volume import AttachedDisk

TRAY_TRIES = 10


async def change_medium(domain: Domain, disk: AttachedDisk) -> None:
    """See MediumChanger.change_medium."""
    async with domain.lock, lending.disk(domain, disk) as node:  # refuses an unknown format before any change
        old = _drive(domain, disk.spec.vdev)
        device = {"id": disk_id(old.spec)}
        await _empty(domain, old, device)
        _note(domain, AttachedDisk(spec=replace(disk.spec, target="", volume="", format=DiskFormat.EMPTY), source=None))
        if node is not None:
            await _fill(domain, disk, node, device)
            _note(domain, disk)
        await domain.monitor.execute("blockdev-close-tray", device)


async def _empty(domain: Domain, old: AttachedDisk, device: dict[str, Any]) -> None:
    """Remove the medium from the drive."""
    if old.source is None:
        return
    inserted = await hotplug.front(domain, old.spec.vdev)
    await _with_open_tray(domain, "blockdev-remove-medium", device)
    await domain.monitor.execute("blockdev-del", {"node-name": inserted})
    if devices.secret(old):
        await domain.monitor.execute("object-del", {"id": devices.secret_id(old)})


async def _with_open_tray(domain: Domain, command: str, arguments: dict[str, Any]) -> None:
    """Open the tray, whatever the guest says, as xl does, and run `command`. A guest may close the tray in between: a
    kernel that boots resets the drive."""
    for left in reversed(range(TRAY_TRIES)):
        await domain.monitor.execute("blockdev-open-tray", {"id": arguments["id"], "force": True})
        try:
            await domain.monitor.execute(command, arguments)
            return
        except CommandError as error:
            if not left or "Tray" not in str(error):
                raise


async def _fill(domain: Domain, disk: AttachedDisk, node: devices.Options, device: dict[str, Any]) -> None:
    """Put a medium into the open drive. Raises Failed, with the drive closed and empty."""
    name = node["node-name"]
    try:
        if devices.secret(disk):
            options = {"qom-type": "secret", "id": devices.secret_id(disk), "data": devices.secret(disk)}
            await domain.monitor.execute("object-add", options)
        await domain.monitor.execute("blockdev-add", node, deadline=hotplug.OPEN_DEADLINE_S)
        await _with_open_tray(domain, "blockdev-insert-medium", {**device, "node-name": name})
    except VeeryError as error:
        await hotplug.try_to(domain, "blockdev-del", {"node-name": name})
        if devices.secret(disk):
            await hotplug.try_to(domain, "object-del", {"id": devices.secret_id(disk)})
        await hotplug.try_to(domain, "blockdev-close-tray", device)
        raise Failed(
            f"{disk.spec.vdev} is empty now: {error.message}",
            hint=f"veery cd-insert {domain.record.spec.name} {disk.spec.vdev} FILE",
        ) from error


def _note(domain: Domain, disk: AttachedDisk) -> None:
    record = domain.record
    disks = tuple(disk if each.spec.vdev == disk.spec.vdev else each for each in record.attachments.disks)
    domain.update(
        spec=replace(record.spec, disks=tuple(each.spec for each in disks)),
        attachments=replace(record.attachments, disks=disks),
    )


def _drive(domain: Domain, vdev: str) -> AttachedDisk:
    for disk in domain.record.attachments.disks:
        if disk.spec.vdev == vdev and disk.spec.cdrom:
            return disk
    name = domain.record.spec.name
    raise Refused(f"{name} has no CD-ROM drive {vdev}", hint=f"veery block-list {name}")
