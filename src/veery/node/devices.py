"""Disks and interfaces that are attached and detached while a domain runs."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from random import Random

from veery.config import support
from veery.config.adjust import adjusted
from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.hypervisor.base import Adjuster, Driver, MediumChanger, Signaller, Trigger
from veery.model.cluster import DomainRecord
from veery.model.domain import Adjustment, DiskFormat, DiskSpec, DomainReading, DomainSpec, DomainState, VifSpec
from veery.model.volume import AttachedDisk, AttachedVif
from veery.network import mac
from veery.node import savefile
from veery.node.attachments import NodeAttacher
from veery.node.domains import Domains


class Devices:
    """The orders of users for the devices of the domains here."""

    def __init__(self, domains: Domains, driver: Driver, attacher: NodeAttacher) -> None:
        """The daemon owns all of these and shares them."""
        self._domains, self._driver, self._attacher = domains, driver, attacher
        self._random = Random(secrets.randbits(64))

    async def set_memory(self, ref: str, mebibytes: int) -> None:
        """Balloon the domain to `mebibytes`. Its record keeps the size."""
        async with self._domains.held(ref) as reading:
            await self._driver.set_memory(reading.uuid, mebibytes)
            await self._note(reading)

    async def adjust(self, ref: str, change: Adjustment) -> None:
        """Change the bounds and shares of a running domain. Its record keeps them, for moves and restarts."""
        async with self._domains.held(ref) as reading:
            before, _ = await self._driver.spec(reading.uuid)
            spec = adjusted(before, change)
            if not isinstance(self._driver, Adjuster):
                raise _unable(before, spec, self._driver.name)
            await self._driver.adjust(reading.uuid, spec)
            await self._note(reading)

    async def _note(self, reading: DomainReading) -> None:
        """Update the record to what the running domain has now. Raises Failed if that cannot be written."""
        try:
            await self._domains.ours(reading.name)
            await self._domains.remember(DomainRecord(spec=(await self._driver.spec(reading.uuid))[0]))
        except VeeryError as error:
            raise Failed(
                f"{reading.name} has the change, but it is not recorded for a restart: {error.message}",
                hint="when the store answers (veery node list), give the same command again",
            ) from error

    async def trigger(self, ref: str, what: str) -> None:
        """Give the guest an NMI, or press its power button."""
        if what not in set(Trigger):
            raise Refused(f"there is no trigger {what!r}", hint=f"one of {', '.join(Trigger)}")
        async with self._domains.held(ref) as reading:
            await self._signaller().trigger(reading.uuid, Trigger(what))

    async def sysrq(self, ref: str, letter: str) -> None:
        """Send a magic SysRq letter to the guest."""
        if len(letter) != 1 or not letter.isascii() or not letter.isalnum():
            raise Refused(f"{letter!r} is not a SysRq letter", hint="give one letter or digit")
        async with self._domains.held(ref) as reading:
            await self._signaller().sysrq(reading.uuid, letter)

    async def dump(self, ref: str, path: Path) -> None:
        """Write the domain's memory to a file of this node."""
        savefile.check_place(path)
        async with self._domains.held(ref) as reading:
            await self._signaller().dump_core(reading.uuid, path)

    def _signaller(self) -> Signaller:
        if not isinstance(self._driver, Signaller):
            raise Refused(f"the {self._driver.name} driver does not support this", hint="on a Xen node use xl itself")
        return self._driver

    async def disks(self, ref: str) -> tuple[AttachedDisk, ...]:
        """Return the domain's disks."""
        _, attachments = await self._driver.spec((await self._domains.find(ref)).uuid)
        return attachments.disks

    async def vifs(self, ref: str) -> tuple[AttachedVif, ...]:
        """Return the domain's interfaces."""
        _, attachments = await self._driver.spec((await self._domains.find(ref)).uuid)
        return attachments.vifs

    async def warnings(self, ref: str) -> tuple[str, ...]:
        """Return, in at most one line, which settings of the domain this node does not carry out."""
        spec, attachments = await self._driver.spec((await self._domains.find(ref)).uuid)
        found = support.left_out(spec, self._driver.name)
        found += tuple(
            f"vif {number} {why}"
            for number, vif in enumerate(attachments.vifs)
            if (why := self._attacher.unlimited(vif))
        )
        return self._line(found)

    def disk_warnings(self, disk: DiskSpec) -> tuple[str, ...]:
        """Return the same for a disk that is attached."""
        return self._line(support.left_out_of_disk(disk, self._driver.name))

    def vif_warnings(self, vif: AttachedVif, asked: VifSpec) -> tuple[str, ...]:
        """Return the same for an interface that was attached as `asked` says."""
        found = support.left_out_of_vif(asked, self._driver.name)
        return self._line((*found, why) if (why := self._attacher.unlimited(vif)) else found)

    def _line(self, found: tuple[str, ...]) -> tuple[str, ...]:
        return (support.sentence(found, self._driver.name),) if found else ()

    async def attach_disk(self, ref: str, disk: DiskSpec) -> None:
        """Hot-plug a disk."""
        async with self._domains.held(ref) as reading:
            await self._domains.ours(reading.name)
            spec, attachments = await self._driver.spec(reading.uuid)
            if any(each.spec.vdev == disk.vdev for each in attachments.disks):
                raise Refused(f"{reading.name} has a disk {disk.vdev}", hint="choose another name, for example xvdb")
            await self._attacher.reach([disk])
            larger = replace(spec, disks=(*spec.disks, disk))
            await self._domains.remember(DomainRecord(spec=larger))
            try:
                await self._domains.conflicts.disks(larger)
                # Resolve the disk again now that the record names it: a command that deletes or fills a volume marks
                # the volume first and then asks for its users.
                await self._driver.attach_disk(reading.uuid, await self._attacher.disk(disk))
            except BaseException:
                await self._domains.remember(DomainRecord(spec=spec))
                raise

    async def change_cd(self, ref: str, vdev: str, medium: DiskSpec | None) -> None:
        """Put `medium` into a CD-ROM drive, or empty it. The record remembers it."""
        if not isinstance(self._driver, MediumChanger):
            raise Refused(
                f"the {self._driver.name} driver cannot change CDs",
                hint="attach it as a disk: veery block-attach --help",
            )
        async with self._domains.held(ref) as reading:
            await self._domains.ours(reading.name)
            spec, _ = await self._driver.spec(reading.uuid)
            drive = next((disk for disk in spec.disks if disk.vdev == vdev and disk.cdrom), None)
            if drive is None:
                raise Refused(f"{reading.name} has no CD-ROM drive {vdev}", hint=f"veery block-list {reading.name}")
            empty = replace(drive, target="", volume="", format=DiskFormat.EMPTY)
            wanted = replace(medium, vdev=drive.vdev, cdrom=True, readwrite=False, removable=True) if medium else empty
            await self._attacher.reach([wanted])
            changed = replace(spec, disks=tuple(wanted if disk is drive else disk for disk in spec.disks))
            await self._domains.remember(DomainRecord(spec=changed))
            try:
                await self._domains.conflicts.disks(changed)
                await self._driver.change_medium(reading.uuid, await self._attacher.disk(wanted))
            finally:  # record what the drive holds now, also after a failure half way
                await self._domains.remember(DomainRecord(spec=(await self._driver.spec(reading.uuid))[0]))

    async def detach_disk(self, ref: str, vdev: str) -> None:
        """Hot-unplug a disk."""
        async with self._domains.held(ref) as reading:
            spec, _ = await self._driver.spec(reading.uuid)
            if not any(disk.vdev == vdev for disk in spec.disks):
                await self._domains.remember(DomainRecord(spec=spec))  # its guest may have released it too late
                raise NotFound(f"{reading.name} has no disk {vdev}", hint=f"veery block-list {reading.name}")
            await self._driver.detach_disk(reading.uuid, vdev)
            await self._domains.remember(DomainRecord(spec=(await self._driver.spec(reading.uuid))[0]))

    async def attach_vif(self, ref: str, vif: VifSpec) -> AttachedVif:
        """Hot-plug an interface. Return it as attached, with its MAC and tap."""
        async with self._domains.held(ref) as reading:
            await self._domains.ours(reading.name)
            spec, attachments = await self._driver.spec(reading.uuid)
            taken = await self._domains.conflicts.macs()
            if vif.mac and vif.mac.lower() in taken:
                raise Refused(f"MAC {vif.mac} is in use", hint="without mac= veery chooses one")
            named = replace(
                vif,
                mac=vif.mac.lower() or mac.generate(self._random, taken),
                bridge=vif.bridge or await self._attacher.default_bridge(),
            )
            devices = {each.device for each in attachments.vifs}
            number = next(n for n in range(len(devices) + 1) if f"vif{reading.domid}.{n}" not in devices)
            made = await self._attacher.vif(named, reading.domid, number)
            try:
                await self._driver.attach_vif(reading.uuid, made)
            except BaseException:
                await self._attacher.drop_vif(made)
                raise
            await self._domains.remember(DomainRecord(spec=replace(spec, vifs=(*spec.vifs, named))))
            return made

    async def detach_vif(self, ref: str, which: str) -> None:
        """Hot-unplug an interface, given by MAC or by its number."""
        async with self._domains.held(ref) as reading:
            _, attachments = await self._driver.spec(reading.uuid)
            for number, vif in enumerate(attachments.vifs):
                if which.lower() in (vif.spec.mac, str(number)):
                    await self._driver.detach_vif(reading.uuid, vif.spec.mac)
                    await self._attacher.drop_vif(vif)
                    await self._domains.remember(DomainRecord(spec=(await self._driver.spec(reading.uuid))[0]))
                    return
            raise NotFound(f"{reading.name} has no interface {which}", hint=f"veery network-list {reading.name}")

    async def resized(self, volume: str, size: int) -> int:
        """Tell the domains here that use a volume that it has grown. Return how many were told."""
        told = 0
        for reading in await self._driver.list():
            spec, _ = await self._driver.spec(reading.uuid)
            for disk in spec.disks:
                if disk.volume == volume and reading.state is not DomainState.INCOMING:
                    await self._driver.resize_disk(reading.uuid, disk.vdev, size)
                    told += 1
        return told


def _unable(before: DomainSpec, after: DomainSpec, driver: str) -> Refused:
    """Return why a driver without Adjuster cannot turn `before` into `after`, and the alternative."""
    name = before.name
    again = f"veery shutdown -w {name}, then veery create with that file"
    if before.maxmem != after.maxmem:
        return Refused(
            f"the {driver} driver cannot change how much memory {name} can have while it runs",
            hint=f"write maxmem = {after.maxmem} into its file; then {again}",
        )
    if before.vcpus != after.vcpus:
        return Refused(
            f"the {driver} driver cannot change how many processors {name} has while it runs",
            hint=f"write vcpus = {after.vcpus} into its file; then {again}",
        )
    return Refused(
        f"the {driver} driver does not pin processors or set weights; Xen does",
        hint="taskset(1) and systemd's CPUWeight= work on its process: veery list --json has the pid",
    )
