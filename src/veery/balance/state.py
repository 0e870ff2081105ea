"""The figures of a cluster while a plan is made. A move changes a few sums, so that its effect is known without looking
at the other nodes. Pure."""

from __future__ import annotations

import math
from collections import Counter

from veery.balance.model import Cluster, Domain, Score
from veery.model.ha import GroupKind

WEIGHT_MEMORY = 1.0
WEIGHT_VCPUS = 1.0
WEIGHT_LOAD = 1.0
WEIGHT_CONFLICT = 2.0
WEIGHT_STRANDED = 1.0


class State:
    """Where each domain runs, and the sums that follow. Nodes have indexes; nodes that are not in service come last.

    The lists of a node: `free` MiB, `vcpus` and `load` (cores), and the same three as shares."""

    def __init__(self, cluster: Cluster, busy: float = 0.80) -> None:
        self.cluster, self.busy = cluster, busy
        ordered = sorted(cluster.nodes.values(), key=lambda node: (not node.in_service, node.name))
        self.nodes = tuple(ordered)
        self.index = {node.name: place for place, node in enumerate(ordered)}
        self.count = sum(node.in_service for node in ordered)
        self.free = [node.room for node in ordered]
        self.vcpus = [0] * len(ordered)
        self.load = [node.load for node in ordered]
        self.on: list[set[str]] = [set() for _ in ordered]
        self.where: dict[str, int] = {}
        self.members: dict[str, Counter[int]] = {name: Counter() for name in cluster.groups}
        self.allowed = {
            name: frozenset(self.index[each] for each in group.nodes if each in self.index)
            for name, group in cluster.groups.items()
            if group.nodes
        }
        for name in sorted(cluster.domains):  # sums of floats depend on their order
            domain = cluster.domains[name]
            self._put(domain, self.index[domain.node])
        self._sum()

    def _put(self, domain: Domain, place: int) -> None:
        self.free[place] -= domain.memory
        self.vcpus[place] += domain.vcpus
        self.load[place] += domain.load
        self.on[place].add(domain.name)
        self.where[domain.name] = place
        for group in domain.groups:
            self.members[group][place] += 1

    def _take(self, domain: Domain) -> int:
        place = self.where[domain.name]
        self.free[place] += domain.memory
        self.vcpus[place] -= domain.vcpus
        self.load[place] -= domain.load
        self.on[place].remove(domain.name)
        for group in domain.groups:
            self.members[group][place] -= 1
        return place

    def _sum(self) -> None:
        """Compute every sum anew. Called after each move of a plan: rounding errors do not add up."""
        used = range(self.count)
        nodes = self.nodes
        self.memory_share = [self.free[each] / nodes[each].memory for each in used]
        self.vcpus_share = [self.vcpus[each] / nodes[each].cores for each in used]
        self.load_share = [self.load[each] / nodes[each].cores for each in used]
        self.sums = tuple(
            (math.fsum(shares), math.fsum(share * share for share in shares))
            for shares in (self.memory_share, self.vcpus_share, self.load_share)
        )

    def move(self, name: str, target: int) -> None:
        """Move a domain to node `target`."""
        self.shift(name, target)
        self._sum()

    def shift(self, name: str, target: int) -> None:
        """Move a domain to node `target`, but leave the shares and sums of the score as they are."""
        domain = self.cluster.domains[name]
        self._take(domain)
        self._put(domain, target)

    # ---- the score
    def spread(self) -> tuple[float, float, float]:
        """Return the standard deviations of free memory, vcpus and load."""
        memory, vcpus, load = (deviation(total, squares, self.count) for total, squares in self.sums)
        return memory, vcpus, load

    def score(self, stranded: int) -> Score:
        """Return the score, given how many domains N+1 strands."""
        memory, vcpus, load = self.spread()
        conflicts = self.conflicts()
        total = WEIGHT_MEMORY * memory + WEIGHT_VCPUS * vcpus + WEIGHT_LOAD * load
        total += WEIGHT_CONFLICT * conflicts + WEIGHT_STRANDED * stranded
        return Score(total=total, memory=memory, vcpus=vcpus, load=load, conflicts=conflicts, stranded=stranded)

    # ---- need
    def missing(self, place: int, more: float = 0.0) -> float:
        """Return the cores that node `place` lacks, with `more` load than now."""
        return max(0.0, self.load[place] + more - self.busy * self.nodes[place].cores)

    def pain(self) -> float:
        """Return the cores that the nodes in service lack."""
        return math.fsum(self.missing(place) for place in range(self.count))

    # ---- rules
    def conflicts(self) -> int:
        """Return how many domains break the rule of a group."""
        return sum(self.broken(name) for name in self.members)

    def broken(self, name: str) -> int:
        """Return how many members of group `name` would have to move to keep its rule."""
        members = [count for count in self.members[name].values() if count > 0]
        if self.cluster.groups[name].kind is GroupKind.APART:
            wrong = sum(count - 1 for count in members)
        else:
            wrong = sum(members) - max(members, default=0)
        allowed = self.allowed.get(name)
        if allowed is not None:
            wrong += sum(count for place, count in self.members[name].items() if count > 0 and place not in allowed)
        return wrong

    def conflict_change(self, domain: Domain, source: int, target: int) -> int | None:
        """Return by how much a move changes `conflicts`; None if it breaks a rule that was kept, or makes one worse."""
        change = 0
        for name in domain.groups:
            allowed = self.allowed.get(name)
            if allowed is not None and target not in allowed:
                return None
            members = self.members[name]
            if self.cluster.groups[name].kind is GroupKind.APART:
                more = (members[target] > 0) - (members[source] > 1)
                more -= allowed is not None and source not in allowed
            else:
                more = -self.broken(name)
                members[source] -= 1
                members[target] += 1
                more += self.broken(name)
                members[source] += 1
                members[target] -= 1
            if more > 0:
                return None
            change += more
        return change

    def in_conflict(self) -> frozenset[str]:
        """Return the domains of the groups whose rule is broken."""
        bad = {name for name in self.members if self.broken(name)}
        if not bad:
            return frozenset()
        return frozenset(each.name for each in self.cluster.domains.values() if not bad.isdisjoint(each.groups))


def deviation(total: float, squares: float, count: int) -> float:
    """Return the standard deviation of `count` values, given their sum and the sum of their squares."""
    if count == 0:
        return 0.0
    mean = total / count
    return math.sqrt(max(0.0, squares / count - mean * mean))
