"""The two sides of a move, as base.Driver defines them, on the domains of this node. relay.py says which process stops
when.

xl has few settings for a move: it always copies live, decides itself when to switch over, and reports neither rounds
nor the time for which the domain was paused. So a limit on the downtime, a throttle and a held switch-over have no
effect here; the bandwidth has."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from veery.errors import Refused
from veery.host.clock import Clock
from veery.hypervisor.base import Report
from veery.hypervisor.xen import adjusting
from veery.hypervisor.xen.incoming import Incoming
from veery.hypervisor.xen.outgoing import Outgoing
from veery.hypervisor.xen.registry import Domain, Registry
from veery.hypervisor.xen.statedir import Stage
from veery.hypervisor.xen.xl import Xl
from veery.model.domain import DomainReading
from veery.model.move import CopyOptions, CopyResult, MoveSettings, Tuning
from veery.model.volume import LocalDisk

log = logging.getLogger(__name__)


class MigrationStream:
    """The moves of this node's domains, out and in."""

    def __init__(self, registry: Registry, xl: Xl, tls: Path | None, clock: Clock) -> None:
        """`tls` is the folder of the node's certificates, None: no move with TLS."""
        self._registry, self._xl, self._tls, self._clock = registry, xl, tls, clock
        self._out: dict[str, Outgoing] = {}
        self._in: dict[str, Incoming] = {}
        self._expected: dict[str, tuple[dict[str, str], Path | None, str]] = {}

    # ---- the source

    async def send(
        self, uuid: str, stream: socket.socket, settings: MoveSettings, report: Report, *, peer: str, means: CopyOptions
    ) -> CopyResult:
        """See Driver.send."""
        domain = self._registry.free(uuid)
        tls = self._certificates() if settings.tls else None
        row = await self._registry.row(uuid)
        domain = self._registry.free(uuid)  # that look may have found that the guest restarts
        name = domain.record.spec.name
        if row is None:
            raise Refused(f"no domain {name} here", hint="veery list shows the domains here")
        if "p" in row.letters:
            raise Refused(
                f"{name} is paused: under Xen a domain takes part in its own move", hint=f"veery unpause {name}"
            )
        domain.update(stage=Stage.SENDING)
        outgoing = self._out[uuid] = self._outgoing(domain)
        try:
            return await outgoing.send(row, stream, settings, report, peer=peer, tls=tls)
        except BaseException:
            if not outgoing.begun:  # otherwise it could not be resumed, and `resume` must try again
                self._out.pop(uuid, None)
                domain.leave(Stage.SENDING)
            raise
        finally:
            self._registry.changed()  # the domain is suspended, or runs on

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """See Driver.tune."""
        outgoing = self._out.get(uuid)
        if outgoing is None:
            raise Refused(f"no copy of {self._registry.domain(uuid).record.spec.name} is under way")
        await outgoing.tune(tuning)

    async def resume(self, uuid: str) -> None:
        """See Driver.resume."""
        domain = self._registry.domain(uuid)
        if domain.record.stage is not Stage.SENDING:
            return
        await (self._out.get(uuid) or self._outgoing(domain)).resume()
        self._registry.changed()
        self._out.pop(uuid, None)
        domain.leave(Stage.SENDING)

    # ---- the target

    async def prepare(self, domain: Domain, devices: Mapping[str, Path], *, tls: bool, peer: str) -> DomainReading:
        """See Driver.prepare, for a domain whose record is INCOMING; `devices` are its LUNs here by virtual device.
        When this fails, the caller removes the record."""
        record = domain.record
        paths = {
            disk.spec.vdev: disk.source.path for disk in record.attachments.disks if isinstance(disk.source, LocalDisk)
        }
        paths |= {vdev: str(path) for vdev, path in devices.items()}
        uuid = record.spec.uuid
        self._expected[uuid] = (paths, self._certificates() if tls else None, peer)
        incoming = self._in[uuid] = self._incoming(domain)
        try:
            await incoming.prepare()
        except BaseException:
            self._drop(uuid)
            raise
        return domain.reading()

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """See Driver.receive."""
        domain, incoming = self._registry.domain(uuid), self._in.get(uuid)
        if incoming is None or uuid not in self._expected:
            raise Refused(f"{domain.record.spec.name} is not arriving here")
        paths, tls, peer = self._expected.pop(uuid)
        await incoming.receive(stream, disks=paths, scripts=self._registry.scripts, peer=peer, tls=tls)

    async def stands(self, uuid: str) -> bool:
        """See Driver.stands."""
        incoming = self._in.get(uuid)
        return incoming is not None and await incoming.stands()

    async def finish(self, uuid: str, *, paused: bool, started: float) -> None:
        """See Driver.finish."""
        domain = self._registry.domain(uuid)
        if domain.record.stage is not Stage.INCOMING:
            return
        row = await (self._in.get(uuid) or self._incoming(domain)).finish(paused=paused)
        self._drop(uuid)
        await self._registry.number(domain, row)
        build = replace(domain.record.build, started=max(domain.record.build.started, started))
        arrived = adjusting.lasting(domain.record.spec)
        domain.update(stage=Stage.RUNNING, held=paused, arrived=arrived, build=build)
        if domain.record.arrived:
            self._registry.task(adjusting.reapply(self._xl, domain), f"settings of {domain.record.spec.name}")
        self._registry.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) has moved here")
        self._registry.task(self._registry.listening(domain), f"console of {domain.record.spec.name}")

    # ---- both

    async def end(self, uuid: str) -> None:
        """End every xl that a move has at work on the domain, which is about to be destroyed. Raises Failed."""
        try:
            domain = self._registry.present(uuid)
        except Refused:
            return
        await (self._out.get(uuid) or self._outgoing(domain)).end()
        self._out.pop(uuid, None)
        await (self._in.get(uuid) or self._incoming(domain)).end()
        self._drop(uuid)

    def _drop(self, uuid: str) -> None:
        self._in.pop(uuid, None)
        self._expected.pop(uuid, None)

    def _outgoing(self, domain: Domain) -> Outgoing:
        return Outgoing(domain.home.path / "out", domain.record.spec.uuid, self._xl, self._clock)

    def _incoming(self, domain: Domain) -> Incoming:
        spec = domain.record.spec
        return Incoming(domain.home.path / "in", spec.uuid, spec.name, self._xl)

    def _certificates(self) -> Path:
        if self._tls is None:
            raise Refused("this node has no certificates", hint="veery init or veery join; or move with --no-tls")
        return self._tls
