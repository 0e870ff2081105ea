"""Plan moves: relieve the nodes that lack processor time, then make the load even. Pure and deterministic.

Each step takes the move that gains most beyond its cost, among those that keep every rule and do not make N+1 worse.
After that the planner may try to replace single moves by better ones, as long as the same number of moves lowers the
score further."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from veery.balance import words
from veery.balance.candidates import EVENNESS, HORIZON_S, NOISE, RELIEF, Candidate, candidates, only
from veery.balance.model import Cluster, Limits, Move, Plan, Score
from veery.balance.reserve import Reserve
from veery.balance.state import WEIGHT_STRANDED, State

CHECKS = 200  # checks of N+1 in one step: the best moves that are checked before the planner gives up
MENDING_CHECKS = 64  # while N+1 is broken: moves by their gain, and as many by size, that are checked for mending it
REMOVED_MAX = 7  # steps that one trial takes out
TRIALS_MAX = 1000
TRIALS_EFFORT = 1_000_000  # domains x nodes x trials
BETTER = 1e-7  # of the score


def affordable(cluster: Cluster) -> int:
    """Return how many trials a person can wait for: fewer in a large cluster."""
    return min(TRIALS_MAX, TRIALS_EFFORT // max(1, len(cluster.nodes) * len(cluster.domains)))


def plan(cluster: Cluster, limits: Limits) -> Plan:
    """Return the moves that `cluster` should make, within `limits`."""
    return _Planner(cluster, limits).run()


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of a plan: where the domain goes, and what each node strands after it."""

    name: str
    source: int
    target: int
    relief: float
    counts: list[int]


