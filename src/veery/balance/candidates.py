"""Compare the moves that one step of a plan could make. Pure.

A move changes the sums of two nodes, so that its score follows from a few additions. In a large cluster only the
fullest nodes are sources and only the emptiest are targets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One move, better ones first in order. `rank`: minus the core-seconds that it gains beyond its cost. `gain`: by
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
    found = []
    spread = sum(_weighted(state.spread()))
    cores = sum(node.cores for node in state.nodes[: state.count])
    worth = EVENNESS * cores * HORIZON_S
    for name, targets in pairs:
        domain, source = state.cluster.domains[name], state.where[name]
        cost = COPY_CORES * domain.memory / state.cluster.link if limits.payback else 0.0
        missing = state.missing(source) - state.missing(source, -domain.load)
        for target in targets:
            if target == source or not _fits(state, limits.tight, domain.memory, (source, target)):
                continue
            relief = missing + state.missing(target) - state.missing(target, domain.load)
            change = state.conflict_change(domain, source, target) if domain.groups else 0
            if change is None or (relief < -NOISE and not change):
                continue
            gain = spread - _spread_after(state, domain, source, target) - WEIGHT_CONFLICT * change
            value = relief * HORIZON_S + gain * worth
            if bare or (_enough(limits, gain, relief, change) and value > limits.payback * cost):
                found.append(Candidate(cost - value, name, target, source, gain, relief))
    return found


def _enough(limits: Limits, gain: float, relief: float, change: int) -> bool:
    """Return whether a move gains enough to be worth the trouble."""
    return relief >= RELIEF or change < 0 or (limits.even and gain >= max(limits.gain, NOISE))


def _fits(state: State, tight: float, memory: int, pair: tuple[int, int]) -> bool:
    """Return whether the target has the room, and does not become tight by it (unless the source is tighter)."""
    source, target = pair
    left = state.free[target] - memory
    if left < 0:
        return False
    room = state.nodes[target].room
    return left >= (1 - tight) * room or left * state.nodes[source].room > state.free[source] * room


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
        sum(each.load for each in domains) / held,
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


def _weighted(spread: tuple[float, float, float]) -> tuple[float, float, float]:
    return WEIGHT_MEMORY * spread[0], WEIGHT_VCPUS * spread[1], WEIGHT_LOAD * spread[2]


def _spread_after(state: State, domain: Domain, source: int, target: int) -> float:
    """Return the weighted spread after a move. The innermost computation: no calls but to sqrt."""
    count = state.count
    one, other = state.nodes[source], state.nodes[target]
    total, squares = state.sums[0]
    here, there = state.memory_share[source], state.memory_share[target]
    plus, minus = domain.memory / one.memory, domain.memory / other.memory
    mean = (total + plus - minus) / count
    variance = (squares + plus * (2 * here + plus) + minus * (minus - 2 * there)) / count - mean * mean
    after = WEIGHT_MEMORY * math.sqrt(variance) if variance > 0 else 0.0
    total, squares = state.sums[1]
    here, there = state.vcpus_share[source], state.vcpus_share[target]
    minus, plus = domain.vcpus / one.cores, domain.vcpus / other.cores
    mean = (total + plus - minus) / count
    variance = (squares + plus * (2 * there + plus) + minus * (minus - 2 * here)) / count - mean * mean
    after += WEIGHT_VCPUS * math.sqrt(variance) if variance > 0 else 0.0
    total, squares = state.sums[2]
    here, there = state.load_share[source], state.load_share[target]
    minus, plus = domain.load / one.cores, domain.load / other.cores
    mean = (total + plus - minus) / count
    variance = (squares + plus * (2 * there + plus) + minus * (minus - 2 * here)) / count - mean * mean
    return after + (WEIGHT_LOAD * math.sqrt(variance) if variance > 0 else 0.0)
