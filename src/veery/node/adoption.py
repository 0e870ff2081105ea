"""Adopts a restored store: asks every node what runs there, and writes that to the store.

The store is read and written without the check for trust (`EtcdStore.raw`), and nodes are found without it. This is the
one part of a node that works while the store is doubted. The decision is made by veery.cluster.adopt, which is pure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress

from veery.cluster import adopt as adoption
from veery.cluster.etcd import EtcdStore
from veery.cluster.trust import Trust
from veery.errors import Refused, VeeryError
from veery.host.clock import Clock
from veery.model.adoption import Adoption, CopyHere, Inventory
from veery.model.codec import convert
from veery.model.domain import DomainState
from veery.model.node import Node, Role
from veery.node.domains import Domains
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.witness import WitnessAnswer

log = logging.getLogger(__name__)

ASK_S = 15.0  # for the inventory of one node
SHUT_S = 5.0  # for a storage node to tell whether it shuts this node out


class Adopter:
    """The adoption service of a daemon."""

    def __init__(
        self,
        node: Node,
        store: EtcdStore,
        trust: Trust,
        domains: Domains,
        *,
        node_cache: NodeCache,
        peers: Peers,
        clock: Clock,
    ) -> None:
        """`store` is used without the check for trust. `peers` finds nodes without it."""
        self._node, self._store, self._trust, self._domains = node, store, trust, domains
        self._node_cache, self._peers, self._clock = node_cache, peers, clock

    async def inventory(self) -> Inventory:
        """Return what runs on this node, and what it knows. The store is not asked."""
        seen = self._trust.seen
        return Inventory(
            node=self._node.name,
            restored=self._trust.restored,
            record=self._node,
            incarnations=(*seen.before, seen.incarnation) if seen else (),
            copies=await self._copies() if self._node.has(Role.HYPERVISOR) else (),
            neighbours=tuple(self._node_cache.nodes.values()),
            shut=await self._shut() if self._node.has(Role.HYPERVISOR) else (),
        )

    async def _copies(self) -> tuple[CopyHere, ...]:
        busy = self._domains.locks.busy()
        found = []
        for reading in await self._domains.list():
            with suppress(Refused):  # it ended meanwhile
                spec, _ = await self._domains.driver.spec(reading.uuid)
                found.append(
                    CopyHere(
                        domain=reading.name,
                        incoming=reading.state is DomainState.INCOMING,
                        busy=reading.name in busy,
                        spec=spec,
                    )
                )
        here = {copy.domain for copy in found}
        starting = (CopyHere(domain=name, incoming=True, busy=True) for name in sorted(busy - here))
        return (*found, *starting)

    async def _shut(self) -> tuple[str, ...]:
        """Return the storage nodes that report that they shut this node out."""
        names = [name for name, node in self._node_cache.nodes.items() if node.has(Role.STORAGE)]
        words = await asyncio.gather(*(self._word(name) for name in names))
        return tuple(name for name, word in zip(names, words, strict=True) if word is not None and word.fenced)

    async def _word(self, name: str) -> WitnessAnswer | None:
        with suppress(VeeryError):
            path = f"/v1/standing/{self._node.initiator or '-'}"
            return convert(await self._peers.call(name, "GET", path, deadline=SHUT_S), WitnessAnswer)
        return None

    # ---- adopting
    async def plan(self, lost: Collection[str]) -> tuple[adoption.Records, Adoption]:
        """Return the plan of an adoption; change nothing. Raises StoreUnavailable, Unreadable."""
        records = await adoption.read(self._store)
        told, silent = await self._asked(set(records.nodes), records)
        return records, adoption.plan(records, told, silent, lost)

    async def adopt(self, lost: Collection[str], *, by: str) -> tuple[Adoption, str]:
        """Adopt the store; return what was done, and the id of the new incarnation. Raises Refused with everything that
        prevents it, StoreUnavailable, OutcomeUnknown: adopt again."""
        records, made = await self.plan(lost)
        new = await adoption.write(self._store, records, made, by=by, epoch=self._clock.epoch())
        return made, new

    async def _asked(self, names: set[str], records: adoption.Records) -> tuple[dict[str, Inventory], dict[str, str]]:
        """Return the inventories of all nodes that the store or any node knows, and why the other nodes gave none."""
        told: dict[str, Inventory] = {}
        silent: dict[str, str] = {}
        known = {**records.nodes, **self._node_cache.nodes, self._node.name: self._node}
        while fresh := sorted({*names, *known} - told.keys() - silent.keys()):
            self._node_cache.keep({**known, **self._node_cache.nodes})
            for name, found in zip(fresh, await asyncio.gather(*map(self._ask, fresh)), strict=True):
                if isinstance(found, str):
                    silent[name] = found
                    continue
                told[name] = found
                known = {**{node.name: node for node in found.neighbours}, **known}
        return told, silent

    async def _ask(self, name: str) -> Inventory | str:
        if name == self._node.name:
            return await self.inventory()
        try:
            return convert(await self._peers.call(name, "GET", "/v1/inventory", deadline=ASK_S), Inventory)
        except VeeryError as error:
            return error.message
