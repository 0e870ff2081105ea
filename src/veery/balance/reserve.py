"""N+1: how many domains would find no place after the loss of one node. Pure.

After a loss, the largest domain is placed first, each on the node with the most free memory, as the brain does. Of n
domains only the n + 1 emptiest nodes can receive one, so the check of one loss need not look at all nodes."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from veery.balance.model import Domain
from veery.balance.state import State
from veery.model.ha import GroupKind


@dataclass(frozen=True, slots=True)
class Parcel:
    """Domains that must be placed on one node: one domain, or the members of a strict group that stays together."""

    memory: int
    names: tuple[str, ...]
    groups: tuple[str, ...]


class Reserve:
    """The domains that each node strands, for a State that changes by moves."""

    def __init__(self, state: State) -> None:
        self._state = state
        groups = state.cluster.groups
        self._apart = {name for name, each in groups.items() if each.strict and each.kind is GroupKind.APART}
        self._together = {name for name, each in groups.items() if each.strict and each.kind is GroupKind.TOGETHER}
        self._binding = self._apart | self._together | set(state.allowed)
        self._parcels: list[tuple[Parcel, ...] | None] = [None] * len(state.nodes)
        self.counts = self._all()

    @property
    def total(self) -> int:
        """The domains that are stranded by the loss of their node."""
        return sum(self.counts)

    def renew(self) -> None:
        """Compute every count anew, after the state was changed."""
        self._parcels = [None] * len(self._state.nodes)
        self.counts = self._all()

    def after(self, name: str, target: int) -> list[int] | None:
        """Return the counts after a move; None if any node would strand more than now. The state is as before."""
        state = self._state
        source = state.where[name]
        kept = self._parcels[source], self._parcels[target]
        loads = state.load[source], state.load[target]
        state.shift(name, target)
        self._parcels[source] = self._parcels[target] = None
        counts = self._bounded(target)
        state.shift(name, source)
        state.load[source], state.load[target] = loads  # without rounding errors
        self._parcels[source], self._parcels[target] = kept
        return counts

    def moved(self, source: int, target: int, counts: list[int]) -> None:
        """Note a move that the state has made, with the counts that `after` returned for it."""
        self._parcels[source] = self._parcels[target] = None
        self.counts = counts

    # ---- one loss
    def _all(self) -> list[int]:
        order = self._order()
        return [self._stranded(lost, order) for lost in range(self._state.count)]

    def _bounded(self, first: int) -> list[int] | None:
        """Return every count, or None as soon as one is above its present value. `first`: the node that most likely
        is."""
        order = self._order()
        known = self._stranded(first, order)
        if known > self.counts[first]:
            return None
        counts = []
        for lost in range(self._state.count):
            count = known if lost == first else self._stranded(lost, order)
            if count > self.counts[lost]:
                return None
            counts.append(count)
        return counts

    def _order(self) -> list[tuple[int, int]]:
        """Return (-free, node) of the nodes in service, the emptiest first."""
        return sorted((-free, place) for place, free in enumerate(self._state.free[: self._state.count]))

    def _stranded(self, lost: int, order: list[tuple[int, int]]) -> int:
        parcels = self._parcels[lost]
        if parcels is None:
            parcels = self._parcels[lost] = self._pack(lost)
        if any(parcel.groups for parcel in parcels):
            return self._stranded_by_rules(lost, order, parcels)
        heap = [each for each in order[: len(parcels) + 2] if each[1] != lost]  # sorted, so it is a heap
        stranded = 0
        for parcel in parcels:
            if heap and -heap[0][0] >= parcel.memory:
                heapq.heapreplace(heap, (heap[0][0] + parcel.memory, heap[0][1]))
            else:
                stranded += len(parcel.names)
        return stranded

    def _stranded_by_rules(self, lost: int, order: list[tuple[int, int]], parcels: tuple[Parcel, ...]) -> int:
        heap = [each for each in order if each[1] != lost]
        placed: dict[str, Counter[int]] = {}
        stranded = 0
        for parcel in parcels:
            passed = []
            while heap and -heap[0][0] >= parcel.memory and not self._permits(parcel, heap[0][1], lost, placed):
                passed.append(heapq.heappop(heap))
            if heap and -heap[0][0] >= parcel.memory:
                free, place = heap[0]
                heapq.heapreplace(heap, (free + parcel.memory, place))
                for group in parcel.groups:
                    placed.setdefault(group, Counter())[place] += len(parcel.names)
            else:
                stranded += len(parcel.names)
            for each in passed:
                heapq.heappush(heap, each)
        return stranded

    def _permits(self, parcel: Parcel, place: int, lost: int, placed: dict[str, Counter[int]]) -> bool:
        """Return whether the rules let a restart use node `place`, while node `lost` is away."""
        for group in parcel.groups:
            allowed = self._state.allowed.get(group)
            if allowed is not None and place not in allowed:
                return False
            here = self._state.members[group][place] + placed.get(group, Counter())[place]
            if group in self._apart and here:
                return False
            if group in self._together:
                others = self._state.members[group]
                if here < max((count for each, count in others.items() if each != lost), default=0):
                    return False
        return True

    def _pack(self, lost: int) -> tuple[Parcel, ...]:
        """Return what must be restarted if node `lost` is lost, the largest first."""
        domains = self._state.cluster.domains
        blocks: dict[str, list[Domain]] = {}
        parcels = []
        for name in self._state.on[lost]:
            domain = domains[name]
            if not domain.restart or self._bound(domain, lost):
                continue
            block = next((group for group in domain.groups if group in self._together), "")
            if block:
                blocks.setdefault(block, []).append(domain)
            else:
                parcels.append(Parcel(domain.memory, (name,), self._rules((domain,))))
        for members in blocks.values():
            names = tuple(sorted(each.name for each in members))
            parcels.append(Parcel(sum(each.memory for each in members), names, self._rules(tuple(members))))
        parcels.sort(key=lambda each: (-each.memory, each.names))
        return tuple(parcels)

    def _bound(self, domain: Domain, place: int) -> bool:
        """Return whether a group lets the domain run on node `place` only: no reserve elsewhere can help it."""
        return any(self._state.allowed.get(group) == frozenset((place,)) for group in domain.groups)

    def _rules(self, domains: tuple[Domain, ...]) -> tuple[str, ...]:
        """Return the groups whose rules a restart of `domains` must keep."""
        return tuple(sorted({group for each in domains for group in each.groups} & self._binding))
