"""Disks and interfaces that are added and removed while a domain runs, and their entries in its domain file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.hypervisor.xen import config, disks
from veery.hypervisor.xen.registry import Domain, Registry, numbered
from veery.model.domain import DomainSpec
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, LocalDisk

_LOSETUP_DEADLINE_S = 10.0


def check_local(spec: DomainSpec, attachments: Attachments) -> None:
    """Raise Refused where a file or device of a disk does not exist."""
    for disk in attachments.disks:
        if isinstance(disk.source, LocalDisk) and not Path(disk.source.path).exists():
            raise Refused(f"{spec.name}: disk {disk.spec.vdev}: {disk.source.path} does not exist")


async def attach_disk(registry: Registry, domain: Domain, disk: AttachedDisk) -> None:
    """See Driver.attach_disk."""
    async with domain.lock:
        record = domain.record
        if any(each.spec.vdev == disk.spec.vdev for each in record.attachments.disks):
            raise Refused(f"{record.spec.name} has {disk.spec.vdev} already", hint="give it another vdev")
        one = Attachments(disks=(disk,))
        check_local(record.spec, one)
        devices = await registry.login(one)
        try:
            await registry.xl.block_attach(record.domid, config.disk(disk, devices, registry.scripts))
        except BaseException:
            await registry.logout(one)
            raise
        _fit(domain, (*record.attachments.disks, disk), record.attachments.vifs)


async def detach_disk(registry: Registry, domain: Domain, vdev: str) -> None:
    """See Driver.detach_disk."""
    async with domain.lock:
        record = domain.record
        gone = [disk for disk in record.attachments.disks if disk.spec.vdev == vdev]
        if not gone:
            raise Refused(f"{record.spec.name} has no disk {vdev}", hint=f"veery block-list {record.spec.name}")
        try:
            await registry.xl.block_detach(record.domid, vdev)
        except Failed as error:
            raise Failed(f"{record.spec.name} did not release {vdev}: {error.message}", hint=error.hint) from error
        kept = tuple(disk for disk in record.attachments.disks if disk.spec.vdev != vdev)
        _fit(domain, kept, record.attachments.vifs)
        await registry.logout(Attachments(disks=tuple(gone)))


async def resize_disk(registry: Registry, domain: Domain, vdev: str) -> None:
    """See Driver.resize_disk. At the next request blkback sees that its device has grown, and tells the guest (Linux,
    drivers/block/xen-blkback/blkback.c, xen_vbd_resize)."""
    record = domain.record
    found = next((disk for disk in record.attachments.disks if disk.spec.vdev == vdev), None)
    if found is None:
        raise Refused(f"{record.spec.name} has no disk {vdev}", hint=f"veery block-list {record.spec.name}")
    lun = disks.of(found)
    if lun is not None:
        await registry.initiator.rescan(lun)
    elif isinstance(found.source, LocalDisk) and not found.source.block:
        result = await run(["losetup", "-n", "-O", "NAME", "-j", found.source.path], deadline=_LOSETUP_DEADLINE_S)
        for loop in result.out.split():
            await run(["losetup", "-c", loop], deadline=_LOSETUP_DEADLINE_S)


async def attach_vif(registry: Registry, domain: Domain, vif: AttachedVif) -> None:
    """See Driver.attach_vif."""
    async with domain.lock:
        record = domain.record
        if any(each.spec.mac == vif.spec.mac for each in record.attachments.vifs):
            raise Refused(f"{record.spec.name} has {vif.spec.mac} already", hint="give it another mac")
        # veery numbers it, so that its name is known here and on a move's target
        places = {_place(index, each) for index, each in enumerate(record.attachments.vifs)}
        free = next(number for number in range(len(places) + 1) if number not in places)
        placed = AttachedVif(spec=replace(vif.spec, devid=free), device=vif.device)
        await registry.xl.network_attach(record.domid, config.vif(placed, registry.scripts))
        _fit(domain, record.attachments.disks, (*record.attachments.vifs, placed))


async def detach_vif(registry: Registry, domain: Domain, mac: str) -> None:
    """See Driver.detach_vif."""
    async with domain.lock:
        record = domain.record
        kept = tuple(vif for vif in record.attachments.vifs if vif.spec.mac != mac)
        if len(kept) == len(record.attachments.vifs):
            raise Refused(f"{record.spec.name} has no interface {mac}", hint=f"veery network-list {record.spec.name}")
        await registry.xl.network_detach(record.domid, mac)
        _fit(domain, record.attachments.disks, kept)


def _place(index: int, vif: AttachedVif) -> int:
    return vif.spec.devid if vif.spec.devid >= 0 else index


def _fit(domain: Domain, disks_now: tuple[AttachedDisk, ...], vifs: tuple[AttachedVif, ...]) -> None:
    """Record the devices that the domain has now."""
    attachments = replace(domain.record.attachments, disks=disks_now, vifs=vifs)
    spec = replace(
        domain.record.spec,
        disks=tuple(disk.spec for disk in disks_now),
        vifs=tuple(vif.spec for vif in vifs),
    )
    domain.update(spec=spec, attachments=numbered(attachments, domain.record.domid))
