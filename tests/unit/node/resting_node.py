"""A node that orders domains over the shipped fakes: its lease stands, no move is under way, every disk is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.hypervisor.base import Driver
from veery.migrate.base import MoveContext
from veery.migrate.journal import Journal
from veery.migrate.phases import Hold
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.node import Node
from veery.model.volume import Attachments
from veery.node.domains import Domains


class PlainDevices:
    """A node without taps, which finds every disk."""

    async def fill(self, spec: DomainSpec) -> DomainSpec:
        return spec

    async def reach(self, disks: tuple[DiskSpec, ...]) -> None:
        """All are there."""

    async def attach(self, spec: DomainSpec) -> Attachments:
        return Attachments()

    async def detach(self, attachments: Attachments) -> None:
        """Nothing to take away."""

    def taken(self, attachments: Attachments) -> None:
        """Nothing to note."""


class Present:
    """A lease that stands."""

    async def require(self) -> None:
        """It does."""


def resting_domains(node: Node, store: MemoryStore, driver: Driver, devices: PlainDevices, folder: Path) -> Domains:
    """The orders of domains of `node`."""
    context = MoveContext(
        node=node.name,
        store=store,
        driver=driver,
        attacher=devices,
        journal=Journal(folder / "journal"),
        clock=RealClock(),
        hold=Hold(folder / "hold"),
        client_tls=None,
    )
    resting = SimpleNamespace(busy=lambda name, arriving=False: "", arriving=lambda name: None)
    return Domains(node, context, devices, Present(), moves=resting, receiver=resting, scout=None)
