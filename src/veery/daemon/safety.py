"""The parts that fence other nodes, and those that stop this node before others fence it."""

from __future__ import annotations

from veery.cluster.identity import client_url
from veery.daemon.base import Base
from veery.daemon.domains import DomainParts
from veery.daemon.volumes import VolumeParts
from veery.ha.fence.power import PowerFence
from veery.model.fence import Method
from veery.model.ha import FenceMethods
from veery.model.node import Role
from veery.node.fence_methods import FenceMethodsWriter
from veery.node.fencing import Fencing
from veery.node.guard import Guard
from veery.node.storage_heartbeats import HeartbeatWriter
from veery.node.watchdog import WatchdogKeeper
from veery.node.witness import Witness


class SafetyParts:
    """The safety parts. `guard`, `writer` and `fence_methods` are None on a node that runs no domains."""

    def __init__(self, base: Base, domains: DomainParts, volumes: VolumeParts) -> None:
        """Build the parts. The watchdog is not opened before `keeper` runs."""
        settings, node = base.settings, base.node
        self._base = base
        self.fencing = Fencing(
            node.name,
            base.store,
            peers=base.peers,
            volumes=volumes.volumes,
            domains=domains.domains,
            clock=base.clock,
            power=PowerFence(settings.power),
        )
        own = client_url(settings, node) if base.identity.etcd else ""
        self.witness = Witness(node, base.store, volumes.volumes, own)
        self.guard = self._guard(base, domains)
        self.keeper = WatchdogKeeper(
            node.name,
            base.store,
            settings.watchdog,
            base.clock,
            may_feed=self.guard.may_feed if self.guard else self._may_feed,
        )
        self.writer: HeartbeatWriter | None = None
        self.fence_methods: FenceMethodsWriter | None = None
        if node.has(Role.HYPERVISOR):
            self.writer = HeartbeatWriter(
                node,
                base.credentials.mine,
                node_cache=base.node_cache,
                peers=base.near,
                clock=base.clock,
                stopped=lambda: self.guard is not None and self.guard.stopped,
            )
            self.fence_methods = FenceMethodsWriter(
                node.name, base.store, self._methods_now, base.clock, started=base.heartbeat.started
            )

    def held(self) -> frozenset[str]:
        """Return the domains that the guard has paused."""
        return self.guard.holds if self.guard is not None else frozenset()

    def _guard(self, base: Base, domains: DomainParts) -> Guard | None:
        if not base.node.has(Role.HYPERVISOR) or not base.settings.guard.end:
            return None
        return Guard(
            base.node,
            base.store,
            heartbeat=base.heartbeat,
            domains=domains.domains,
            fencing=self.fencing,
            standing=self.witness,
            node_cache=base.node_cache,
            peers=base.near,
            clock=base.clock,
            doubted=base.trust.stands,
            still=base.stillness.holds,
            file=base.runtime / "held.json",
            end=base.settings.guard.end,
        )

    def _may_feed(self) -> bool:
        """Return True if the watchdog may be fed on a node without a guard."""
        base = self._base
        return base.heartbeat.remaining() > 0 or base.trust.stands() or base.stillness.holds()

    def _methods_now(self) -> FenceMethods:
        """Return the methods that can fence this node, from its settings and its watchdog as they are now."""
        methods = [Method.STORAGE]
        if self.keeper.timeout:
            methods.append(Method.WATCHDOG)
        if self._base.node.name in self._base.settings.power:
            methods.append(Method.POWER)
        return FenceMethods(methods=tuple(methods), watchdog=self.keeper.timeout)
