"""Remembers the other nodes for when the store does not answer: a node that has lost the cluster still has to ask
them."""

from __future__ import annotations

import logging
from pathlib import Path

from veery.cluster.keys import NODES
from veery.cluster.store import Store
from veery.errors import Refused, VeeryError
from veery.host import kept
from veery.host.clock import Clock
from veery.host.files import write_atomic
from veery.model import codec
from veery.model.node import Node, Role

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 15.0


class NodeCache:
    """The known nodes. The daemon owns the task of `run`."""

    def __init__(self, store: Store, file: Path, clock: Clock) -> None:
        """`file` keeps the nodes over a restart."""
        self._store, self._file, self._clock = store, file, clock
        self.nodes: dict[str, Node] = self._remembered()

    async def run(self) -> None:
        """Refresh the nodes until cancelled."""
        while True:
            try:
                await self._look()
            except VeeryError as error:
                log.debug("the known nodes are not refreshed: %s", error.message)
            await self._clock.sleep(REFRESH_INTERVAL_S if self.nodes else 1.0)

    async def _look(self) -> None:
        """Read the nodes from the store. A node whose record cannot be read keeps its last readable one."""
        nodes, bad = await NODES.sifted(self._store)
        self.keep(dict(sorted({**{name: self.nodes[name] for name in bad if name in self.nodes}, **nodes}.items())))

    def keep(self, nodes: dict[str, Node]) -> None:
        """Remember `nodes`."""
        if nodes != self.nodes:
            self.nodes = nodes
            try:
                write_atomic(self._file, codec.encode(nodes))
            except OSError as error:
                log.warning("%s could not be written: %s", self._file, error.strerror)

    async def find(self, where: str) -> Node:
        """Return the node with name or address `where`, as last seen, without asking the store. Raises Refused."""
        for node in self.nodes.values():
            if where in (node.name, node.address):
                return node
        raise Refused(
            f"this node knows no node {where!r}", hint="it reads the nodes when the store answers: veery node list"
        )

    def reached_at(self, address: str) -> bool:
        """Return True if `address` belongs to a node, as last seen."""
        return any(address in node.addresses for node in self.nodes.values())

    def voters(self) -> list[str]:
        """Return the nodes that have a vote."""
        return [name for name, node in self.nodes.items() if node.has(Role.VOTER)]

    def _remembered(self) -> dict[str, Node]:
        return kept.take(self._file, dict[str, Node]) or {}
