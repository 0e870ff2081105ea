"""The parts that decide for the whole cluster, on the node that leads."""

from __future__ import annotations

from veery.cluster.identity import client_url
from veery.config.settings import Settings
from veery.daemon.base import Base
from veery.daemon.domains import DomainParts
from veery.daemon.safety import SafetyParts
from veery.ha.loop import Brain
from veery.ha.observer import StoreObserver
from veery.model.ha import Rules
from veery.model.node import Role
from veery.node.ha_control import PeerControl
from veery.node.ha_probes import PeerProbes
from veery.node.ha_service import HaService
from veery.node.leader_preference import ELECTION_DELAY_S, LeaderPreference
from veery.node.recovery import Recovery


class BrainParts:
    """The parts of the brain. `brain` is None on a node without a vote; `leader_preference` is None also on a voter
    that runs no domains."""

    def __init__(self, base: Base, domains: DomainParts, safety: SafetyParts) -> None:
        """Build the parts. This node takes part in the election only once `brain` runs."""
        node, near = base.node, base.near
        self.rules = _rules(base.settings)
        self.probes = PeerProbes(near, base.node_cache, base.clock)
        self.brain: Brain | None = None
        self.leader_preference: LeaderPreference | None = None
        if node.has(Role.VOTER):
            self.brain = Brain(
                node.name,
                store=base.store,
                observer=StoreObserver(base.store, self.probes, base.clock, self.rules),
                control=PeerControl(base.store, near, {way.method: way for way in safety.fencing.ways}),
                clock=base.clock,
                rules=self.rules,
                told=base.alarms.hear,
                election_delay=ELECTION_DELAY_S if node.has(Role.HYPERVISOR) else 0.0,
            )
            if node.has(Role.HYPERVISOR):
                self.leader_preference = LeaderPreference(
                    node,
                    base.store,
                    client_url(base.settings, node),
                    brain=self.brain,
                    node_cache=base.node_cache,
                    clock=base.clock,
                )
        self.ha_service = HaService(
            node.name,
            base.store,
            records=base.store.raw,
            brain=self.brain,
            rules=self.rules,
            peers=near,
            clock=base.clock,
        )
        self.recovery = Recovery(
            node.name,
            base.watch_cache,
            domains.domains,
            base.heartbeat,
            unsettled=domains.settler.unsettled,
            held=safety.held,
        )


def _rules(settings: Settings) -> Rules:
    """Return the brain's figures. Those without a setting keep their default."""
    ha, ttl = settings.ha, settings.presence_ttl
    return Rules(
        cycle=ha.cycle,
        leader_ttl=ha.leader_ttl,
        node_ttl=ttl,
        silence=ha.silence,
        sign=ha.sign,
        grace=ttl + 2.0,  # a new etcd leader restarts every lease with its full time
        blind=min(Rules().blind, ttl),
        out=ha.out,
        into=ha.into,
    )
