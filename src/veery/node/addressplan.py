"""Decides whether a node may change its address now, and in which steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from veery.cluster.upkeep import Seen
from veery.config.settings import Settings
from veery.model import endpoint
from veery.model.node import Node, Role
from veery.storage.heartbeat import slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of node `node` and of its new address. `own`: its machine has that address. `nodes`: all of the
    cluster; `absent`: those without a lease. `unreached`: by node, why it cannot reach the new address. `pinned`: the
    settings that name the present address. `users`: the domains that use volumes of the node. `volume_moves`: volumes
    that move from it or to it. `idle`: no domain moves here. `certificate`: why no certificate for the new address can
    be issued now. `seen`: the store's members."""

    node: Node
    address: str
    own: bool
    nodes: Sequence[Node]
    absent: frozenset[str] = frozenset()
    unreached: Mapping[str, str] = field(default_factory=dict)
    pinned: Sequence[str] = ()
    users: Sequence[str] = ()
    volume_moves: Sequence[str] = ()
    idle: bool = True
    certificate: str = ""
    seen: Sequence[Seen] = ()

    @property
    def others(self) -> tuple[Node, ...]:
        """Return the other nodes."""
        return tuple(each for each in self.nodes if each.name != self.node.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPlan:
    """What prevents a change of address, and the steps that it takes."""

    refusals: tuple[str, ...]
    steps: tuple[str, ...]


def plan(facts: Facts) -> AddressPlan:
    """Judge `facts` and return the plan."""
    refusals = [*_of_address(facts), *_of_store(facts), *_of_use(facts)]
    return AddressPlan(refusals=tuple(refusals), steps=tuple(_steps(facts)))


def _of_address(facts: Facts) -> list[str]:
    name, address = facts.node.name, facts.address
    found = []
    if address == endpoint.canonical(facts.node.address):
        found.append(f"{address} is the address of {name} already")
    if not facts.own:
        found.append(f"{address} is not an address of the machine {name}: first add it with ip address add ...")
    for other in facts.others:
        if address in map(endpoint.canonical, other.addresses):
            found.append(f"{address} is {other.name}'s address")
        elif slot(other.address) == slot(address):
            found.append(f"{address} ends like {other.address} of {other.name}: their heartbeats would share a block")
    found += [f"{other} does not reach {address}: {why}" for other, why in sorted(facts.unreached.items())]
    found += [
        f"veery.toml of {name} sets {key} to {facts.node.address}: remove that, and restart veeryd"
        for key in facts.pinned
    ]
    return found


def _of_store(facts: Facts) -> list[str]:
    found = [facts.certificate] if facts.certificate else []
    if not facts.node.has(Role.VOTER):
        return found
    voters = {each.voter.name for each in facts.seen}
    if facts.node.name not in voters:
        found.append(f"the store has no member of {facts.node.name}: veery doctor --all")
    down = sorted(each.voter.name or "one that has not started" for each in facts.seen if not each.well)
    if down:
        found.append(f"voter {', '.join(down)} does not answer, or has no vote yet")
    if facts.absent:
        names = ", ".join(sorted(facts.absent))
        found.append(f"{names} is absent and would not learn where the store is: start it, or forget it")
    return found


def _of_use(facts: Facts) -> list[str]:
    name = facts.node.name
    found = [] if facts.idle else [f"a domain moves from or to {name}: veery moves"]
    if facts.volume_moves:
        found.append(f"volume {', '.join(facts.volume_moves)} is being moved")
    if facts.users:
        found.append(
            f"{', '.join(facts.users)} uses volumes of {name} at {facts.node.address}: shut it down, "
            "or move its volumes to another storage node"
        )
    return found


def _steps(facts: Facts) -> list[str]:
    name, old, new = facts.node.name, facts.node.address, facts.address
    steps = [f"{name} gets a certificate for {old} and {new}"]
    if facts.node.has(Role.VOTER):
        away = "" if len(facts.seen) > 2 else "; the store does not answer for some seconds"
        steps.append(f"the voters try {new} for {name} as well as {old}; its etcd restarts and serves both{away}")
    steps.append(f"the record of {name} says {new}")
    if facts.node.has(Role.STORAGE) and not facts.node.storage_address:
        steps.append(f"the volumes of {name} are served at {new}")
    if facts.node.has(Role.VOTER):
        steps.append(f"the voters forget {old}")
    steps.append(f"veeryd of {name} restarts and listens at {new}")
    steps.append(f"then by hand: remove {old} from the machine, and from the firewalls of the nodes")
    return steps


def pinned(settings: Settings, address: str) -> tuple[str, ...]:
    """Return the settings that name `address`: the node would keep listening there."""
    named = {
        "api.address": settings.api.address,
        "relocation.address": settings.relocation.address,
        "storage.address": settings.storage.address,
    }
    return tuple(
        key for key, value in named.items() if value and endpoint.canonical(value) == endpoint.canonical(address)
    )


def ports(settings: Settings, node: Node) -> tuple[int, ...]:
    """Return the TCP ports at which other nodes reach `node`."""
    found = [settings.api.port]
    if node.has(Role.HYPERVISOR) and not settings.relocation.address:
        found.append(settings.relocation.port)
    if node.has(Role.VOTER):
        found += [settings.etcd.client_port, settings.etcd.peer_port]
    if node.has(Role.STORAGE) and not settings.storage.address:
        found.append(settings.storage.portal_port)
    return tuple(found)
