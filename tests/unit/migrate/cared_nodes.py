"""The two nodes of two_nodes.py, each with the services that answer orders and ends: Domains and Caretaker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from two_nodes import SPEC, BareAttacher, Pair, Side, two_nodes

from veery.cluster.trust import SeenFile, Trust
from veery.host.clock import Clock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.volume import Attachments
from veery.node.caretaker import Caretaker
from veery.node.domains import Domains


class NodeWithoutTaps:
    """What Domains asks of a node's attacher; it counts as the node's own does."""

    def __init__(self, bare: BareAttacher) -> None:
        self._bare = bare

    async def attach(self, spec: DomainSpec) -> Attachments:
        """As NodeAttacher."""
        return await self._bare.attach(spec)

    async def detach(self, attachments: Attachments) -> None:
        """As NodeAttacher."""
        await self._bare.detach(attachments)

    def taken(self, attachments: Attachments) -> None:
        """Nothing to note."""

    async def sweep(self) -> None:
        """Nothing to sweep."""

    async def fill(self, spec: DomainSpec) -> DomainSpec:
        """Nothing to fill in."""
        return spec

    async def reach(self, disks: Iterable[DiskSpec]) -> None:
        """Nothing to reach."""


class Beating:
    """A node whose lease stands."""

    async def require(self) -> None:
        """It does."""


@dataclass
class Cared:
    """Both nodes, and what takes orders on each; `trust` is that of `a`."""

    pair: Pair
    a: Domains
    b: Domains
    trust: Trust


def domains_of(side: Side) -> Domains:
    """What takes orders on one node."""
    return Domains(
        side.node,
        side.context,
        NodeWithoutTaps(side.attacher),
        Beating(),
        moves=side.moves,
        receiver=side.receiver,
        scout=None,
    )


async def trust_of(side: Side, folder: Path) -> Trust:
    """What one node remembers of the store, which fits what it sees there."""
    trust = Trust(side.node.name, SeenFile(folder / side.node.name / "store.json"), side.context.clock)
    await side.store.view(trust).look()
    return trust


@contextlib.asynccontextmanager
async def cared_nodes(
    folder: Path, certificates: Path, spec: DomainSpec = SPEC, *, make: Callable[[str, World, Clock], Any] = FakeDriver
) -> AsyncIterator[Cared]:
    """Both nodes up, the domain `spec` running on `a`; both caretakers run; `make` as two_nodes has it."""
    async with two_nodes(folder, certificates, spec, make=make) as pair, asyncio.TaskGroup() as tasks:
        trusts = [await trust_of(side, folder) for side in (pair.a, pair.b)]
        both = [domains_of(side) for side in (pair.a, pair.b)]
        running = [
            tasks.create_task(Caretaker(side.context, domains, trust).run())
            for side, domains, trust in zip((pair.a, pair.b), both, trusts, strict=True)
        ]
        try:
            yield Cared(pair, *both, trust=trusts[0])
        finally:
            for task in running:
                task.cancel()
