"""The parts of a node that a move needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from veery.cluster.store import Store
from veery.host.clock import Clock
from veery.host.contexts import Source
from veery.hypervisor.base import Driver
from veery.migrate.journal import Journal
from veery.migrate.phases import Hold
from veery.model.domain import DomainSpec
from veery.model.flow import Flow
from veery.model.plan import Blocker
from veery.model.volume import Attachments


class Attacher(Protocol):
    """Prepares on this node what a domain needs from outside its hypervisor."""

    async def blockers(self, spec: DomainSpec) -> tuple[Blocker, ...]:
        """Return every reason why this node cannot run `spec`; changes nothing."""
        ...

    async def attach(self, spec: DomainSpec) -> Attachments:
        """Resolve the disks and make the taps. On failure nothing is left."""
        ...

    async def detach(self, attachments: Attachments) -> None:
        """Remove what `attach` made. Idempotent."""
        ...

    async def announce(self, attachments: Attachments) -> None:
        """Tell this node's bridges, the switches and the neighbours that the domain's addresses are here: several
        rounds, in about a second. Raises Failed where a tap or a bridge is gone."""
        ...

    async def flows(self, spec: DomainSpec) -> tuple[Flow, ...]:
        """Return the domain's connections as this node's firewall knows them, within a second. Returns nothing, at
        once, where the firewall tracks no connections. Raises Failed."""
        ...

    async def admit(self, flows: Sequence[Flow]) -> int:
        """Add `flows` to this node's firewall, within a second; return how many of them it knows now. Raises Failed."""
        ...


@dataclass(frozen=True, slots=True)
class MoveContext:
    """The parts of this node that moves use, built once by the daemon. `disk_folder` is for the files of disks that
    move in with their domain ("": the path that they had)."""

    node: str
    store: Store
    driver: Driver
    attacher: Attacher
    journal: Journal
    clock: Clock
    hold: Hold
    client_tls: Source
    disk_folder: str = ""
