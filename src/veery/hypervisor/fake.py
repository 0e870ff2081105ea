"""A hypervisor that exists only in memory: for tests, simulations and trying things out.

It keeps every promise of base.Driver. Its user can do what a guest or a failure would do: `end`, `crash_process`,
`print`, `fail`, `hang`. Moves go over real sockets. A `World` (fakeworld.py) watches the drivers that share it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.hypervisor import fakecopy, fakedisks, fakepostcopy
from veery.hypervisor.base import ALONE, Report, Rest
from veery.hypervisor.fakehost import FakeHost
from veery.hypervisor.fakeworld import (
    END,
    KEEP,
    Behind,
    FakeConsole,
    FakeCopy,
    Header,
    Saved,
    World,
    fit_devices,
    read,
    started_of,
    unless,
    write,
)
from veery.model import codec
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, VcpuReading
from veery.model.move import CopyOptions, CopyResult, MoveProgress, MoveSettings, Phase, Tuning
from veery.model.plan import Abilities, Blocker, MemoryReading, Obstacle, no_room
from veery.model.units import MIB
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, CarriedDisk


class FakeDriver(FakeHost):
    """The fake driver of node `node` in `world`, with `memory` MiB, as base.Driver says."""

    name = "fake"
    holds = True

    def __init__(self, node: str, world: World, clock: Clock, *, memory: int = 65536, cpus: int = 8) -> None:
        """Join `world` at once."""
        super().__init__(node, world, clock, memory=memory, cpus=cpus)
        self._lines: list[str] = []
        self._copies: dict[str, FakeCopy] = {}
        self.able = Abilities(driver=self.name, version="1", accelerator="none", features=("fpu",))
        self.given: tuple[str, ...] = ()
        self.models: tuple[str, ...] = ()
        self.phys_bits = 0
        self.machines: tuple[tuple[str, ...], ...] = ()
        self.unread_records: tuple[str, ...] = ()

    # ---- this machine

    async def open(self) -> None:
        """See Driver.open: the domains are where they were."""
        await self._step("open")

    async def close(self) -> None:
        """See Driver.close."""

    async def log(self) -> str:
        """See Driver.log."""
        return "".join(f"{line}\n" for line in self._lines)

    # ---- domains

    async def list(self) -> tuple[DomainReading, ...]:
        """See Driver.list."""
        return tuple(self._reading(domain) for domain in sorted(self._domains.values(), key=lambda one: one.domid))

    def unread(self) -> tuple[str, ...]:
        """See Driver.unread."""
        return self.unread_records

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """See Driver.spec."""
        domain = self._domain(uuid)
        return domain.spec, domain.attachments

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """See Driver.pack; the luggage is when it was started."""
        domain = self._domain(uuid)
        return domain.spec, msgspec.Raw(codec.encode({"started": domain.started}))

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """See Driver.start."""
        await self._check(spec)
        await self._step("start")
        domain = await self._make(spec, attachments, self._clock.epoch())
        domain.held = paused
        if not paused:
            self._go(domain)
        self._lines.append(f"{spec.name} started")
        return self._reading(domain)

    async def destroy(self, uuid: str) -> None:
        """See Driver.destroy."""
        await self._step("destroy")
        domain = self._domains.get(uuid)
        if domain is not None:
            self._drop(domain)

    async def shutdown(self, uuid: str) -> None:
        """See Driver.shutdown; this guest obeys, unless it is deaf still."""
        domain = self._domain(uuid)
        await self._step("shutdown")
        if self._clock.now() >= domain.deaf_until:
            self.end(uuid, DomainEnd.POWEROFF)

    async def reboot(self, uuid: str) -> None:
        """See Driver.reboot; this guest obeys."""
        self._domain(uuid)
        await self._step("reboot")
        self.end(uuid, DomainEnd.REBOOT)

    async def pause(self, uuid: str) -> None:
        """See Driver.pause."""
        domain = self._free(uuid)
        await self._step("pause")
        self._stop(domain)
        domain.held = True

    async def unpause(self, uuid: str) -> None:
        """See Driver.unpause."""
        domain = self._free(uuid)
        await self._step("unpause")
        domain.held = False
        self._go(domain)

    async def rename(self, uuid: str, name: str) -> None:
        """See Driver.rename."""
        domain = self._domain(uuid)
        if any(other.spec.name == name for other in self._domains.values() if other is not domain):
            raise Refused(f"{name} is the name of another domain here")
        domain.spec = replace(domain.spec, name=name)

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """See Driver.set_memory; this guest obeys."""
        domain = self._domain(uuid)
        if not 1 <= mebibytes <= domain.most:
            raise Refused(f"{mebibytes} MiB is out of range: {domain.spec.name} may have 1 to {domain.most} MiB")
        domain.memory = mebibytes
        domain.spec = replace(domain.spec, memory=mebibytes, maxmem=domain.most)

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """See Driver.vcpus."""
        domain = self._domain(uuid)
        return tuple(
            VcpuReading(number=number, cpu=-1, seconds=domain.seconds(self._clock.now()))
            for number in range(domain.spec.vcpus)
        )

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """See Driver.save."""
        domain = self._free(uuid)
        self._stop(domain)
        try:
            await self._step("save")
            data = codec.encode(Saved(domain.spec))
            with path.open("r+b" if path.exists() else "wb") as file:
                file.seek(offset)
                file.write(data)
        except (VeeryError, OSError) as error:
            path.unlink(missing_ok=True)
            if not domain.held:
                self._go(domain)
            raise error if isinstance(error, VeeryError) else Failed(f"{path}: {error.strerror}") from error
        domain.held = True

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
        await self._check(spec)
        await self._step("restore")
        try:
            codec.decode(path.read_bytes()[offset:], Saved)
        except FileNotFoundError as error:
            raise Refused(f"{path}: no such file") from error
        domain = await self._make(spec, attachments, started_of(luggage))
        domain.console[:] = backlog
        domain.held = paused
        if not paused:
            self._go(domain)
        return self._reading(domain)

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """See Driver.attach_disk."""
        domain = self._free(uuid)
        if any(each.vdev == disk.spec.vdev for each in domain.spec.disks):
            raise Refused(f"{domain.spec.name} has {disk.spec.vdev} already")
        await self._step("attach_disk")
        fit_devices(domain, (*domain.attachments.disks, disk), domain.attachments.vifs)

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """See Driver.detach_disk; this guest lets go."""
        domain = self._free(uuid)
        kept = tuple(each for each in domain.attachments.disks if each.spec.vdev != vdev)
        if len(kept) == len(domain.attachments.disks):
            raise Refused(f"{domain.spec.name} has no disk {vdev}")
        await self._step("detach_disk")
        fit_devices(domain, kept, domain.attachments.vifs)

    async def resize_disk(self, uuid: str, vdev: str, size: int) -> None:
        """See Driver.resize_disk."""
        domain = self._domain(uuid)
        if not any(each.vdev == vdev for each in domain.spec.disks):
            raise Refused(f"{domain.spec.name} has no disk {vdev}")
        await self._step("resize_disk")

    async def attach_vif(self, uuid: str, vif: AttachedVif) -> None:
        """See Driver.attach_vif."""
        domain = self._free(uuid)
        if any(each.mac == vif.spec.mac for each in domain.spec.vifs):
            raise Refused(f"{domain.spec.name} has {vif.spec.mac} already")
        await self._step("attach_vif")
        fit_devices(domain, domain.attachments.disks, (*domain.attachments.vifs, vif))

    async def detach_vif(self, uuid: str, mac: str) -> None:
        """See Driver.detach_vif; this guest lets go."""
        domain = self._free(uuid)
        kept = tuple(each for each in domain.attachments.vifs if each.spec.mac != mac)
        if len(kept) == len(domain.attachments.vifs):
            raise Refused(f"{domain.spec.name} has no interface {mac}")
        await self._step("detach_vif")
        fit_devices(domain, domain.attachments.disks, kept)

    async def console(self, uuid: str) -> FakeConsole:
        """See Driver.console."""
        return FakeConsole(self._domain(uuid))

    async def backlog(self, uuid: str) -> bytes:
        """See Driver.backlog."""
        return bytes(self._domain(uuid).console[-KEEP:])

    async def events(self) -> AsyncIterator[DomainEvent]:
        """See Driver.events."""
        while True:
            yield await self._events.get()

    # ---- before a move

    async def abilities(self) -> Abilities:
        """See Driver.abilities."""
        return self.able

    async def obstacles(self, spec: DomainSpec, luggage: msgspec.Raw) -> tuple[Blocker, ...]:
        """See Driver.obstacles."""
        started_of(luggage)
        await self._step("obstacles")
        found = no_room(max(spec.memory, spec.maxmem), (await self.host()).memory_free)
        if spec.kernel and not Path(spec.kernel).is_file():
            found += (Blocker(kind=Obstacle.KERNEL, reason=f"it has no kernel {spec.kernel}"),)
        return found

    async def sample(self, uuid: str, *, quick: bool = False) -> MemoryReading:
        """See Driver.sample: all its memory is in use, and none of it changes."""
        domain = self._domain(uuid)
        if domain.stage in {"incoming", "arriving"}:
            raise Refused(f"{domain.spec.name} is still arriving")
        size = domain.memory * MIB
        await self._step("sample")
        return MemoryReading(total=size, used=size, dirtied=((0.05, 0.0),))

    def give(
        self,
        features: frozenset[str],
        models: frozenset[str],
        *,
        phys_bits: int = 0,
        machines: Sequence[tuple[str, ...]] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """See Driver.give."""
        self.given, self.models = tuple(sorted(features)), tuple(sorted(models))
        self.phys_bits, self.machines = phys_bits, tuple(machines)
        return f"fake,{','.join(self.given)}", self.given

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
        """See Driver.send. A pass takes as long as its bytes need at the bandwidth. The bytes that `writes` dirties in
        it are the next pass. Once these fit the downtime, or the domain was stopped, that pass is the last."""
        domain = self._domain(uuid)
        if not domain.mirrors:
            self._free(uuid)
        domain.stage = "sending"
        copy = self._copies[uuid] = FakeCopy(settings.bandwidth, settings.downtime, means)
        try:
            await self._step("send")
            if not settings.live:
                self._stop(domain)
            total = domain.memory * MIB
            await write(stream, codec.encode(Header(uuid, total)) + b"\n", settings.stall)
            last = await fakecopy.passes(
                domain, copy, stream, settings.stall, report, clock=self._clock, step=lambda: self._step("copy")
            )
            await fakecopy.send_end(domain, stream, settings.stall)
            if copy.leaving:
                domain.behind = Behind(stream.dup(), total, last, copy.rate)
                return CopyResult(downtime_ms=0.0, bytes=copy.sent, rounds=copy.rounds, poised=True)
            self._stop(domain)
            for mirror in domain.mirrors:
                await mirror.push()
            await self._clock.sleep(last / copy.rate)
            await write(stream, END, settings.stall)
            await read(stream, settings.stall)
            domain.end_disks()
        except BaseException as error:
            domain.end_disks()
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            domain.stage = "running"
            if not domain.gone.is_set() and not self._see_end(domain) and not domain.held:
                self._go(domain)
            if isinstance(error, OSError):
                raise Failed(f"{domain.spec.name}: {error or 'no byte moved'}") from error
            raise
        finally:
            del self._copies[uuid]
        return CopyResult(downtime_ms=last / copy.rate * 1000, bytes=copy.sent + last, rounds=copy.rounds)

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """See Driver.tune."""
        domain = self._domain(uuid)
        copy = self._copies.get(uuid)
        if copy is None:
            raise Refused(f"{domain.spec.name} is not being copied")
        await self._step("tune")
        fakecopy.tune(domain, copy, tuning)
        if tuning.stop or tuning.post_copy:
            self._stop(domain)

    async def resume(self, uuid: str) -> None:
        """See Driver.resume."""
        domain = self._domain(uuid)
        await self._step("resume")
        domain.end_disks()
        domain.end_rest()
        if domain.stage == "sending":
            domain.stage = "running"
            if not self._see_end(domain) and not domain.held:
                self._go(domain)

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
        await self._check(spec)
        await self._step("prepare")
        domain = await self._make(spec, attachments, started_of(luggage))
        domain.stage = "incoming"
        domain.console[:] = backlog
        return self._reading(domain)

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """See Driver.receive."""
        domain = self._domain(uuid)
        try:
            await self._step("receive")
            await unless(domain.gone, fakecopy.load(domain, stream))
            domain.end_disks()
        except BaseException as error:
            domain.broken = True
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            if isinstance(error, OSError):
                raise Failed(f"{domain.spec.name}: the stream broke: {error}") from error
            raise

    async def stands(self, uuid: str) -> bool:
        """See Driver.stands."""
        return uuid in self._domains

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """See Driver.finish."""
        domain = self._domain(uuid)
        await self._step("finish")
        if domain.stage != "incoming":
            return
        if not domain.loaded:
            raise Failed(f"{domain.spec.name} is not loaded yet")
        domain.stage, domain.held = "running" if domain.whole else "arriving", paused
        domain.started = max(domain.started, started)
        if not self._see_end(domain) and not paused:
            self._go(domain)

    # ---- post-copy

    async def release(self, uuid: str) -> None:
        """See PostCopier.release."""
        domain = self._domain(uuid)
        await self._step("release")
        await fakepostcopy.release(domain)

    async def drain(self, uuid: str, report: Report, *, stall: float) -> Rest:
        """See PostCopier.drain."""

        async def step() -> None:
            await self._step("drain")

        return await fakepostcopy.drain(self._domain(uuid), report, stall, self._clock, step)

    async def reconnect(self, uuid: str, stream: socket.socket) -> None:
        """See PostCopier.reconnect."""
        await self._step("reconnect")
        fakepostcopy.reconnect(self._domain(uuid), stream)

    async def rejoin(self, uuid: str) -> socket.socket:
        """See PostCopier.rejoin."""
        await self._step("rejoin")
        return await fakepostcopy.rejoin(self._domain(uuid))

    async def whole(self, uuid: str) -> bool:
        """See PostCopier.whole."""
        domain = self._domain(uuid)
        if domain.stage == "arriving" and domain.whole:
            domain.stage = "running"
        return domain.stage not in {"incoming", "arriving"}

    async def lose(self, uuid: str) -> None:
        """See PostCopier.lose."""
        domain = self._domain(uuid)
        domain.stage = "running"
        self.crash_process(uuid)

    # ---- disks that go along

    async def local_disks(self, uuid: str) -> tuple[CarriedDisk, ...]:
        """See DiskMover.local_disks."""
        return fakedisks.look(self._domain(uuid).attachments)

    async def export_disks(self, uuid: str, vdevs: Sequence[str], *, tls: bool, peer: str) -> Path:
        """See DiskMover.export_disks."""
        domain = self._domain(uuid)
        await self._step("export_disks")
        paths = fakedisks.paths_of(domain.attachments)
        domain.export = fakedisks.Export({vdev: paths[vdev] for vdev in vdevs})
        await domain.export.open()
        return domain.export.path

    async def mirror_disks(
        self, uuid: str, vdevs: Sequence[str], through: str, settings: MoveSettings, report: Report, *, peer: str
    ) -> None:
        """See DiskMover.mirror_disks."""
        domain = self._free(uuid)
        paths = fakedisks.paths_of(domain.attachments)
        total = left = sum(paths[vdev].stat().st_size for vdev in vdevs)
        domain.stage, domain.disk_rate = "sending", settings.bandwidth
        try:
            for vdev in vdevs:
                mirror = await fakedisks.Mirror.open(vdev, paths[vdev], through)
                domain.mirrors.append(mirror)
                left -= await mirror.push()
                report(MoveProgress(phase=Phase.COPY, step="disks", disk_total=total, disk_remaining=left))
            await self._step("mirror_disks")
        except BaseException:
            domain.end_disks()
            domain.stage = "running"
            raise
        finally:
            domain.disk_rate = None

    async def tune_disks(self, uuid: str, bandwidth: int) -> None:
        """See DiskMover.tune_disks; it keeps the figure only."""
        domain = self._domain(uuid)
        if domain.disk_rate is None:
            raise Refused(f"no disk of {domain.spec.name} is being copied")
        await self._step("tune_disks")
        domain.disk_rate = bandwidth
