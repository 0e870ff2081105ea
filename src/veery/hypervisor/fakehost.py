"""The machine of a fake driver: its memory, its domains, and the actions of their guests or of failures."""

from __future__ import annotations

import asyncio
from pathlib import Path

from veery.errors import NotFound, Refused
from veery.host.clock import Clock
from veery.hypervisor.fakemishaps import Mishaps
from veery.hypervisor.fakeworld import FakeDomain, World, host_reading, reading_of
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, HostReading, OnEvent
from veery.model.volume import Attachments


class FakeHost(Mishaps):
    """The domains of node `node` in `world`, which has `memory` MiB."""

    def __init__(self, node: str, world: World, clock: Clock, *, memory: int = 65536, cpus: int = 8) -> None:
        """Join `world` at once."""
        super().__init__()
        self.node, self.world, self._clock, self._memory, self._cpus = node, world, clock, memory, cpus
        self._domains: dict[str, FakeDomain] = {}
        self._next = 1
        self._events: asyncio.Queue[DomainEvent] = asyncio.Queue()
        world.drivers[node] = self

    # ---- actions of a guest, or of a failure

    def end(self, uuid: str, end: DomainEnd, *, seen: bool = True) -> None:
        """Let the guest power off, reboot or crash by itself. Unless `seen`, the driver was not running at that
        time."""
        domain = self._domain(uuid)
        if end is DomainEnd.REBOOT and domain.spec.on_reboot in {OnEvent.RESTART, OnEvent.SOFT_RESET}:
            domain.started = self._clock.epoch()
            return
        self._stop(domain)
        domain.unseen = end
        if seen:
            self._see_end(domain)

    def _see_end(self, domain: FakeDomain) -> bool:
        """Return whether the guest has ended; report it once."""
        if domain.unseen is not None and domain.ended is None:
            domain.ended = domain.unseen
            self._events.put_nowait(DomainEvent(domain.spec.uuid, domain.ended))
        return domain.ended is not None

    def crash_process(self, uuid: str) -> None:
        """Remove the domain's process without an order."""
        domain = self._domain(uuid)
        self._drop(domain)
        self._events.put_nowait(DomainEvent(uuid, DomainEnd.DIED))

    def print(self, uuid: str, data: bytes) -> None:
        """Let the guest print `data`."""
        domain = self._domain(uuid)
        domain.console += data
        domain.printed.set()

    def runs(self, uuid: str) -> bool:
        """Return whether the processors of domain `uuid` run here."""
        domain = self._domains.get(uuid)
        return domain is not None and domain.running

    def writes(self, uuid: str, rate: float) -> None:
        """Let the guest write `rate` bytes of its memory a second, never the same ones twice in a pass."""
        self._domain(uuid).writes = rate

    def deafen(self, uuid: str, seconds: float) -> None:
        """Let the guest ignore its power button for `seconds`."""
        self._domain(uuid).deaf_until = self._clock.now() + seconds

    def disk_fails(self, uuid: str, reason: str, *, times: int = 1) -> None:
        """Stop the domain because of its disk, until it is resumed for the `times`th time."""
        domain = self._domain(uuid)
        self._stop(domain)
        domain.fault, domain.faults = reason, times

    # ---- methods of base.Driver

    async def host(self) -> HostReading:
        """See Driver.host."""
        used = sum(max(domain.memory, domain.most) for domain in self._domains.values())
        return host_reading(self.node, self._cpus, self._memory, self._memory - used)

    async def take_domid(self) -> int:
        """See Driver.take_domid."""
        self._next += 1
        return self._next - 1

    # ---- inside

    def _domain(self, uuid: str) -> FakeDomain:
        if uuid not in self._domains:
            raise NotFound(f"no domain {uuid} here")
        return self._domains[uuid]

    def _free(self, uuid: str) -> FakeDomain:
        if (domain := self._domain(uuid)).stage != "running":
            raise Refused(f"{domain.spec.name} is {domain.stage}: a move holds it")
        return domain

    async def _check(self, spec: DomainSpec) -> None:
        if spec.uuid in self._domains:
            raise Refused(f"{spec.name} is here already")
        if any(other.spec.name == spec.name for other in self._domains.values()):
            raise Refused(f"{spec.name} is the name of another domain here")
        if spec.kernel and not Path(spec.kernel).is_file():
            raise Refused(f"{spec.name}: kernel {spec.kernel} does not exist")
        if max(spec.memory, spec.maxmem) > (free := (await self.host()).memory_free):
            raise Refused(f"{spec.name}: not enough memory: {free} MiB are free")

    async def _make(self, spec: DomainSpec, attachments: Attachments, started: float) -> FakeDomain:
        made = FakeDomain(
            spec=spec,
            attachments=attachments,
            domid=attachments.domid or await self.take_domid(),
            started=started,
            memory=spec.memory,
            most=max(spec.memory, spec.maxmem),
        )
        return self._domains.setdefault(spec.uuid, made)

    def _drop(self, domain: FakeDomain) -> None:
        self._stop(domain)
        domain.gone.set()
        domain.printed.set()
        domain.end_disks()
        domain.end_rest()
        del self._domains[domain.spec.uuid]

    def _go(self, domain: FakeDomain) -> None:
        if not domain.running:
            domain.faults -= 1
            if domain.faults > 0:
                return
            domain.running, domain.since, domain.fault = True, self._clock.now(), ""
            self.world.look(domain.spec.uuid, self._clock.now())

    def _stop(self, domain: FakeDomain) -> None:
        domain.ran, domain.running = domain.seconds(self._clock.now()), False

    def _reading(self, domain: FakeDomain) -> DomainReading:
        return reading_of(domain, domain.seconds(self._clock.now()))
