"""Checks what a domain that should start here would conflict with: a name, an identity, a volume or a file in use."""

from __future__ import annotations

import os
import secrets
import uuid as uuids
from dataclasses import replace
from random import Random

from veery.cluster.keys import DOMAINS, OWNERS
from veery.cluster.store import Store
from veery.errors import Refused
from veery.host.mounts import shared
from veery.hypervisor.base import Driver
from veery.migrate.receiver import Receiver
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec, VifSpec
from veery.network import mac


class Conflicts:
    """The conflict checks before a domain is started or changed on node `node`. Each check raises Refused and names the
    other party."""

    def __init__(self, node: str, store: Store, driver: Driver, receiver: Receiver) -> None:
        self._node, self._store, self._driver, self._receiver = node, store, driver, receiver
        self._random = Random(secrets.randbits(64))

    async def name(self, name: str) -> None:
        """Refuse a name that belongs to a domain here or to one that arrives here."""
        if self._receiver.arriving(name):
            raise Refused(f"{name} is on its way here", hint="veery list shows it when it has arrived")
        for reading in await self._driver.list():
            if reading.name == name:
                raise Refused(
                    f"{name} is already here (id {reading.domid}, {reading.state.value})",
                    hint=f"veery console {name}, or veery destroy {name}",
                )

    async def identity(self, spec: DomainSpec, record: DomainRecord | None) -> DomainSpec:
        """Return `spec` with UUID and MACs: those of the file, otherwise those of `record`, otherwise new ones. Refuse
        those of another domain."""
        before = record.spec if record else None
        taken = await self.macs(but=spec.name)
        await self._uuid(spec)
        vifs: list[VifSpec] = []
        for number, vif in enumerate(spec.vifs):
            old = before.vifs[number].mac if before and number < len(before.vifs) else ""
            chosen = vif.mac.lower() or (old if old not in taken else "") or mac.generate(self._random, taken)
            if chosen in taken:
                raise Refused(f"MAC {chosen} is in use", hint="without mac= veery chooses one")
            taken.add(chosen)
            vifs.append(replace(vif, mac=chosen))
        return replace(spec, uuid=spec.uuid or (before.uuid if before else "") or str(uuids.uuid4()), vifs=tuple(vifs))

    async def _uuid(self, spec: DomainSpec) -> None:
        for name, other in (await DOMAINS.readable(self._store)).items() if spec.uuid else ():
            if name != spec.name and other.spec.uuid == spec.uuid:
                raise Refused(f"UUID {spec.uuid} belongs to domain {name}", hint="without uuid= veery chooses one")

    async def macs(self, but: str = "") -> set[str]:
        """Return every MAC in the cluster's records, except those of domain `but`."""
        records = (await DOMAINS.readable(self._store)).values()
        return {vif.mac for record in records if record.spec.name != but for vif in record.spec.vifs}

    def home(self, spec: DomainSpec, record: DomainRecord | None) -> None:
        """Refuse to start from files that were left behind when the domain's local disks moved to another node."""
        if record is None or record.home in ("", self._node):
            return
        before = {disk.vdev: disk.target for disk in record.spec.disks}
        for disk in spec.disks:
            if disk.target and disk.readwrite and not disk.cdrom and not shared(disk.target):
                raise Refused(
                    f"{disk.vdev} of {spec.name} was moved to {record.home}: {disk.target} here is stale",
                    hint=f"veery --node {record.home} create (there it is {before.get(disk.vdev) or 'gone'}); "
                    f"to forget its disks there: veery delete {spec.name}",
                )

    async def disks(self, spec: DomainSpec) -> None:
        """Refuse a volume or a file that a running domain writes. The caller claims the domain first, so that of two
        starts at once at least one sees the other."""
        named = [disk.volume for disk in spec.disks if disk.volume]
        wanted = set(named)
        for volume in wanted:
            if named.count(volume) > 1 and _writes(spec, volume):
                raise Refused(
                    f"{spec.name} would have volume {volume} twice, and write to it",
                    hint="name it once, or read-only (r)",
                )
        await self._files(spec)
        owned, bad = await OWNERS.sifted(self._store) if wanted else ({}, {})
        for name in (*owned, *bad):
            record = await DOMAINS.get(self._store, name) if name != spec.name else None
            where = owned[name].node if name in owned else "some node"
            for disk in record.spec.disks if record else ():
                if disk.volume in wanted and (disk.readwrite or _writes(spec, disk.volume)):
                    raise Refused(
                        f"volume {disk.volume} is in use by {name} on {where}",
                        hint=f"destroy {name} first, or give {spec.name} a volume of its own",
                    )

    async def _files(self, spec: DomainSpec) -> None:
        """Refuse files and devices of this node that another domain uses, under any path."""
        wanted = {os.path.realpath(disk.target): disk for disk in spec.disks if disk.target}
        for reading in await self._driver.list():
            if reading.name == spec.name or not wanted:
                continue
            other, _ = await self._driver.spec(reading.uuid)
            for disk in other.disks:
                mine = wanted.get(os.path.realpath(disk.target)) if disk.target else None
                if mine is not None and (mine.readwrite or disk.readwrite):
                    raise Refused(
                        f"{mine.target} is in use by {reading.name}",
                        hint=f"destroy {reading.name} first, or give {spec.name} a disk of its own",
                    )


def _writes(spec: DomainSpec, volume: str) -> bool:
    return any(disk.volume == volume and disk.readwrite for disk in spec.disks)
