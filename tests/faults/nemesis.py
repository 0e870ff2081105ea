"""The nemesis' plan: what strikes whom, when and for how long, drawn from a seed; and what it may lead to. Pure.

A round has one fault or two that overlap, while domains are moved. The same seed is the same round."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from veery.lab.faults import Direction

VOTERS = ("stor", "test1", "test2")
DOMAINS = {"nem1": "172.16.31.71", "nem2": "172.16.31.72", "nem3": "172.16.31.73"}
FULL = range(1, 127)  # the rounds of `make faults`
NOTICED = 3.0  # seconds: what lasts no longer must not cost a node its domains


class Kind(StrEnum):
    """What strikes."""

    POWER = "power"  # every process of a node is killed, its cable cut; then it starts again
    FREEZE = "freeze"  # every process of a node is stopped; it wakes when its domains run elsewhere
    CUT = "cut"  # the whole cable of a node
    CUT_CLUSTER = "cut-cluster"  # API, moves and etcd of a node
    CUT_STORAGE = "cut-storage"  # iSCSI of a node
    MEMBER = "member"  # one etcd is stopped
    QUORUM = "quorum"  # two of three are; `node` is the one that is not
    TARGET = "target"  # tgtd is killed; where it lasts, its daemon too, or it would be back at once
    DAEMON = "daemon"  # veeryd of a node is killed
    LEADER = "leader"  # the same, of whoever leads
    QEMU = "qemu"  # one domain's QEMU is killed
    DISK = "disk"  # the state disk of a node is full, etcd's data on it
    CLOCK = "clock"  # the wall clock of a node's veeryd jumps


TEXTS = {
    Kind.POWER: "a node's power off and on",
    Kind.FREEZE: "a node frozen; thawed when its domains run elsewhere",
    Kind.CUT: "a node's cable cut: both ways, or one",
    Kind.CUT_CLUSTER: "only its cluster network: both ways, or one",
    Kind.CUT_STORAGE: "only its storage network: both ways, or one",
    Kind.MEMBER: "one etcd stopped",
    Kind.QUORUM: "two of three etcds stopped",
    Kind.TARGET: "tgtd killed, at times with its daemon",
    Kind.DAEMON: "a node's daemon killed",
    Kind.LEADER: "the leader's daemon killed",
    Kind.QEMU: "a domain's QEMU killed",
    Kind.DISK: "a node's state disk full",
    Kind.CLOCK: "a daemon's wall clock steps",
}
ANYWHERE = {Kind.POWER, Kind.CUT, Kind.CUT_CLUSTER, Kind.CUT_STORAGE, Kind.CLOCK}
HYPERVISORS_ONLY = {Kind.FREEZE, Kind.DAEMON, Kind.QEMU}
CUTS = {Kind.CUT, Kind.CUT_CLUSTER, Kind.CUT_STORAGE}
ETCDS = {Kind.MEMBER, Kind.QUORUM}
DAEMONS = {Kind.DAEMON, Kind.LEADER, Kind.CLOCK}
TOTAL = {Kind.POWER, Kind.FREEZE}  # nothing else can strike there meanwhile
LENGTHS = {  # seconds, from and to
    Kind.POWER: (8, 12),
    Kind.FREEZE: (6, 25),
    Kind.CUT: (2, 14),
    Kind.CUT_CLUSTER: (2, 14),
    Kind.CUT_STORAGE: (2, 14),
    Kind.MEMBER: (4, 10),
    Kind.QUORUM: (4, 12),
    Kind.TARGET: (0, 6),
    Kind.DAEMON: (0, 9),
    Kind.LEADER: (0, 9),
    Kind.QEMU: (0, 0),
    Kind.DISK: (4, 10),
    Kind.CLOCK: (4, 10),
}


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One fault: `at` seconds after the round's begin, for `lasts` seconds. `step`: seconds by which a clock jumps."""

    kind: Kind
    node: str
    at: float
    lasts: float
    direction: Direction = Direction.BOTH
    step: float = 0.0

    def text(self) -> str:
        """One line of a story."""
        way = f", {self.direction}" if self.kind in CUTS else f", {self.step:+.0f} s" if self.step else ""
        return f"{self.kind} {self.node}{way} at {self.at:.1f} s for {self.lasts:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Order:
    """Somebody moves `domain`, to `to` or, where it is there, to another."""

    domain: str
    to: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is drawn from `seed`."""

    seed: int
    strikes: tuple[Strike, ...]
    moves: tuple[Order, ...]

    @property
    def name(self) -> str:
        """As it stands in a list."""
        return f"{self.seed}-{'-and-'.join(strike.kind for strike in self.strikes)}"

    def story(self) -> str:
        """All of it, for whoever looks at a failure."""
        moves = [f"move {each.domain} to {each.to} at {each.at:.1f} s" for each in self.moves]
        return f"round {self.seed}: " + "; ".join([*(each.text() for each in self.strikes), *moves])


def draw(seed: int, hypervisors: Sequence[str]) -> Round:
    """The round of `seed`: every third has one fault, the others two."""
    rng = random.Random(f"nemesis {seed}")
    first = _strike(rng, hypervisors, at=rng.uniform(0, 1))
    strikes = [first]
    while seed % 3 and len(strikes) < 2:
        second = _strike(rng, hypervisors, at=first.at + rng.uniform(0, 0.8) * max(first.lasts, 1.0))
        if not _excluded(first, second):
            strikes.append(second)
    moves = [
        Order(domain=name, to=rng.choice(list(hypervisors)), at=rng.uniform(0, 5))
        for name in rng.sample(sorted(DOMAINS), k=rng.randint(1, 2))
    ]
    return Round(seed=seed, strikes=tuple(strikes), moves=tuple(moves))


def _strike(rng: random.Random, hypervisors: Sequence[str], *, at: float) -> Strike:
    kind = rng.choice(list(Kind))
    nodes = [*hypervisors]
    if kind in ANYWHERE:
        nodes.append("stor")
    elif kind in ETCDS:
        nodes = list(VOTERS)
    elif kind is Kind.TARGET:
        nodes = ["stor"]
    elif kind is Kind.DISK:
        nodes = ["test1", "test2"]
    elif kind is Kind.LEADER:
        nodes = ["leader"]
    node = rng.choice(nodes)
    least, most = LENGTHS[kind]
    lasts = round(rng.uniform(least, most), 1)
    if kind in (Kind.TARGET, Kind.DAEMON, Kind.LEADER) and rng.random() < 0.5:
        lasts = 0.0
    direction = rng.choice(list(Direction)) if kind in CUTS else Direction.BOTH
    step = rng.choice([-1, 1]) * rng.choice([5.0, 60.0, 3600.0]) if kind is Kind.CLOCK else 0.0
    return Strike(kind=kind, node=node, at=round(at, 1), lasts=lasts, direction=direction, step=step)


def struck(strike: Strike) -> frozenset[str]:
    """The nodes that it touches; "leader" may be any."""
    if strike.kind is Kind.QUORUM:
        return frozenset(VOTERS) - {strike.node}
    return frozenset({strike.node})


def _excluded(one: Strike, two: Strike) -> bool:
    """What cannot be done, or heals the other, or is the same twice."""
    shared = struck(one) & struck(two)
    families = any({one.kind, two.kind} <= family for family in (CUTS, ETCDS, DAEMONS))
    if one.kind is two.kind and (shared or one.kind in ETCDS | {Kind.LEADER}):
        return True
    return bool(shared and (families or {one.kind, two.kind} & TOTAL))


# ---- what it may lead to


def may_be_fenced(strikes: Sequence[Strike]) -> frozenset[str]:
    """The nodes that may be fenced for these faults, whose leader is named by now; nobody else may be.

    A hypervisor that is silent to the cluster and to the storage at the same time, for longer than a moment. With two
    faults at once, one that is struck by either may be so by both together."""
    found = set()
    for strike in strikes:
        silent = strike.kind in TOTAL | {Kind.CUT, Kind.DAEMON, Kind.LEADER} and strike.lasts > NOTICED
        half = strike.kind in {Kind.CUT_CLUSTER, Kind.CUT_STORAGE, Kind.DAEMON, Kind.LEADER, Kind.CUT}
        if silent or (half and len(strikes) > 1):
            found |= struck(strike)
    return frozenset(found)


def may_boot(strikes: Sequence[Strike]) -> frozenset[str]:
    """The nodes whose domains may be booted anew for these faults; no other domain may be."""
    killed = {strike.node for strike in strikes if strike.kind is Kind.QEMU}
    return may_be_fenced(strikes) | killed


def overlap(one: Strike, two: Strike) -> bool:
    """Whether the second strikes before the first has ended."""
    return two.at <= one.at + max(one.lasts, 1.0)


def pairs() -> list[tuple[Kind, Kind]]:
    """All that can be drawn, for the table."""
    return list(itertools.combinations_with_replacement(list(Kind), 2))
