"""A described cluster, the limits of a plan, and the plan.

Memory is in MiB. Load is in cores: 1.5 means that one and a half cores are busy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from veery.model.ha import GroupKind

LINK_MIB_S = 110.0  # gigabit Ethernet


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A hypervisor. `reserved`: MiB that the host itself needs. `load`: cores that the host itself uses.

    A node that is not `in_service` receives nothing, and the balancer moves nothing from it."""

    name: str
    memory: int
    cores: int
    reserved: int = 0
    load: float = 0.0
    in_service: bool = True

    @property
    def room(self) -> int:
        """The MiB for domains."""
        return self.memory - self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A running domain. `balance` False: the balancer never moves it. `restart` False: nobody starts it on another node
    after the loss of its node, so it needs no reserve there."""

    name: str
    node: str
    memory: int
    vcpus: int
    load: float = 0.0
    groups: tuple[str, ...] = ()
    balance: bool = True
    restart: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A placement rule. `nodes`: where its domains may run (empty: everywhere). `strict`: a restart keeps the rule too,
    even if the domain then finds no place."""

    kind: GroupKind = GroupKind.APART
    nodes: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A whole cluster, by name. `link`: MiB/s that a move copies."""

    nodes: Mapping[str, Node]
    domains: Mapping[str, Domain]
    groups: Mapping[str, Group] = field(default_factory=dict)
    link: float = LINK_MIB_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a plan may go.

    `moves`: the most moves. `gain`: the least that a move must lower the score. `payback`: a move must gain this many
    times its cost; 0: moves cost nothing. `even` False: only moves that relieve a node, or mend a rule or N+1. `busy`:
    above this share of a node's cores, its domains wait for a processor. `tight`: a move fills no target above this
    share of its room. `trials`: how many moves the search may try to replace by better ones after the first plan.
    `candidates`: about how many moves one step compares; more are pruned to the fullest and the emptiest nodes."""

    moves: int = 20
    gain: float = 0.001
    payback: float = 3.0
    even: bool = True
    busy: float = 0.80
    tight: float = 0.92
    trials: int = 0
    candidates: int = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far a cluster is from even; lower is better. `total` is the weighted sum of the other fields.

    `memory`, `vcpus`, `load`: the standard deviation over the nodes in service of free memory / memory, vcpus / cores
    and load / cores. `conflicts`: domains that break the rule of a group. `stranded`: the domains that would find no
    place after the loss of their node."""

    total: float
    memory: float
    vcpus: float
    load: float
    conflicts: int
    stranded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of a plan. `score`: the cluster's after it. `relieves`: cores of missing processor time that it ends.
    `copied`: MiB. `seconds`: how long the copy takes. `why`: one sentence."""

    domain: str
    source: str
    target: str
    score: Score
    relieves: float
    copied: int
    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Moves in the order in which they must run, and `end`: why the plan has no more of them."""

    before: Score
    after: Score
    moves: tuple[Move, ...]
    end: str
