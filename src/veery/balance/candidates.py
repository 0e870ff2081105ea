"""Compare the moves that one step of a plan could make. Pure.

A move changes the sums of two nodes, so that its score follows from a few additions. In a large cluster only the
fullest nodes are sources and only the emptiest are targets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from veery.balance.model import Domain, Limits
from veery.balance.state import (
    WEIGHT_CONFLICT,
    WEIGHT_LOAD,
    WEIGHT_MEMORY,
    WEIGHT_VCPUS,
    State,
)

HORIZON_S = 1800.0  # a move is worth what it gains in this time
EVENNESS = 0.1  # one point of the score is worth this share of all cores
COPY_CORES = 2.0  # cores that a copy keeps busy, on both nodes together
RELIEF = 0.1  # cores; less relief is no reason for a move
NOISE = 1e-9


class Candidate(NamedTuple):
    """One move, better ones first in order. `rank`: minus the core-seconds that it gains beyond its cost, rounded,
    so that names break ties. `gain`: by
    how much it lowers the score. `relief`: cores of missing processor time that it ends."""

    rank: float
    name: str
    target: int
    source: int
    gain: float
    relief: float


def candidates(state: State, limits: Limits, settled: Collection[str], *, bare: bool = False) -> list[Candidate]:
    """Return the moves that keep every rule but N+1 and are worth their cost, in no order. `settled`: domains that do
    not move. `bare`: also return moves that are not worth it (they may still mend N+1)."""
    return _weigh(state, limits, _movable(state, limits, settled), bare=bare)


def only(state: State, limits: Limits, wanted: Mapping[str, int]) -> list[Candidate]:
    """Return what `candidates` would of the moves `wanted`, domain to target."""
    return _weigh(state, limits, ((name, (target,)) for name, target in wanted.items()), bare=False)


def _weigh(state: State, limits: Limits, pairs: Iterable[tuple[str, Iterable[int]]], *, bare: bool) -> list[Candidate]:
    """Compare the moves of `pairs`, (domain, targets)."""
    found = []
    memory, vcpus, load = state.spread()
    now = WEIGHT_MEMORY * memory + WEIGHT_VCPUS * vcpus + WEIGHT_LOAD * load
    worth = EVENNESS * sum(node.cores for node in state.nodes[: state.count]) * HORIZON_S
    ends = [_End.of(state, place, limits.tight) for place in range(state.count)]
    for name, targets in pairs:
        domain, source = state.cluster.domains[name], state.where[name]
        cost = COPY_CORES * domain.memory / state.cluster.link if limits.payback else 0.0
        eased = state.missing(source) - state.missing(source, -domain.load)
        full = state.free[source] / state.nodes[source].room
        sums = _without(state, domain, source)
        for target in targets:
            end = ends[target]
            left = end.free - domain.memory
            if target == source or left < 0 or (left < end.floor and left <= full * end.room):
                continue
            relief = eased if domain.load <= end.spare else eased - domain.load + max(0.0, end.spare)
            change = state.conflict_change(domain, source, target) if domain.groups else 0
            if change is None or (relief < -NOISE and not change):
                continue
            gain = now - _spread_with(state.count, sums, domain, end) - WEIGHT_CONFLICT * change
            value = relief * HORIZON_S + gain * worth
            if bare or (value > limits.payback * cost and _enough(limits, gain, relief, change)):
                found.append(Candidate(round(cost - value, 6), name, target, source, gain, relief))
    return found


@dataclass(frozen=True, slots=True)
class _End:
    """A node as a target. `floor`: MiB that must stay free, unless the source is fuller. `spare`: cores below busy."""

    free: int
    floor: float
    room: int
    memory: int
    cores: int
    memory_share: float
    vcpus_share: float
    load_share: float
    spare: float

    @classmethod
    def of(cls, state: State, place: int, tight: float) -> _End:
        node = state.nodes[place]
        return cls(
            free=state.free[place],
            floor=(1 - tight) * node.room,
            room=node.room,
            memory=node.memory,
            cores=node.cores,
            memory_share=state.memory_share[place],
            vcpus_share=state.vcpus_share[place],
            load_share=state.load_share[place],
            spare=state.busy * node.cores - state.load[place],
        )


_Sums = tuple[float, float, float, float, float, float]


def _without(state: State, domain: Domain, source: int) -> _Sums:
    """Return the sum and the sum of squares of free memory, vcpus and load, once the domain has left its node."""
    node = state.nodes[source]
    memory, vcpus, load = domain.memory / node.memory, domain.vcpus / node.cores, domain.load / node.cores
    (memory_sum, memory_squares), (vcpus_sum, vcpus_squares), (load_sum, load_squares) = state.sums
    return (
        memory_sum + memory,
        memory_squares + memory * (memory + 2 * state.memory_share[source]),
        vcpus_sum - vcpus,
        vcpus_squares + vcpus * (vcpus - 2 * state.vcpus_share[source]),
        load_sum - load,
        load_squares + load * (load - 2 * state.load_share[source]),
    )


def _spread_with(count: int, sums: _Sums, domain: Domain, end: _End) -> float:
    """Return the weighted spread once the domain has come to a node. The planner spends most of its time here."""
    memory_sum, memory_squares, vcpus_sum, vcpus_squares, load_sum, load_squares = sums
    add = domain.memory / end.memory
    mean = (memory_sum - add) / count
    variance = (memory_squares + add * (add - 2 * end.memory_share)) / count - mean * mean
    spread = WEIGHT_MEMORY * math.sqrt(variance) if variance > 0 else 0.0
    add = domain.vcpus / end.cores
    mean = (vcpus_sum + add) / count
    variance = (vcpus_squares + add * (add + 2 * end.vcpus_share)) / count - mean * mean
    if variance > 0:
        spread += WEIGHT_VCPUS * math.sqrt(variance)
    add = domain.load / end.cores
    mean = (load_sum + add) / count
    variance = (load_squares + add * (add + 2 * end.load_share)) / count - mean * mean
    if variance > 0:
        spread += WEIGHT_LOAD * math.sqrt(variance)
    return spread


def _enough(limits: Limits, gain: float, relief: float, change: int) -> bool:
    """Return whether a move gains enough to be worth the trouble."""
    return relief >= RELIEF or change < 0 or (limits.even and gain >= max(limits.gain, NOISE))


def _movable(state: State, limits: Limits, settled: Collection[str]) -> Iterator[tuple[str, Iterable[int]]]:
    """Yield each domain that may move, and the nodes to compare for it: all nodes if it breaks the rule of a group."""
    domains, used = state.cluster.domains, range(state.count)
    sources, targets = _places(state, limits)
    wrong = {name for name in state.in_conflict() if state.where[name] < state.count}
    for name in wrong:
        if domains[name].balance and name not in settled:
            yield name, used
    for source in sources:
        for name in state.on[source]:
            if domains[name].balance and name not in settled and name not in wrong:
                yield name, targets


def _places(state: State, limits: Limits) -> tuple[Collection[int], Collection[int]]:
    """Return the nodes to move from and the nodes to move to."""
    used = range(state.count)
    held = sum(len(state.on[place]) for place in used)
    if held * state.count <= limits.candidates:
        return used, used
    each = max(4, int(math.sqrt(limits.candidates * state.count / max(1, held))))
    heat = _heat(state)
    ranked = sorted(used, key=lambda place: (-heat[place], place))
    sources, targets = ranked[:each], ranked[-each:]
    busy = sorted(used, key=lambda place: (-state.load_share[place], place))
    sources += [place for place in busy[:3] if place not in sources and state.missing(place) > 0]
    targets += [place for place in busy[-3:] if place not in targets]
    return sources, targets


def _heat(state: State) -> list[float]:
    """Return how much each node weighs on the score, seen by a domain of average size."""
    count = state.count
    deviations = state.spread()
    held = max(1, len(state.where))
    domains = state.cluster.domains.values()
    sizes = (
        sum(each.memory for each in domains) / held,
        sum(each.vcpus for each in domains) / held,
        math.fsum(each.load for each in domains) / held,
    )
    weights = (-WEIGHT_MEMORY, WEIGHT_VCPUS, WEIGHT_LOAD)  # free memory is good
    shares = (state.memory_share, state.vcpus_share, state.load_share)
    heat = [0.0] * count
    for which in range(3):
        if deviations[which] < NOISE:
            continue
        mean = state.sums[which][0] / count
        factor = weights[which] / deviations[which] * sizes[which]
        for place in range(count):
            node = state.nodes[place]
            scale = node.memory if which == 0 else node.cores
            heat[place] += factor * (shares[which][place] - mean) / scale
    return heat
