"""Devices that are plugged and unplugged while the domain runs.

An unplug is a request to the guest, which may answer late or never. So the back end is removed, and the record changed,
when DEVICE_DELETED arrives, whether a caller still waits for it or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any

from veery.errors import Failed, Refused, VeeryError
from veery.hypervisor.qemu import devices, disklimits, lending
from veery.hypervisor.qemu.argv import threads
from veery.hypervisor.qemu.build import disk_id, vif_id
from veery.hypervisor.qemu.choice import Choice
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import CommandError
from veery.model.volume import AttachedDisk, AttachedVif

log = logging.getLogger(__name__)

FRONT = "front-"
"""The prefix of the block node of a disk that was switched to another LUN; the disk's name and a number follow."""
UNPLUG_DEADLINE_S = 15.0
OPEN_DEADLINE_S = 20.0
"""QEMU answers nothing else while it logs into a LUN."""


async def attach_disk(domain: Domain, disk: AttachedDisk, choice: Choice = devices.PLAIN) -> None:
    """See Driver.attach_disk. `choice` is the node's."""
    name = disk_id(disk.spec)
    if disk.spec.cdrom or disk.source is None:
        raise Refused("a CD-ROM drive cannot be attached to a running domain", hint="create the domain with it")
    async with domain.lock, lending.disk(domain, disk, choice) as node, contextlib.AsyncExitStack() as undo:
        port = _place(domain, name, disk.spec.vdev)
        if devices.secret(disk):
            secret = devices.secret_id(disk)
            options = {"qom-type": "secret", "id": secret, "data": devices.secret(disk)}
            await domain.monitor.execute("object-add", options)
            undo.push_async_callback(try_to, domain, "object-del", {"id": secret})
        await domain.monitor.execute("blockdev-add", node, deadline=OPEN_DEADLINE_S)
        undo.push_async_callback(try_to, domain, "blockdev-del", {"node-name": name})
        threaded = threads(domain.record.build, disk, choice)
        if threaded:
            thread = devices.io_thread(disk)
            await domain.monitor.execute("object-add", {"qom-type": "iothread", "id": thread})
            undo.push_async_callback(try_to, domain, "object-del", {"id": thread})
        await domain.monitor.execute("device_add", devices.disk_device(disk, port, threaded=threaded))
        undo.pop_all()
        record = domain.record
        domain.update(
            spec=replace(record.spec, disks=(*record.spec.disks, disk.spec)),
            attachments=replace(record.attachments, disks=(*record.attachments.disks, disk)),
            build=record.build.plug(name, port),
        )
        try:
            await disklimits.limit(domain, disk.spec)
        except VeeryError as error:
            hint = f"veery block-detach {record.spec.name} {disk.spec.vdev}"
            raise Failed(f"{disk.spec.vdev} is attached, but without its limits: {error.message}", hint=hint) from error


async def attach_vif(domain: Domain, vif: AttachedVif, choice: Choice = devices.PLAIN) -> None:
    """See Driver.attach_vif. `choice` is the node's."""
    name = vif_id(vif.spec)
    async with domain.lock, contextlib.AsyncExitStack() as undo:
        port = _place(domain, name, vif.spec.mac)
        await domain.monitor.execute("netdev_add", await lending.tap(domain, vif, choice))
        undo.push_async_callback(try_to, domain, "netdev_del", {"id": devices.tap_id(vif)})
        await domain.monitor.execute("device_add", devices.vif_device(vif, port, domain.record.build.layout))
        undo.pop_all()
        record = domain.record
        domain.update(
            spec=replace(record.spec, vifs=(*record.spec.vifs, vif.spec)),
            attachments=replace(record.attachments, vifs=(*record.attachments.vifs, vif)),
            build=record.build.plug(name, port),
        )


async def detach_disk(domain: Domain, vdev: str) -> None:
    """See Driver.detach_disk."""
    disk = _disk(domain, vdev)
    if disk.spec.cdrom:
        raise Refused(f"{vdev} is a built-in CD-ROM drive, which cannot be unplugged")
    await _unplug(domain, disk_id(disk.spec), vdev)


async def detach_vif(domain: Domain, mac: str) -> None:
    """See Driver.detach_vif."""
    for vif in domain.record.attachments.vifs:
        if vif.spec.mac.lower() == mac.lower():
            await _unplug(domain, vif_id(vif.spec), mac)
            return
    raise Refused(f"{domain.record.spec.name} has no interface {mac}")


