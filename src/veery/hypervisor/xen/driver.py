"""The xen driver: domains under Xen, run by xl. They outlive veeryd and are found again by their UUIDs.

Not on Xen: post-copy, because xl has none; a move with local disks and a disk's switch to another LUN, because blkback
has no mirror; hvm domains, because their device model's state does not travel in veery's stream."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from veery.config.adjust import most_memory
from veery.config.settings import Xen
from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.base import ALONE, Report
from veery.hypervisor.qemu.console import QemuConsole
from veery.hypervisor.xen import adjusting, config, hotplug, machine, savefile, scripts
from veery.hypervisor.xen.disks import Initiator
from veery.hypervisor.xen.migration import MigrationStream
from veery.hypervisor.xen.parse import Info
from veery.hypervisor.xen.registry import Domain, Registry
from veery.hypervisor.xen.statedir import Build, Record, Stage
from veery.hypervisor.xen.xenstore import Xenstore
from veery.hypervisor.xen.xl import Xl
from veery.model import codec
from veery.model.domain import DomainEvent, DomainReading, DomainSpec, HostReading, VcpuReading
from veery.model.move import CopyOptions, CopyResult, MoveSettings, Tuning
from veery.model.plan import Abilities, Blocker, MemoryReading, Obstacle
from veery.model.units import MIB
from veery.model.volume import AttachedDisk, AttachedVif, Attachments

log = logging.getLogger(__name__)


class XenDriver:
    """The driver of Xen, as base.Driver says. `run` holds RUN/xen, which need not survive a boot of the machine."""

    name = "xen"
    holds = False  # xl decides when to switch over: a slowed copy would pause the domain for longer

    def __init__(self, run: Path, tls: Path | None, settings: Xen, initiator: Initiator, clock: Clock) -> None:
        """`tls` is the folder of the node's certificates (None: no move with TLS); `initiator` makes LUNs devices of
        this node."""
        self._xl, self._clock = Xl(settings.xl), clock
        self._registry = Registry(run, self._xl, Xenstore(settings.xenstore), initiator, clock)
        self._migrations = MigrationStream(self._registry, self._xl, tls, clock)
        self._missing: VeeryError | None = None
        self._able = Abilities(driver=self.name, version="", accelerator="xen", post_copy=machine.POST_COPY)

    # ---- this machine

    async def open(self) -> None:
        """See Driver.open. A Xen that is missing or too old is reported when a domain is to start. But where domains of
        veery may run, Xen must answer: if they counted as gone, they would be started elsewhere. Raises as Xl.info
        does."""
        try:
            info = await self._xl.info()
            machine.check(info)
        except VeeryError as error:
            if self._registry.remembers():
                raise
            self._missing = error
            log.error("xen driver: %s", error)
            return
        self._able = machine.abilities(info)
        self._registry.dmesg.note(f"Xen {info.version}")
        self._registry.scripts, self._registry.cpus = scripts.install(), info.cpus
        await self._registry.open()
        for domain in self._registry.domains():
            if domain.record.arrived:
                self._registry.task(adjusting.reapply(self._xl, domain), f"settings of {domain.record.spec.name}")

    async def close(self) -> None:
        """See Driver.close."""
        await self._registry.close()

    async def host(self) -> HostReading:
        """See Driver.host."""
        if self._missing is not None:
            return machine.reading(None, None)
        info, rows = await self._registry.info(), await self._registry.see()
        return machine.reading(info, next((row for row in rows if row.domid == 0), None))

    async def log(self) -> str:
        """See Driver.log. Returns the hypervisor's own log, then what the driver did."""
        return await self._xl.dmesg() + self._registry.dmesg.text()

    # ---- domains

    async def list(self) -> tuple[DomainReading, ...]:
        """See Driver.list."""
        if self._missing is None:
            await self._registry.see()
        return tuple(domain.reading() for domain in self._registry.domains())

    def unread(self) -> tuple[str, ...]:
        """See Driver.unread."""
        return self._registry.unread()

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """See Driver.spec. Interfaces are named as Xen names them."""
        record = self._registry.present(uuid).record
        return record.spec, record.attachments

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """See Driver.pack. The luggage is the Build."""
        record, info = self._registry.domain(uuid).record, await self._ready()
        plan = replace(record.build, xen=f"{info.major}.{info.minor}", dirty_log=info.logs_dirty_pv())
        return record.spec, msgspec.Raw(codec.encode(plan))

    async def take_domid(self) -> int:
        """See Driver.take_domid. Returns 0, because Xen itself numbers domains."""
        return 0

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """See Driver.start."""
        domain = await self._enter(spec, attachments)
        try:
            await self._xl.create(domain.home.config, paused=paused)
            return await self._up(domain, held=paused)
        except BaseException:
            await self._undo(domain)
            raise

    async def destroy(self, uuid: str) -> None:
        """See Driver.destroy. Reads Xen's own list until the domain is no longer on it."""
        await self._migrations.end(uuid)
        await self._registry.destroy(uuid)

    async def shutdown(self, uuid: str) -> None:
        """See Driver.shutdown. The guest's kernel reads the order from xenstore, control/shutdown."""
        await self._xl.shutdown(self._registry.domain(uuid).record.domid)

    async def reboot(self, uuid: str) -> None:
        """See Driver.reboot."""
        await self._xl.reboot(self._registry.domain(uuid).record.domid)

    async def pause(self, uuid: str) -> None:
        """See Driver.pause. Xen counts pauses, so a paused domain is not paused again."""
        domain = self._registry.free(uuid)
        await self._hold(domain, held=True)
        domain.update(held=True)

    async def unpause(self, uuid: str) -> None:
        """See Driver.unpause."""
        domain = self._registry.free(uuid)
        await self._hold(domain, held=False)
        domain.update(held=False)

    async def _hold(self, domain: Domain, *, held: bool) -> None:
        """Pause or unpause the domain. xl's exit status is unreliable here, so check Xen's list."""
        domid, uuid, name = domain.record.domid, domain.record.spec.uuid, domain.record.spec.name
        row = await self._registry.row(uuid)
        if row is not None and row.held is not held:
            await (self._xl.pause(domid) if held else self._xl.unpause(domid))
            row = await self._registry.row(uuid)
        if row is None or row.held is not held:
            raise Failed(f"{name} is {'still running' if held else 'still paused'}", hint="xl list; veery dmesg")

    async def rename(self, uuid: str, name: str) -> None:
        """See Driver.rename."""
        domain = self._registry.domain(uuid)
        rows = await self._registry.look()
        if any(row.name == name for row in rows if row.domid != domain.record.domid):
            raise Refused(f"{name} is the name of another domain here", hint="choose another; xl list shows the names")
        await self._xl.rename(domain.record.domid, name)
        domain.update(spec=replace(domain.record.spec, name=name))
        domain.hub.name = name

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """See Driver.set_memory."""
        domain = self._registry.domain(uuid)
        most = domain.record.build.memory
        if not 1 <= mebibytes <= most:
            name = domain.record.spec.name
            hint = f"veery mem-max {name} {mebibytes}"
            raise Refused(f"{mebibytes} MiB is out of range: {name} may have 1 to {most} MiB", hint=hint)
        await self._xl.set_memory(domain.record.domid, mebibytes)
        domain.update(spec=replace(domain.record.spec, memory=mebibytes, maxmem=most))

    async def adjust(self, uuid: str, spec: DomainSpec) -> None:
        """See Adjuster.adjust."""
        domain = self._registry.free(uuid)
        async with domain.lock:
            await adjusting.adjust(self._xl, domain, spec)
            domain.update(spec=spec, build=replace(domain.record.build, memory=most_memory(spec)))

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """See Driver.vcpus."""
        return await self._xl.vcpus(self._registry.domain(uuid).record.domid)

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """See Driver.save."""
        domain = self._registry.free(uuid)
        held = domain.record.held
        domain.update(stage=Stage.SAVING)
        try:
            await savefile.save(self._xl, domain.record.domid, path, offset)
            held = True
        finally:
            domain.update(stage=Stage.RUNNING, held=held)

    async def restore(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        path: Path,
        *,
        backlog: bytes = b"",
        offset: int = 0,
        paused: bool = False,
    ) -> DomainReading:
        """See Driver.restore."""
        plan = codec.decode(bytes(luggage), Build)
        if not path.is_file():
            raise Refused(f"{path}: no such file")
        domain = await self._enter(spec, attachments, plan=plan, backlog=backlog)
        try:
            await savefile.restore(self._xl, domain.home.config, path, offset, paused=paused)
            return await self._up(domain, held=paused)
        except BaseException:
            await self._undo(domain)
            raise

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """See Driver.attach_disk."""
        await hotplug.attach_disk(self._registry, self._registry.free(uuid), disk)

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """See Driver.detach_disk."""
        await hotplug.detach_disk(self._registry, self._registry.free(uuid), vdev)

    async def resize_disk(self, uuid: str, vdev: str, size: int) -> None:
        """See Driver.resize_disk."""
        await hotplug.resize_disk(self._registry, self._registry.domain(uuid), vdev)

    async def attach_vif(self, uuid: str, vif: AttachedVif) -> None:
        """See Driver.attach_vif."""
        await hotplug.attach_vif(self._registry, self._registry.free(uuid), vif)

    async def detach_vif(self, uuid: str, mac: str) -> None:
        """See Driver.detach_vif."""
        await hotplug.detach_vif(self._registry, self._registry.free(uuid), mac)

    async def console(self, uuid: str) -> QemuConsole:
        """See Driver.console."""
        return self._registry.present(uuid).hub.open()

    async def backlog(self, uuid: str) -> bytes:
        """See Driver.backlog."""
        hub = self._registry.present(uuid).hub
        hub.drain()
        return hub.backlog()

    async def events(self) -> AsyncIterator[DomainEvent]:
        """See Driver.events."""
        while True:
            yield await self._registry.events.get()

    # ---- before a move

    async def abilities(self) -> Abilities:
        """See Driver.abilities."""
        return self._able

    async def obstacles(self, spec: DomainSpec, luggage: msgspec.Raw) -> tuple[Blocker, ...]:
        """See Driver.obstacles."""
        if self._missing is not None:
            return (Blocker(kind=Obstacle.VERSION, reason=self._missing.message, hint=self._missing.hint),)
        return machine.obstacles(spec, codec.decode(bytes(luggage), Build), await self._xl.info())

    async def sample(self, uuid: str, *, quick: bool = False) -> MemoryReading:
        """See Driver.sample. Xen does not show a domain's pages: all of them count as used, none as written to."""
        row = await self._registry.row(uuid)
        size = (row.memory if row else self._registry.domain(uuid).record.build.memory) * MIB
        return MemoryReading(total=size, used=size)

    def give(
        self,
        features: frozenset[str],
        models: frozenset[str],
        *,
        phys_bits: int = 0,
        machines: Sequence[tuple[str, ...]] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """See Driver.give. Not on Xen, because xl cannot select the features of a PV domain: it gets those of its
        node."""
        return "host", ()

    # ---- moves

    async def send(
        self,
        uuid: str,
        stream: socket.socket,
        settings: MoveSettings,
        report: Report,
        *,
        peer: str,
        means: CopyOptions = ALONE,
    ) -> CopyResult:
        """See Driver.send."""
        return await self._migrations.send(uuid, stream, settings, report, peer=peer, means=means)

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """See Driver.tune."""
        await self._migrations.tune(uuid, tuning)

    async def resume(self, uuid: str) -> None:
        """See Driver.resume."""
        await self._migrations.resume(uuid)

    async def prepare(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        backlog: bytes,
        *,
        tls: bool,
        peer: str,
        post_copy: bool = False,
    ) -> DomainReading:
        """See Driver.prepare."""
        plan = codec.decode(bytes(luggage), Build)
        domain = await self._enter(spec, attachments, plan=plan, backlog=backlog, stage=Stage.INCOMING)
        try:
            devices = await self._registry.login(attachments)
            return await self._migrations.prepare(domain, devices, tls=tls, peer=peer)
        except BaseException:
            await self._undo(domain)
            raise

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """See Driver.receive."""
        await self._migrations.receive(uuid, stream)

    async def stands(self, uuid: str) -> bool:
        """See Driver.stands."""
        return await self._migrations.stands(uuid)

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """See Driver.finish."""
        await self._migrations.finish(uuid, paused=paused, started=started)

    # ---- inside

    async def _ready(self) -> Info:
        """Return the current Info of Xen. Raises Refused with the reason why it cannot be used."""
        if self._missing is not None:
            raise Refused(self._missing.message, hint=self._missing.hint)
        return await self._xl.info()

    async def _enter(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        *,
        plan: Build | None = None,
        backlog: bytes = b"",
        stage: Stage = Stage.STARTING,
    ) -> Domain:
        """Return a new domain that is about to start: checked, its disks logged in, its record written. Raises
        Refused."""
        info = await self._ready()
        config.check(spec)
        hotplug.check_local(spec, attachments)
        self._registry.refuse_taken(spec, await self._registry.look())
        machine.refuse_unfit(spec, info)
        plan = plan or machine.build(spec, info, self._clock.epoch())
        devices = await self._registry.login(attachments)
        try:
            self._registry.refuse_taken(spec, ())  # another may have started during the login
            record = Record(domid=0, spec=spec, attachments=attachments, build=plan, stage=stage)
            return self._registry.enter(record, backlog, devices)
        except BaseException:
            await self._registry.logout(attachments)
            raise

    async def _up(self, domain: Domain, *, held: bool) -> DomainReading:
        """Record the domid of a domain that Xen has made, and connect its console."""
        await self._registry.number(domain)
        await self._registry.listening(domain)
        domain.update(stage=Stage.RUNNING, held=held)
        self._registry.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) started")
        return domain.reading()

    async def _undo(self, domain: Domain) -> None:
        """Leave nothing of a domain that did not start."""
        domain.dying = True
        await tasks.to_the_end(self._end(domain))

    async def _end(self, domain: Domain) -> None:
        try:
            await self._registry.end(domain)
        except VeeryError as error:
            log.error("domain=%s started only half, and could not be ended: %s", domain.record.spec.name, error.message)
            return
        await self._registry.forget(domain)
