"""What a domain needs from outside its hypervisor, made ready on this node: disks found, taps made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from veery.config import support
from veery.config import vif as vif_config
from veery.errors import Refused, VeeryError
from veery.host import tasks
from veery.host.mounts import shared, takes_direct
from veery.hypervisor.base import DiskMover, Driver
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, VifSpec
from veery.model.flow import Flow
from veery.model.plan import Blocker, Obstacle
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, Initiator, IscsiLun, LocalDisk, Volume
from veery.network import announce, bridge, conntrack, limit, tap
from veery.network.filter import TapFilter, index_of
from veery.storage import login, portal

log = logging.getLogger(__name__)

FRESH = 10.0  # seconds in which a tap waits for its domain to show; it takes milliseconds


class NodeAttacher:
    """Disks and taps of this node."""

    def __init__(
        self,
        node: str,
        driver: Driver,
        volume: Callable[[str], Awaitable[Volume | None]],
        initiator: Callable[[], Awaitable[Initiator]],
        *,
        taps: bool = True,
        filter: TapFilter | None = None,
    ) -> None:
        """`volume` finds a volume's record, `initiator` this node's credentials at every target. Without `taps` the
        hypervisor makes its domains' interfaces itself, and names them. `filter` (None: no filters) holds each tap to
        its MAC and addresses."""
        self._node, self._driver, self._volume, self._initiator = node, driver, volume, initiator
        self._taps, self._filter = taps, filter or TapFilter(on=False)
        self._made: dict[str, float] = {}  # tap: when we made it
        self._unlimited: dict[str, str] = {}  # tap: why its rate= is not carried out

    async def blockers(self, spec: DomainSpec) -> tuple[Blocker, ...]:
        """Why this node cannot run a copy of `spec` that runs elsewhere now: every reason; changes nothing.

        Each volume's target is asked whether it lets this node in; disks and bridges are looked at all at once."""
        looks = [self._bridge_blockers(vif.bridge) for vif in spec.vifs]
        looks += [self._disk_blockers(spec, disk) for disk in spec.disks]
        return tuple(dict.fromkeys(blocker for each in await asyncio.gather(*looks) for blocker in each))

    async def _bridge_blockers(self, name: str) -> tuple[Blocker, ...]:
        try:
            await bridge.require(name)
        except VeeryError as error:
            return (Blocker(kind=Obstacle.NETWORK, reason=error.message, hint=error.hint),)
        return ()

    async def _disk_blockers(self, spec: DomainSpec, disk: DiskSpec) -> tuple[Blocker, ...]:
        kind = Obstacle.VOLUME if disk.volume else Obstacle.STORAGE
        try:
            source = (await self.disk(disk)).source
            if isinstance(source, IscsiLun):
                await login.check(source, deadline=portal.PORTAL_TIMEOUT_S)
        except VeeryError as error:
            hint = error.hint
            if disk.cdrom and not disk.volume:
                hint = f"take the CD out: veery cd-eject {spec.name} {disk.vdev}"
            return (Blocker(kind=kind, reason=error.message, hint=hint),)
        if isinstance(source, LocalDisk) and not shared(source.path):
            reason = f"{disk.target} is not on a filesystem that two nodes share"
            hint = f"veery volume import NAME {disk.target}, then volume=NAME in its file"
            if disk.cdrom:
                hint = f"take the CD out: veery cd-eject {spec.name} {disk.vdev}"
            elif isinstance(self._driver, DiskMover):
                hint = f"take it along: --with-disks; or: {hint}"
            return (Blocker(kind=kind, reason=reason, hint=hint),)
        return ()

    async def attach(self, spec: DomainSpec) -> Attachments:
        """Disks resolved, taps made. On failure nothing is left. Raises Refused for what is missing."""
        domid = await self._driver.take_domid()
        finding = asyncio.create_task(self._disks(spec), name=f"disks of {spec.name}")
        try:
            async with contextlib.AsyncExitStack() as undo:
                vifs: list[AttachedVif] = []
                for number, vif in enumerate(spec.vifs):
                    made = await self.vif(vif, domid, number)
                    undo.push_async_callback(self._delete, made.device)
                    vifs.append(made)
                disks = await finding
                undo.pop_all()
        finally:
            await tasks.stop(finding)
        return Attachments(disks=disks, vifs=tuple(vifs), domid=domid)

    async def detach(self, attachments: Attachments) -> None:
        """Take the taps away again. Idempotent."""
        for vif in attachments.vifs if self._taps else ():
            await self.drop_vif(vif)

    async def _delete(self, device: str) -> None:
        """Remove a tap, then its filter."""
        index = index_of(device)
        await tap.delete(device)
        await self._filter.release(index)

    async def announce(self, attachments: Attachments) -> None:
        """Tell this node's bridges, the switches and the neighbours that these addresses are here now: several
        rounds. Raises Failed where a tap or a bridge is gone."""
        voices = [
            announce.Voice(mac=vif.spec.mac, device=vif.device, bridge=vif.spec.bridge, ip=vif.spec.ip)
            for vif in attachments.vifs
        ]
        if voices:
            await announce.announce(voices)

    async def flows(self, spec: DomainSpec) -> tuple[Flow, ...]:
        """The domain's connections that this node tracks. Its addresses are those of the file's `ip=`, and those at
        which the bridges' neighbour tables have its MACs: a node sees the addresses only of whom it talked to itself.
        Raises Failed."""
        if not spec.vifs or not conntrack.tracked():
            return ()
        bridges = {vif.mac: vif.bridge for vif in spec.vifs}
        return await asyncio.to_thread(conntrack.entries, bridges, " ".join(vif.ip for vif in spec.vifs))

    async def admit(self, flows: Sequence[Flow]) -> int:
        """Have this node track `flows` too; how many it does. Raises Failed."""
        return await asyncio.to_thread(conntrack.insert, flows)

    async def _disks(self, spec: DomainSpec) -> tuple[AttachedDisk, ...]:
        """One question at a time to the store, over the connection that is open already."""
        return tuple([await self.disk(disk) for disk in spec.disks])

    def taken(self, attachments: Attachments) -> None:
        """A domain has them now: whatever of them is left when it is gone may be swept."""
        for vif in attachments.vifs:
            self._made.pop(vif.device, None)

    async def disk(self, spec: DiskSpec) -> AttachedDisk:
        """How this node reaches the bytes of a disk. Raises Refused where it cannot."""
        support.check_disk(spec, self._driver.name)
        if spec.volume:
            volume = await self._volume(spec.volume)
            if volume is None:
                raise Refused(f"there is no volume {spec.volume}", hint="veery volume list shows those there are")
            if not volume.ready:
                raise Refused(f"volume {spec.volume} is not ready", hint="is it being filled or deleted?")
            return AttachedDisk(spec=spec, source=await self.lun(volume))
        if not spec.target:
            return AttachedDisk(spec=spec, source=None)
        path = Path(spec.target)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise Refused(
                f"disk {spec.vdev}: {path}: {error.strerror}",
                hint=f"it is looked for on {self._node}; or write volume=NAME: veery volume list",
            ) from error
        block = stat.S_ISBLK(mode)
        if not block and not stat.S_ISREG(mode):
            raise Refused(f"disk {spec.vdev}: {path} is neither a file nor a block device", hint="name one of the two")
        kind = spec.format if spec.format is not DiskFormat.EMPTY else DiskFormat.RAW
        writes = spec.readwrite and not spec.cdrom
        direct = block or (writes and await asyncio.to_thread(takes_direct, str(path)))
        return AttachedDisk(spec=spec, source=LocalDisk(path=str(path), format=kind, block=block, direct=direct))

    async def lun(self, volume: Volume) -> IscsiLun:
        """How this node reaches a volume."""
        mine = await self._initiator()
        return IscsiLun(
            portal=volume.portal, iqn=volume.iqn, lun=1, initiator=mine.iqn, user=mine.user, password=mine.password
        )

    async def vif(self, spec: VifSpec, domid: int, number: int) -> AttachedVif:
        """Make the tap of one interface, and its filter. Raises Refused where its bridge is missing or down."""
        if not self._taps:
            await bridge.require(spec.bridge)
            return AttachedVif(spec=spec, device=spec.vifname)
        name = spec.vifname or tap.name_of(domid, number)
        self._made[name] = time.monotonic()
        made = await tap.create(name, spec.bridge, mtu=spec.mtu)
        try:
            if spec.filtered:
                await self._filter.hold(made.name, spec.mac, spec.ip)
            else:  # an unused tap that was taken over may have had one
                await self._filter.release(index_of(made.name))
            self._unlimited.pop(name, None)
            if spec.rate:
                await self._limit(made.name, spec.rate)
        except BaseException:
            await self._delete(made.name)
            raise
        return AttachedVif(spec=spec, device=made.name)

    async def _limit(self, device: str, rate: str) -> None:
        """Carry out `rate=`. An interface without its limit is better than none: `unlimited` tells why."""
        fields = vif_config.read([f"rate={rate}"]).fields
        asked = limit.limit_of(fields.per_interval, fields.interval)
        try:
            if asked is not None:
                await limit.apply(device, asked)
        except VeeryError as error:
            log.warning("tap=%s rate=%s: %s", device, rate, error.message)
            self._unlimited[device] = f"rate={rate}: {error.message}"

    def unlimited(self, vif: AttachedVif) -> str:
        """Why the rate of this interface is not carried out; "" where it is."""
        return self._unlimited.get(vif.device, "")

    async def reach(self, disks: Sequence[DiskSpec]) -> None:
        """Make sure that the disks are there and their targets answer. Raises Refused."""
        sources = [(await self.disk(disk)).source for disk in disks]
        for address, initiator in {(one.portal, one.initiator) for one in sources if isinstance(one, IscsiLun)}:
            await portal.require(address, initiator)

    async def drop_vif(self, vif: AttachedVif) -> None:
        """Remove the tap of one interface."""
        if self._taps:
            self._unlimited.pop(vif.device, None)
            await self._delete(vif.device)

    async def require_bridge(self, spec: VifSpec) -> None:
        """Raises Refused when the interface's bridge is missing or down."""
        await bridge.require(spec.bridge)

    async def default_bridge(self) -> str:
        """The bridge of an interface that names none: xenbr0, as xl's default, or the only one there is."""
        names = [each.name for each in await bridge.bridges()]
        return names[0] if len(names) == 1 and "xenbr0" not in names else "xenbr0"

    async def guest_bridges(self) -> frozenset[str]:
        """The bridges of the interfaces of this node's domains, and the one of an interface that names none."""
        found = {await self.default_bridge()}
        for reading in await self._driver.list():
            with contextlib.suppress(Refused):  # it ended while we looked
                found.update(vif.spec.bridge for vif in (await self._driver.spec(reading.uuid))[1].vifs)
        return frozenset(found)

    async def fill(self, spec: DomainSpec) -> DomainSpec:
        """`spec` with each interface's bridge named."""
        if all(vif.bridge for vif in spec.vifs):
            return spec
        default = await self.default_bridge()
        return replace(spec, vifs=tuple(vif if vif.bridge else replace(vif, bridge=default) for vif in spec.vifs))

    async def sweep(self) -> None:
        """Remove taps that no domain here uses: of a domain whose process died, of a start or a move that was cut
        short. One that we made a moment ago and no domain had yet is left alone: its domain is about to show.

        Filters that taps in use lack are made, those of taps that are gone are removed."""
        if not self._taps:
            return
        found = await tap.leftovers()
        used: dict[str, VifSpec] = {}
        for reading in await self._driver.list():
            with contextlib.suppress(Refused):  # it ended while we looked
                _, attachments = await self._driver.spec(reading.uuid)
                used.update((vif.device, vif.spec) for vif in attachments.vifs)
        now = time.monotonic()
        self._made = {name: made for name, made in self._made.items() if now - made < FRESH and name not in used}
        for name in found:
            if name not in used and name not in self._made:
                log.warning("tap=%s removed: no domain uses it", name)
                await self._delete(name)
        wanted = {name: (spec.mac, spec.ip) for name, spec in used.items() if spec.filtered}
        await self._filter.settle(wanted, [name for name, spec in used.items() if not spec.filtered])
