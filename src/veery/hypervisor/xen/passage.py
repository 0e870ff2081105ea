"""Placeholder for one commit: the move's own module comes from elsewhere."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from veery.errors import Refused
from veery.host.clock import Clock
from veery.hypervisor.base import Report
from veery.hypervisor.xen.roster import Roster
from veery.hypervisor.xen.xl import Xl
from veery.model.domain import DomainReading, DomainSpec
from veery.model.move import CopyResult, Means, MoveSettings, Tuning
from veery.model.volume import Attachments


class Passage:
    """A domain's way from one node to another."""

    def __init__(self, roster: Roster, xl: Xl, run: Path, clock: Clock) -> None:
        """Nothing is done before it is asked for."""
        self._roster = roster

    def _none(self, uuid: str) -> Refused:
        self._roster.domain(uuid)
        return Refused("domains of this driver do not move yet")

    async def send(
        self, uuid: str, stream: socket.socket, settings: MoveSettings, report: Report, *, peer: str, means: Means
    ) -> CopyResult:
        """As Driver.send."""
        raise self._none(uuid)

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """As Driver.tune."""
        raise self._none(uuid)

    async def resume(self, uuid: str) -> None:
        """As Driver.resume."""
        raise self._none(uuid)

    async def prepare(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        backlog: bytes,
        *,
        tls: bool,
        peer: str,
        post_copy: bool,
    ) -> DomainReading:
        """As Driver.prepare."""
        raise Refused("domains of this driver do not move yet")

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """As Driver.receive."""
        raise self._none(uuid)

    async def finish(self, uuid: str, *, paused: bool) -> None:
        """As Driver.finish."""
        raise self._none(uuid)
