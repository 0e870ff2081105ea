"""Moves several domains away from this node in one order: chooses their targets and follows the moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veery.cluster import levels
from veery.cluster.store import Store
from veery.errors import Refused, VeeryError
from veery.migrate.moves import Moves
from veery.model.codec import convert
from veery.model.domain import DomainReading, DomainState, HostReading
from veery.model.move import MoveProgress, MoveReport, MoveSettings
from veery.model.node import Node, Role
from veery.node.domains import Domains
from veery.node.machine import Machine
from veery.node.peers import Peers
from veery.node.targets import find_node

MOVABLE = (DomainState.RUNNING, DomainState.BLOCKED, DomainState.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The moves that were begun, by domain, and the reason for each domain that was refused."""

    moves: dict[str, str]
    refused: dict[str, str]


def spread(domains: Iterable[tuple[str, int]], free: Mapping[str, int]) -> dict[str, str]:
    """Return a node for each domain (name, MiB): the largest first, each to the node with most memory left (`free`,
    MiB).

    Every domain gets a node, even if no node has room: that node then refuses it with all its reasons."""
    left = dict(free)
    chosen: dict[str, str] = {}
    for name, memory in sorted(domains, key=lambda each: (-each[1], each[0])):
        node = max(sorted(left), key=lambda each: left[each])
        chosen[name] = node
        left[node] -= memory
    return chosen


def fit(rows: Sequence[Mapping[str, Any]], here: str, cluster: int) -> list[str]:
    """Return the hypervisors of `rows` (as Machine.nodes) that may take in domains of node `here`: those that are alive
    and support level `cluster`. Raises Refused if there is none."""
    names, old = [], []
    for row in rows:
        node, presence = row["node"], row["presence"]
        if not row["alive"] or node.name == here or not node.has(Role.HYPERVISOR):
            continue
        trouble = levels.behind(presence.level, cluster) if presence else ""
        if trouble:
            old.append(f"{node.name}: {trouble}")
        else:
            names.append(node.name)
    if not names and old:
        hint = "upgrade veery there; veery version -a shows all versions"
        raise Refused(f"no other hypervisor can take in a domain: {'; '.join(old)}", hint=hint)
    if not names:
        raise Refused("no other hypervisor is alive", hint="veery node list shows the nodes; name one with --to")
    return names


class Evacuation:
    """Begins many moves and follows them."""

    def __init__(self, domains: Domains, moves: Moves, machine: Machine, peers: Peers, store: Store) -> None:
        """The daemon owns all of these and shares them."""
        self._domains, self._moves, self._machine, self._peers = domains, moves, machine, peers
        self._store = store

    async def begin(
        self, refs: Sequence[str], targets: Sequence[str], settings: MoveSettings, *, force: bool = False
    ) -> Begun:
        """Begin to move domains `refs` (empty: all that live here) to nodes `targets` (empty: all others that `fit`
        finds and that are well; with `force` also sick ones). Raises Refused if there is nothing to move, or no node to
        move to; StoreUnavailable, Unreadable."""
        readings = await self._chosen(refs)
        nodes = await self._nodes(targets, force=force)
        free = dict(zip(nodes, await asyncio.gather(*(self._free(name) for name in nodes)), strict=True))
        moves, refused = {}, {}
        for name, node in spread(((each.name, each.memory) for each in readings), free).items():
            try:
                moves[name] = await self._domains.migrate(name, node, settings, force=force)
            except VeeryError as error:
                refused[name] = error.message
        return Begun(moves=moves, refused=refused)

    async def follow(self, begun: Begun) -> AsyncIterator[tuple[str, MoveProgress]]:
        """Yield the progress of each move with its id, until all have ended."""
        queue: asyncio.Queue[tuple[str, MoveProgress] | None] = asyncio.Queue(256)

        async def hear(move: str) -> None:
            async for progress in self._moves.follow(move):
                await queue.put((move, progress))

        async def hear_all() -> None:
            await asyncio.gather(*(hear(move) for move in begun.moves.values()))
            await queue.put(None)

        hearing = asyncio.create_task(hear_all())
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})

    async def reports(self, begun: Begun) -> list[MoveReport]:
        """Return how each move ended, in the order in which they were begun."""
        return [await self._moves.outcome(move) for move in begun.moves.values()]

    # ---- inside

    async def _chosen(self, refs: Sequence[str]) -> list[DomainReading]:
        if refs:
            return [await self._domains.find(ref) for ref in dict.fromkeys(refs)]
        found = [each for each in await self._domains.driver.list() if each.state in MOVABLE]
        if not found:
            raise Refused(f"{self._domains.node} has no domains to move", hint="veery list shows its domains")
        return found

    async def _nodes(self, targets: Sequence[str], *, force: bool) -> list[str]:
        rows = await self._machine.nodes()
        if targets:
            return [await self._named(target, [row["node"] for row in rows]) for target in dict.fromkeys(targets)]
        names = fit(rows, self._domains.node, await levels.read(self._store))
        well = [name for name in names if force or await self._domains.is_well(name)]
        if not well:
            raise Refused("no other hypervisor is well", hint="veery node health; to move them all the same: --force")
        return well

    async def _named(self, target: str, nodes: Sequence[Node]) -> str:
        node = await find_node(target, nodes)
        if node.name == self._domains.node:
            raise Refused(f"the domains are on {node.name} already", hint="name another node")
        return node.name

    async def _free(self, name: str) -> int:
        """Return the MiB of free memory on a node; 0 if it does not answer."""
        try:
            told = await self._peers.call(name, "GET", "/v1/host", deadline=5)
        except VeeryError:
            return 0
        return convert(told["host"], HostReading).memory_free
