"""The qemu driver: domains as QEMU processes of their own, which outlive us and are found again."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec

from veery.config.settings import Qemu
from veery.errors import Refused
from veery.host.clock import Clock
from veery.hypervisor.base import Report
from veery.hypervisor.qemu import argv, build, hotplug, machine, migration
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.console import QemuConsole
from veery.hypervisor.qemu.process import Stage
from veery.hypervisor.qemu.roster import Roster
from veery.model import codec
from veery.model.domain import DomainEvent, DomainReading, DomainSpec, HostReading, VcpuReading
from veery.model.move import CopyResult, MoveSettings
from veery.model.units import MIB
from veery.model.volume import AttachedDisk, AttachedVif, Attachments

log = logging.getLogger(__name__)


class QemuDriver:
    """As base.Driver. `run` holds RUN/domains; it must not survive a boot of the machine, or need not."""

    name = "qemu"

    def __init__(self, run: Path, tls: Path | None, settings: Qemu, clock: Clock) -> None:
        """`tls` is the folder of the node's certificates (None: no move with TLS)."""
        self._run, self._tls, self._settings, self._clock = run, tls, settings, clock
        self._roster = Roster(run, clock)
        self._qemu: machine.Hypervisor | None = None
        self._missing: Refused | None = None

    # ---- this machine

    async def open(self) -> None:
        """As Driver.open. A QEMU that is missing or too old is told of when a domain is to start."""
        try:
            self._qemu = await machine.find(self._settings, self._run / "accel.json")
            self._qemu.check()
            self._roster.note(f"QEMU {self._qemu.version}, accelerator {self._qemu.accel} ({self._qemu.reason})")
        except Refused as error:
            self._missing = error
            log.error("qemu driver: %s", error)
        await self._roster.open()

    async def close(self) -> None:
        """As Driver.close."""
        await self._roster.close()

    async def host(self) -> HostReading:
        """As Driver.host."""
        return await machine.reading(self._qemu)

    async def log(self) -> str:
        """As Driver.log: what the driver did, and what each QEMU complained of."""
        return self._roster.text()

    # ---- domains

    async def list(self) -> tuple[DomainReading, ...]:
        """As Driver.list. Asks no QEMU."""
        return tuple(domain.reading() for domain in self._roster.domains())

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """As Driver.spec."""
        record = self._roster.domain(uuid).record
        return record.spec, record.attachments

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """As Driver.pack; the luggage is the Build."""
        record = self._roster.domain(uuid).record
        return record.spec, msgspec.Raw(codec.encode(record.build))

    async def take_domid(self) -> int:
        """As Driver.take_domid."""
        return self._roster.take_domid()

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """As Driver.start."""
        qemu = self._ready()
        plan = build.lay_out(
            spec, machine=self._settings.machine or build.MACHINE, accel=qemu.accel, started=self._clock.epoch()
        )
        command = self._command(spec, attachments, plan, incoming=False)
        async with self._roster.launching(spec, attachments, plan, Stage.STARTING, command=command) as domain:
            if plan.memory > spec.memory:
                await domain.monitor.execute("balloon", {"value": spec.memory * MIB})
            if not paused:
                await domain.cont()
            domain.update(stage=Stage.RUNNING, held=paused)
        return domain.reading()

    async def destroy(self, uuid: str) -> None:
        """As Driver.destroy. SIGKILL, and the process seen off by its pidfd."""
        await self._roster.destroy(uuid)

    async def shutdown(self, uuid: str) -> None:
        """As Driver.shutdown: the power button (ACPI)."""
        await self._roster.domain(uuid).monitor.execute("system_powerdown")

    async def reboot(self, uuid: str) -> None:
        """As Driver.reboot: Ctrl-Alt-Del.

        It is what a Xen guest's own kernel does when xl asks it to reboot (Linux, drivers/xen/manage.c, do_reboot):
        init restarts the machine in order, and where there is no init the kernel does."""
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self._roster.domain(uuid).monitor.execute("send-key", {"keys": keys})

    async def pause(self, uuid: str) -> None:
        """As Driver.pause."""
        domain = self._roster.free(uuid)
        await domain.stop()
        domain.update(held=True)

    async def unpause(self, uuid: str) -> None:
        """As Driver.unpause."""
        domain = self._roster.free(uuid)
        await domain.cont()
        domain.update(held=False)

    async def rename(self, uuid: str, name: str) -> None:
        """As Driver.rename. QEMU itself goes on under the old one."""
        domain = self._roster.domain(uuid)
        self._roster.refuse_taken(uuid, name)
        domain.update(spec=replace(domain.record.spec, name=name))
        domain.renamed(name)

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """As Driver.set_memory."""
        domain = self._roster.domain(uuid)
        most = domain.record.build.memory
        if not 1 <= mebibytes <= most:
            raise Refused(f"{mebibytes} MiB: {domain.record.spec.name} may have 1 to {most} MiB", hint="see maxmem=")
        await domain.monitor.execute("balloon", {"value": mebibytes * MIB})
        domain.update(spec=replace(domain.record.spec, memory=mebibytes, maxmem=most))

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """As Driver.vcpus."""
        return await self._roster.domain(uuid).vcpus()

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """As Driver.save."""
        await migration.save(self._roster.free(uuid), path, offset, self._clock)

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
        """As Driver.restore."""
        plan = self._unpack(spec, luggage)
        if not path.is_file():
            raise Refused(f"{path}: no such file")
        command = self._command(spec, attachments, plan, incoming=True)
        async with self._roster.launching(
            spec, attachments, plan, Stage.STARTING, command=command, backlog=backlog
        ) as domain:
            await migration.load(domain, path, offset, self._clock)
            if not paused:
                await domain.cont()
            domain.update(stage=Stage.RUNNING, held=paused)
            await domain.announce()
        return domain.reading()

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """As Driver.attach_disk."""
        await hotplug.attach_disk(self._roster.free(uuid), disk)

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """As Driver.detach_disk."""
        await hotplug.detach_disk(self._roster.free(uuid), vdev)

    async def resize_disk(self, uuid: str, vdev: str, size: int) -> None:
        """As Driver.resize_disk."""
        await hotplug.resize_disk(self._roster.domain(uuid), vdev, size)

    async def attach_vif(self, uuid: str, vif: AttachedVif) -> None:
        """As Driver.attach_vif."""
        await hotplug.attach_vif(self._roster.free(uuid), vif)

    async def detach_vif(self, uuid: str, mac: str) -> None:
        """As Driver.detach_vif."""
        await hotplug.detach_vif(self._roster.free(uuid), mac)

    async def console(self, uuid: str) -> QemuConsole:
        """As Driver.console."""
        return self._roster.domain(uuid).console.open()

    async def backlog(self, uuid: str) -> bytes:
        """As Driver.backlog."""
        return self._roster.domain(uuid).console.backlog()

    async def events(self) -> AsyncIterator[DomainEvent]:
        """As Driver.events."""
        while True:
            yield await self._roster.events.get()

    # ---- moves

    async def send(
        self, uuid: str, stream: socket.socket, settings: MoveSettings, report: Report, *, peer: str
    ) -> CopyResult:
        """As Driver.send."""
        domain = self._roster.free(uuid)
        tls = self._certificates() if settings.tls else None
        return await migration.send(domain, stream, settings, report, tls=tls, peer=peer, clock=self._clock)

    async def resume(self, uuid: str) -> None:
        """As Driver.resume."""
        await migration.resume(self._roster.domain(uuid), self._clock)

    async def prepare(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        backlog: bytes,
        *,
        tls: bool,
        peer: str,
    ) -> DomainReading:
        """As Driver.prepare."""
        plan = self._unpack(spec, luggage)
        certificates = self._certificates() if tls else None
        command = self._command(spec, attachments, plan, incoming=True)
        async with self._roster.launching(
            spec, attachments, plan, Stage.INCOMING, command=command, backlog=backlog
        ) as domain:
            await migration.await_stream(domain, tls=certificates, peer=peer)
        return domain.reading()

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """As Driver.receive."""
        await migration.receive(self._roster.domain(uuid), stream, self._clock)

    async def finish(self, uuid: str, *, paused: bool = False) -> None:
        """As Driver.finish."""
        await migration.finish(self._roster.domain(uuid), paused=paused)

    # ---- checks

    def _ready(self) -> machine.Hypervisor:
        if self._missing is not None or self._qemu is None:
            raise self._missing or Refused("the qemu driver is not open")
        return self._qemu

    def _certificates(self) -> Path:
        if self._tls is None:
            raise Refused("this node has no certificates for a move with TLS", hint="veery join makes them")
        return self._tls

    def _unpack(self, spec: DomainSpec, luggage: msgspec.Raw) -> Build:
        """The build that came with a domain. Raises Refused where this node cannot build it."""
        qemu, plan = self._ready(), codec.decode(bytes(luggage), Build)
        if plan.accel != qemu.accel:
            raise Refused(f"{spec.name} runs under {plan.accel}, this node has {qemu.accel}")
        if plan.layout != build.LAYOUT:
            raise Refused(f"{spec.name} is built by layout {plan.layout}, this node knows {build.LAYOUT}")
        return plan

    def _command(self, spec: DomainSpec, attachments: Attachments, plan: Build, *, incoming: bool) -> argv.Command:
        binary = self._ready().binary
        return lambda wiring: argv.build_argv(binary, spec, attachments, plan, wiring, incoming=incoming)