async def resize_disk(domain: Domain, vdev: str, size: int) -> None:
    """See Driver.resize_disk. A LUN or a block device has grown already, so QEMU only reads its size again."""
    await domain.monitor.execute(
        "block_resize", {"node-name": await front(domain, vdev), "size": size}, deadline=OPEN_DEADLINE_S
    )


async def front(domain: Domain, vdev: str) -> str:
    """Return the block node of the disk's device; it changes when the disk is switched to another LUN."""
    name = disk_id(_disk(domain, vdev).spec)
    for row in await domain.monitor.execute("query-block"):
        if str(row.get("qdev", "")).split("/")[:4] == ["", "machine", "peripheral", name] and "inserted" in row:
            return str(row["inserted"]["node-name"])
    return name


def watch_unplugs(domain: Domain) -> None:
    """From now on, remove what an unplugged device leaves behind."""
    tasks: set[asyncio.Task[None]] = set()

    def unplugged(device: str) -> None:
        if device in domain.record.build.slots:
            task = asyncio.create_task(_forget(domain, device), name=f"{domain.record.spec.name} lost {device}")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    domain.on_unplug = unplugged


async def settle_unplugs(domain: Domain) -> None:
    """Forget devices that were unplugged while veeryd was down. Raises VeeryError."""
    found = await domain.monitor.execute("qom-list", {"path": "/machine/peripheral"})
    present = {item["name"] for item in found}
    for device in domain.record.build.slots:
        if device not in present:
            await _forget(domain, device)


async def _unplug(domain: Domain, device: str, name: str) -> None:
    async with domain.lock:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        domain.unplugged[device] = waiting
        try:
            with contextlib.suppress(CommandError):  # "already in the process of unplug": keep waiting
                await domain.monitor.execute("device_del", {"id": device})
            async with asyncio.timeout(UNPLUG_DEADLINE_S):
                await waiting
        except TimeoutError as error:
            raise Failed(
                f"{domain.record.spec.name} did not release {name}",
                hint="its guest must be up and support hot-unplug; the device is detached once the guest releases it",
            ) from error
        finally:
            del domain.unplugged[device]


async def _forget(domain: Domain, device: str) -> None:
    """Remove the back end and the record of a device that no longer exists."""
    record = domain.record
    waiting = domain.unplugged.get(device)
    for disk in record.attachments.disks:
        if disk_id(disk.spec) == device:
            for node in await domain.monitor.execute("query-named-block-nodes", {"flat": True}):
                if node["node-name"].startswith(f"{FRONT}{disk.spec.vdev}-"):
                    await try_to(domain, "blockdev-del", {"node-name": node["node-name"]})
            await try_to(domain, "blockdev-del", {"node-name": device})
            if devices.secret(disk):
                await try_to(domain, "object-del", {"id": devices.secret_id(disk)})
            objects = await domain.monitor.execute("qom-list", {"path": "/objects"})
            if any(row["name"] == devices.io_thread(disk) for row in objects):
                await try_to(domain, "object-del", {"id": devices.io_thread(disk)})
    for vif in record.attachments.vifs:
        if vif_id(vif.spec) == device:
            await try_to(domain, "netdev_del", {"id": devices.tap_id(vif)})
    record = domain.record
    disks = tuple(disk for disk in record.attachments.disks if disk_id(disk.spec) != device)
    vifs = tuple(vif for vif in record.attachments.vifs if vif_id(vif.spec) != device)
    domain.update(
        spec=replace(record.spec, disks=tuple(d.spec for d in disks), vifs=tuple(v.spec for v in vifs)),
        attachments=replace(record.attachments, disks=disks, vifs=vifs),
        build=record.build.unplug(device),
    )
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


async def try_to(domain: Domain, command: str, arguments: dict[str, Any]) -> None:
    """Run a command whose failure is only logged."""
    try:
        await domain.monitor.execute(command, arguments)
    except VeeryError as error:
        log.warning("domain=%s %s: %s", domain.record.spec.name, command, error)


def _place(domain: Domain, device: str, name: str) -> int:
    if device in domain.record.build.slots:
        raise Refused(f"{domain.record.spec.name} has {name} already")
    return domain.record.build.free_port()


def _disk(domain: Domain, vdev: str) -> AttachedDisk:
    for disk in domain.record.attachments.disks:
        if disk.spec.vdev == vdev:
            return disk
    raise Refused(f"{domain.record.spec.name} has no disk {vdev}", hint=f"veery block-list {domain.record.spec.name}")
