"""Prefers a voter without domains as the leader.

If a hypervisor dies that leads the store or the brain, its domains wait for an election before any node can judge it.
So both leads are handed to a voter without domains, if a healthy one exists. This is a preference and not a rule: any
voter can lead."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from veery.cluster.etcd import EtcdStore
from veery.cluster.keys import ALIVE
from veery.cluster.store import StoreUnavailable
from veery.cluster.voters import Voter
from veery.errors import VeeryError
from veery.ha.loop import Brain
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.node import Node, Role
from veery.node.node_cache import NodeCache

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 5.0  # seconds between two checks
STEADY_CHECKS = 3  # checks at which the other voter was healthy, before it is handed the lead
ELECTION_DELAY_S = 1.5  # seconds for which a hypervisor lets other voters become leader first


class LeaderPreference:
    """Hands the lead over, on a voter that is also a hypervisor. The daemon owns the task of `run`."""

    def __init__(
        self, node: Node, store: EtcdStore, url: str, *, brain: Brain, node_cache: NodeCache, clock: Clock
    ) -> None:
        """`url` is the address of this node's own etcd."""
        self._node, self._store, self._url = node, store, url
        self._brain, self._node_cache, self._clock = brain, node_cache, clock
        self._well = 0

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._clock.sleep(CHECK_INTERVAL_S)
            with suppress(VeeryError, TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._look()

    async def _look(self) -> None:
        other = await self._other()
        self._well = self._well + 1 if other is not None else 0
        if other is None or self._well < STEADY_CHECKS:
            return
        status = await self._store.voters.status(self._url)
        if status.leader == status.id != other.id:
            log.info(decision("store.hand-over", to=other.name, reason="it runs no domains"))
            await self._store.voters.hand_over(self._url, other.id)
        if self._brain.leadership.held() and self._brain.idle():
            log.info(decision("leader.hand-over", to=other.name, reason="it runs no domains"))
            await self._brain.leadership.resign()

    async def _other(self) -> Voter | None:
        """Return a healthy voter that runs no domains. Raises StoreUnavailable."""
        alive = await ALIVE.all(self._store)
        for voter in await self._store.voters.all():
            node = self._node_cache.nodes.get(voter.name)
            if node is None or node.has(Role.HYPERVISOR) or voter.learner or voter.name not in alive:
                continue
            for endpoint in voter.clients:
                with suppress(StoreUnavailable):
                    if (await self._store.voters.status(endpoint)).leader:
                        return voter
        return None