class _Planner:
    """One plan in the making. The state always has all steps so far."""

    def __init__(self, cluster: Cluster, limits: Limits) -> None:
        self.cluster, self.limits = cluster, limits
        self.state = State(cluster, limits.busy)
        self.reserve = Reserve(self.state)
        self.steps: list[_Step] = []

    def run(self) -> Plan:
        before = self._score()
        end = self._descend()
        if self.limits.trials and self.steps:
            self._refine()
            end = self._descend()
        after = self._score()
        return Plan(before=before, after=after, moves=self._told(), end=end)

    def _score(self) -> Score:
        return self.state.score(self.reserve.total)

    def _descend(self) -> str:
        """Add steps until none is worth it. Returns why there are no more."""
        while len(self.steps) < self.limits.moves:
            step, end = self._best({each.name for each in self.steps})
            if step is None:
                return end
            self._make(step)
        return f"the plan has its most moves, {self.limits.moves}"

    def _make(self, step: _Step) -> None:
        self.state.move(step.name, step.target)
        self.reserve.moved(step.source, step.target, step.counts)
        self.steps.append(step)

    # ---- one step
    def _best(self, settled: Collection[str]) -> tuple[_Step | None, str]:
        """Return the best next step, or None and the reason."""
        if self.reserve.total:
            step = self._mending(settled)
            if step is not None:
                return step, ""
        found = candidates(self.state, self.limits, settled)
        relieving = [each for each in found if each.relief >= RELIEF]
        if relieving:
            step = self._first(relieving)
            if step is not None:
                return step, ""
        step = self._first(found)
        if step is not None:
            return step, ""
        if found:
            return None, "every move that is left would leave domains without a place after the loss of a node"
        return None, "no further move gains enough"

    def _first(self, found: list[Candidate]) -> _Step | None:
        """Return the best candidate that does not make N+1 worse."""
        heapq.heapify(found)
        for _ in range(min(CHECKS, len(found))):
            each = heapq.heappop(found)
            counts = self.reserve.after(each.name, each.target)
            if counts is not None:
                return _Step(each.name, each.source, each.target, each.relief, counts)
        return None

    def _mending(self, settled: Collection[str]) -> _Step | None:
        """Return the step that gives most stranded domains a place; None if no step does."""
        found = candidates(self.state, self.limits, settled, bare=True)
        tried = heapq.nsmallest(MENDING_CHECKS, found)
        domains = self.cluster.domains
        failing = [each for each in found if self.reserve.counts[each.source]]
        tried += heapq.nsmallest(MENDING_CHECKS, failing, key=lambda each: (-domains[each.name].memory, each))
        best: tuple[float, Candidate, list[int]] | None = None
        cores = sum(node.cores for node in self.state.nodes[: self.state.count])
        for each in tried:
            counts = self.reserve.after(each.name, each.target)
            mended = self.reserve.total - sum(counts) if counts is not None else 0
            if counts is None or mended <= 0 or mended * WEIGHT_STRANDED + each.gain <= 0:
                continue
            rank = each.rank - mended * WEIGHT_STRANDED * EVENNESS * cores * HORIZON_S
            if best is None or (rank, each) < best[:2]:
                best = rank, each, counts
        if best is None:
            return None
        _, each, counts = best
        return _Step(each.name, each.source, each.target, each.relief, counts)

    # ---- better moves for the same number of moves
    def _refine(self) -> None:
        """Take steps out of the plan, fill the gap anew, and keep what makes the plan better. First single steps, then
        several that are ever further apart. Ends when the trials are used up."""
        trials = self.limits.trials
        distance = since = place = 0  # 0: one step at a time
        while trials > 0 and len(self.steps) > distance:
            trials -= 1
            count = len(self.steps)
            out = {(place + each * distance) % count for each in range(1 + (place + distance) % REMOVED_MAX)}
            place += 1
            if self._replace(out):
                distance = since = 0
            elif (since := since + 1) >= count:
                distance, since = distance + 1, 0

    def _replace(self, out: Collection[int]) -> bool:
        """Try to replace the steps at `out` by better ones. Returns whether that made a better plan."""
        steps, goal, pain = list(self.steps), self._score().total, self.state.pain()
        wanted = {each.name: each.target for place, each in enumerate(steps) if place not in out}
        old = {each.name: each.target for place, each in enumerate(steps) if place in out}
        for place in out:
            self.state.move(steps[place].name, steps[place].source)
        new = self._fill(wanted, old)
        better = self.state.score(self.reserve.total).total < goal - BETTER and self.state.pain() <= pain + NOISE
        for name in new.keys() | old.keys():
            self.state.move(name, old.get(name, self.state.index[self.cluster.domains[name].node]))
        if not better:
            return False
        if self._replay(wanted | new) and self._score().total < goal - BETTER and self.state.pain() <= pain + NOISE:
            return True
        self._back_to(steps)
        return False

    def _fill(self, kept: Mapping[str, int], old: Mapping[str, int]) -> dict[str, int]:
        """Move domains in the state until the plan has its most moves or nothing gains enough; return the moves. The
        first differs from `old`. N+1 is not checked."""
        new: dict[str, int] = {}
        while len(kept) + len(new) < self.limits.moves:
            found = candidates(self.state, self.limits, kept.keys() | new.keys())
            if not new:
                found = [each for each in found if old.get(each.name) != each.target]
            if not found:
                break
            best = min(found)
            self.state.move(best.name, best.target)
            new[best.name] = best.target
        return new

    def _rewind(self) -> None:
        for step in reversed(self.steps):
            self.state.move(step.name, step.source)
        self.steps = []
        self.reserve.renew()

    def _back_to(self, steps: Sequence[_Step]) -> None:
        self._rewind()
        for step in steps:
            self._make(step)

    def _replay(self, wanted: Mapping[str, int]) -> bool:
        """Make exactly the moves of `wanted` from the start, the best first. Returns False if one of them is not
        allowed or not worth its cost at its turn."""
        self._rewind()
        left = dict(wanted)
        while left:
            step = self._first(only(self.state, self.limits, left))
            if step is None:
                return False
            self._make(step)
            del left[step.name]
        return True

    # ---- the plan in words
    def _told(self) -> tuple[Move, ...]:
        """Return the moves, each with the score after it. The state is played from the start again."""
        steps = list(self.steps)
        self._rewind()
        moves = []
        for step in steps:
            domain = self.cluster.domains[step.name]
            before = words.Look.at(self.state, self.reserve.total, step.source, step.target)
            self._make(step)
            after = words.Look.at(self.state, self.reserve.total, step.source, step.target)
            source, target = self.state.nodes[step.source], self.state.nodes[step.target]
            moves.append(
                Move(
                    domain=step.name,
                    source=source.name,
                    target=target.name,
                    score=self._score(),
                    relieves=max(0.0, step.relief),
                    copied=domain.memory,
                    seconds=domain.memory / self.cluster.link,
                    why=words.why(before, after, source, target, self.limits.busy),
                )
            )
        return tuple(moves)
