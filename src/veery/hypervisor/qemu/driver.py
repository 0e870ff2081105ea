"""The qemu driver: each domain is a QEMU process of its own, which outlives veeryd and is found again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from veery.config.settings import Qemu
from veery.errors import Refused
from veery.host.clock import Clock
from veery.host.owner import owners
from veery.hypervisor.base import ALONE, Report, Rest, Trigger
from veery.hypervisor.qemu import argv, build, hotplug, machine, media, migration, mirror, postcopy, signals, switch
from veery.hypervisor.qemu.abilities import ask, obstacles, processor
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.cgroup import Groups
from veery.hypervisor.qemu.choice import choose
from veery.hypervisor.qemu.console import QemuConsole
from veery.hypervisor.qemu.process import Stage
from veery.hypervisor.qemu.registry import Registry
from veery.hypervisor.qemu.sample import WINDOWS, sample
from veery.model import codec
from veery.model.domain import DomainEvent, DomainReading, DomainSpec, HostReading, VcpuReading
from veery.model.move import CopyOptions, CopyResult, MoveSettings, Tuning
from veery.model.plan import Abilities, Blocker, MemoryReading, Obstacle, no_room
from veery.model.units import MIB
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, CarriedDisk, IscsiLun

log = logging.getLogger(__name__)


class QemuDriver:
    """The driver of QEMU, as base.Driver says. `run` holds RUN/domains, which need not survive a boot of the
    machine."""

    name = "qemu"
    holds = True

    def __init__(self, run: Path, tls: Path | None, settings: Qemu, clock: Clock) -> None:
        """`tls` is the folder of the node's certificates (None: no move with TLS)."""
        self._run, self._tls, self._settings, self._clock = run, tls, settings, clock
        self._registry = Registry(run, clock, Groups(Path(settings.cgroup)) if settings.cgroup else None)
        self._qemu: machine.Hypervisor | None = None
        self._missing: Refused | None = None
        self._finding = asyncio.Lock()
        self._able = Abilities(driver=self.name, version="", accelerator="")
        self._cpu, self._phys_bits, self._machine = build.CPU, 0, ""

    # ---- this machine

    async def open(self) -> None:
        """See Driver.open. A QEMU that is missing or too old is reported when a domain is to start."""
        await self._find_qemu()
        await self._registry.open()

    async def _find_qemu(self) -> None:
        """Find QEMU and its accelerator, unless found before: what was missing may be installed by now."""
        async with self._finding:
            if self._qemu is not None and self._missing is None:
                return
            try:
                qemu = await machine.find(self._settings, self._run / "accel.json")
                qemu.check()
                self._registry.owners = owners(self._settings.user)
                self._registry.choice = choose(self._settings, qemu.accel, apart=self._registry.owners is not None)
                self._able = await ask(qemu, self._registry.owners.choose(0, ()) if self._registry.owners else None)
                if self._registry.choice.huge:
                    self._able = replace(
                        self._able, post_copy="its domains use huge pages, which post-copy cannot fill"
                    )
                self._qemu, self._missing = qemu, None
                self._registry.dmesg.note(f"QEMU {qemu.version}, accelerator {qemu.accel} ({qemu.reason})")
            except Refused as error:
                if self._missing is None or self._missing.message != error.message:
                    log.error("qemu driver: %s", error)
                self._missing = error

    async def close(self) -> None:
        """See Driver.close."""
        await self._registry.close()

    async def host(self) -> HostReading:
        """See Driver.host."""
        host = await machine.reading(self._qemu)
        if self._missing is not None:  # without QEMU no domain can start, so no memory is free
            return replace(host, accelerator="", memory_free=0, facts={"accelerator_reason": self._missing.message})
        return replace(host, memory_free=self._registry.left(host.memory_total, host.memory_free))

    async def log(self) -> str:
        """See Driver.log. Returns what the driver did, and the errors and warnings of each QEMU."""
        return self._registry.dmesg.text()

    # ---- domains

    async def list(self) -> tuple[DomainReading, ...]:
        """See Driver.list. Asks no QEMU."""
        return tuple(domain.reading() for domain in self._registry.domains())

    def unread(self) -> tuple[str, ...]:
        """See Driver.unread."""
        return self._registry.unread()

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """See Driver.spec."""
        record = self._registry.present(uuid).record
        return record.spec, record.attachments

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """See Driver.pack. The luggage is the Build."""
        record = self._registry.domain(uuid).record
        return record.spec, msgspec.Raw(codec.encode(record.build.seen_on(self._able.vendor)))

    async def take_domid(self) -> int:
        """See Driver.take_domid."""
        return self._registry.take_domid()

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """See Driver.start."""
        await self._find_qemu()
        qemu = self._ready()
        plan = build.lay_out(
            spec,
            machine=machine.pinned(self._settings) or self._machine or build.machine_type([self._able.machines]),
            accel=qemu.accel,
            started=self._clock.epoch(),
            cpu=self._cpu,
            vendor=self._able.vendor,
            phys_bits=self._phys_bits or self._able.phys_bits,
        )
        self._check_memory(spec, plan)
        command = self._command(spec, attachments, plan, incoming=False)
        async with self._registry.launching(spec, attachments, plan, Stage.STARTING, command=command) as domain:
            if plan.memory > spec.memory:
                await domain.monitor.execute("balloon", {"value": spec.memory * MIB})
            if not paused:
                await domain.cont()
            domain.update(stage=Stage.RUNNING, held=paused)
        return domain.reading()

    async def destroy(self, uuid: str) -> None:
        """See Driver.destroy. Sends SIGKILL and awaits the end of the process on its pidfd."""
        await self._registry.destroy(uuid)

    async def shutdown(self, uuid: str) -> None:
        """See Driver.shutdown. Presses the power button (ACPI)."""
        await self._registry.domain(uuid).monitor.execute("system_powerdown")

    async def reboot(self, uuid: str) -> None:
        """See Driver.reboot. Presses Ctrl-Alt-Del.

        A Xen guest's own kernel does the same when xl asks it to reboot (Linux, drivers/xen/manage.c, do_reboot): init
        restarts the machine in order, and without an init the kernel does."""
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self._registry.domain(uuid).monitor.execute("send-key", {"keys": keys})

    async def pause(self, uuid: str) -> None:
        """See Driver.pause."""
        domain = self._registry.free(uuid)
        await domain.stop()
        domain.update(held=True)

    async def unpause(self, uuid: str) -> None:
        """See Driver.unpause."""
        domain = self._registry.free(uuid)
        await domain.cont()
        domain.update(held=False)

    async def rename(self, uuid: str, name: str) -> None:
        """See Driver.rename. QEMU itself keeps the old name."""
        domain = self._registry.domain(uuid)
        self._registry.refuse_taken(uuid, name)
        domain.update(spec=replace(domain.record.spec, name=name))
        domain.renamed(name)

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """See Driver.set_memory."""
        domain = self._registry.domain(uuid)
        most = domain.record.build.memory
        if not 1 <= mebibytes <= most:
            name = domain.record.spec.name
            hint = f"write maxmem = {mebibytes} into its file; then veery shutdown -w {name}, and create it again"
            raise Refused(f"{mebibytes} MiB is out of range: {name} may have 1 to {most} MiB", hint=hint)
        await domain.monitor.execute("balloon", {"value": mebibytes * MIB})
        domain.update(spec=replace(domain.record.spec, memory=mebibytes, maxmem=most))

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """See Driver.vcpus."""
        return await self._registry.domain(uuid).vcpus()

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """See Driver.save."""
        await migration.save(self._registry.free(uuid), path, offset, self._clock)

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
        await self._find_qemu()
        plan = self._unpack(spec, luggage)
        if not path.is_file():
            raise Refused(f"{path}: no such file")
        command = self._command(spec, attachments, plan, incoming=True)
        async with self._registry.launching(
            spec, attachments, plan, Stage.STARTING, command=command, backlog=backlog
        ) as domain:
            await migration.load(domain, path, offset, self._clock)
            if not paused:
                await domain.cont()
            domain.update(stage=Stage.RUNNING, held=paused)
            await domain.announce()
        return domain.reading()

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """See Driver.attach_disk."""
        await hotplug.attach_disk(self._registry.free(uuid), disk, self._registry.choice)

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """See Driver.detach_disk."""
        await hotplug.detach_disk(self._registry.free(uuid), vdev)

    async def trigger(self, uuid: str, what: Trigger) -> None:
        """See Signaller.trigger."""
        await signals.trigger(self._registry.domain(uuid), what)

    async def sysrq(self, uuid: str, letter: str) -> None:
        """See Signaller.sysrq."""
        console = await self.console(uuid)
        try:
            await signals.break_console(self._registry.domain(uuid))
            await console.write(letter.encode())
        finally:
            await console.close()

    async def dump_core(self, uuid: str, path: Path) -> None:
        """See Signaller.dump_core."""
        await signals.dump_core(self._registry.free(uuid), path)

    async def change_medium(self, uuid: str, disk: AttachedDisk) -> None:
        """See MediumChanger.change_medium."""
        await media.change_medium(self._registry.free(uuid), disk)

    async def resize_disk(self, uuid: str, vdev: str, size: int) -> None:
        """See Driver.resize_disk."""
        await hotplug.resize_disk(self._registry.domain(uuid), vdev, size)

    async def attach_vif(self, uuid: str, vif: AttachedVif) -> None:
        """See Driver.attach_vif."""
        await hotplug.attach_vif(self._registry.free(uuid), vif, self._registry.choice)

    async def detach_vif(self, uuid: str, mac: str) -> None:
        """See Driver.detach_vif."""
        await hotplug.detach_vif(self._registry.free(uuid), mac)

    async def console(self, uuid: str) -> QemuConsole:
        """See Driver.console."""
        return self._registry.present(uuid).console.open()

    async def backlog(self, uuid: str) -> bytes:
        """See Driver.backlog."""
        return self._registry.domain(uuid).console.backlog()

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
        plan = codec.decode(bytes(luggage), Build)
        reason, hint = self._registry.choice.obstacle(plan.memory, plan.layout)
        kind = (Blocker(kind=Obstacle.MEMORY, reason=reason, hint=hint),) if reason else ()
        room = no_room(plan.memory + machine.overhead(plan.memory), (await self.host()).memory_free)
        return obstacles(self._able, spec, plan) + kind + room

    async def sample(self, uuid: str, *, quick: bool = False) -> MemoryReading:
        """See Driver.sample. Reading a page that has not arrived yet would block in the kernel until it comes."""
        domain = self._registry.domain(uuid)
        if domain.record.stage in {Stage.INCOMING, Stage.ARRIVING}:
            raise Refused(f"{domain.record.spec.name} is still arriving", hint="veery moves shows its move")
        size, windows = domain.record.build.memory * MIB, () if quick else WINDOWS
        return await asyncio.to_thread(sample, domain.process.pid, size, windows=windows)

    def give(
        self,
        features: frozenset[str],
        models: frozenset[str],
        *,
        phys_bits: int = 0,
        machines: Sequence[tuple[str, ...]] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """See Driver.give."""
        self._phys_bits = phys_bits
        self._machine = build.machine_type(machines)
        self._cpu, given = processor(features, self._able.accelerator, models, self._able.vendor)
        return self._cpu, given

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
        mirrors = self._registry.domain(uuid).mirrors
        domain = mirrors.domain if mirrors else self._registry.free(uuid)
        tls = self._certificates() if settings.tls else None
        sending = migration.send(domain, stream, settings, report, tls=tls, peer=peer, means=means, clock=self._clock)
        return await (mirror.send(mirrors, sending) if mirrors else sending)

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """See Driver.tune."""
        await migration.tune(self._registry.domain(uuid), tuning)

    async def resume(self, uuid: str) -> None:
        """See Driver.resume."""
        domain = self._registry.domain(uuid)
        await mirror.end(domain, self._clock)
        await migration.resume(domain, self._clock)
        await mirror.forget_pause(domain)

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
        await self._find_qemu()
        plan = self._unpack(spec, luggage)
        certificates = self._certificates() if tls else None
        command = self._command(spec, attachments, plan, incoming=True)
        async with self._registry.launching(
            spec, attachments, plan, Stage.INCOMING, command=command, backlog=backlog
        ) as domain:
            await migration.await_stream(domain, tls=certificates, peer=peer, post_copy=post_copy)
        return domain.reading()

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """See Driver.receive."""
        domain = self._registry.domain(uuid)
        await migration.receive(domain, stream, self._clock)
        await mirror.unexport(domain)

    async def stands(self, uuid: str) -> bool:
        """See Driver.stands."""
        return any(domain.record.spec.uuid == uuid for domain in self._registry.domains())

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """See Driver.finish."""
        domain = self._registry.domain(uuid)
        await mirror.unexport(domain)
        await migration.finish(domain, paused=paused, started=started)
        self._registry.note_warnings(domain)

    # ---- post-copy

    async def release(self, uuid: str) -> None:
        """See PostCopier.release."""
        await postcopy.release(self._registry.domain(uuid))

    async def drain(self, uuid: str, report: Report, *, stall: float) -> Rest:
        """See PostCopier.drain."""
        return await postcopy.drain(self._registry.domain(uuid), report, stall=stall, clock=self._clock)

    async def reconnect(self, uuid: str, stream: socket.socket) -> None:
        """See PostCopier.reconnect."""
        await postcopy.reconnect(self._registry.domain(uuid), stream, self._clock)

    async def rejoin(self, uuid: str) -> socket.socket:
        """See PostCopier.rejoin."""
        return await postcopy.rejoin(self._registry.domain(uuid), self._clock)

    async def whole(self, uuid: str) -> bool:
        """See PostCopier.whole."""
        return await postcopy.whole(self._registry.domain(uuid), self._clock)

    async def lose(self, uuid: str) -> None:
        """See PostCopier.lose."""
        await postcopy.lose(self._registry.domain(uuid))

    # ---- disks that go along

    async def local_disks(self, uuid: str) -> tuple[CarriedDisk, ...]:
        """See DiskMover.local_disks."""
        return await mirror.local_disks(self._registry.domain(uuid))

    async def export_disks(self, uuid: str, vdevs: Sequence[str], *, tls: bool, peer: str) -> Path:
        """See DiskMover.export_disks."""
        certificates = self._certificates() if tls else None
        return await mirror.export(self._registry.domain(uuid), vdevs, tls=certificates, peer=peer)

    async def mirror_disks(
        self, uuid: str, vdevs: Sequence[str], through: str, settings: MoveSettings, report: Report, *, peer: str
    ) -> None:
        """See DiskMover.mirror_disks."""
        mirrors = mirror.Mirrors(self._registry.free(uuid), vdevs, self._clock)
        tls = self._certificates() if settings.tls else None
        await mirrors.copy(through, settings, report, tls=tls, peer=peer)

    async def tune_disks(self, uuid: str, bandwidth: int) -> None:
        """See DiskMover.tune_disks."""
        domain = self._registry.domain(uuid)
        if domain.mirroring is None:
            raise Refused(f"no disk of {domain.record.spec.name} is being copied")
        await domain.mirroring.tune(bandwidth)

    # ---- disks that switch to another LUN

    async def copy_disk(
        self, uuid: str, vdev: str, lun: IscsiLun, rate: int, report: Callable[[int, int], None]
    ) -> None:
        """See DiskSwitcher.copy_disk."""
        await switch.copy(self._registry.free(uuid), vdev, lun, rate, report)

    async def switch_disk(self, uuid: str, vdev: str, lun: IscsiLun, commit: Callable[[], Awaitable[None]]) -> float:
        """See DiskSwitcher.switch_disk."""
        return await switch.over(self._registry.domain(uuid), vdev, lun, commit, self._clock)

    async def settle_disk(self, uuid: str, vdev: str, lun: IscsiLun | None) -> None:
        """See DiskSwitcher.settle_disk."""
        await switch.settle(self._registry.domain(uuid), vdev, lun)

    # ---- checks

    def _ready(self) -> machine.Hypervisor:
        if self._missing is not None or self._qemu is None:
            raise self._missing or Refused("the qemu driver is not open")
        return self._qemu

    def _certificates(self) -> Path:
        if self._tls is None:
            raise Refused(
                "this node has no certificates for a move with TLS", hint="veery join --help shows how to get them"
            )
        return self._tls

    def _unpack(self, spec: DomainSpec, luggage: msgspec.Raw) -> Build:
        """Return the build that came with a domain. Raises Refused where this node cannot build it."""
        self._ready()
        plan = codec.decode(bytes(luggage), Build)
        for blocker in obstacles(self._able, spec, plan):
            raise Refused(f"{spec.name} cannot be built here: {blocker.reason}", hint=blocker.hint)
        self._check_memory(spec, plan)
        return plan

    def _check_memory(self, spec: DomainSpec, plan: Build) -> None:
        reason, hint = self._registry.choice.obstacle(plan.memory, plan.layout)
        if reason:
            raise Refused(f"{spec.name} cannot be built here: {reason}", hint=hint)

    def _command(self, spec: DomainSpec, attachments: Attachments, plan: Build, *, incoming: bool) -> argv.Command:
        binary = self._ready().binary
        return lambda wiring: argv.build_argv(binary, spec, attachments, plan, wiring, incoming=incoming)
