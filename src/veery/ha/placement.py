"""Where a domain may run: memory, groups, and earlier failures. One `Book` serves one decision, so that room given to
one domain is gone for the next. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from veery.ha.states import outdated
from veery.model.ha import ClusterView, DomainView, Group, GroupKind
from veery.model.node import Role

NO_GROUP = Group()


class Book:
    """The room that each node has left, counted from the owner keys, the reservations of moves and the actions under
    way.

    A node's room is taken from its last reading: MiB for all domains. A node that never gave one has none."""

    def __init__(self, view: ClusterView, usable: Iterable[str], leaving: Iterable[str] = ()) -> None:
        """`usable`: the nodes that may receive domains. `leaving`: the nodes whose domains are leaving."""
        self._view = view
        self._leaving = set(leaving)
        self._usable = tuple(usable)
        self._free: dict[str, int] = {}
        self._count: Counter[str] = Counter()
        self._groups: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # group, node, domains
        for node in view.nodes.values():
            self._free[node.name] = node.reading.room if node.reading and node.record.has(Role.HYPERVISOR) else 0
        self._emulating = frozenset(name for name, node in view.nodes.items() if node.accelerator == "tcg")
        for domain in view.domains.values():
            for where in _places(view, domain):
                self.take(domain, where)

    def copy(self) -> Book:
        """Return an independent copy of this book."""
        other = Book.__new__(Book)
        other._view, other._usable, other._emulating = self._view, self._usable, self._emulating
        other._leaving, other._free, other._count = set(self._leaving), dict(self._free), Counter(self._count)
        other._groups = defaultdict(lambda: defaultdict(set))
        for group, where in self._groups.items():
            for node, names in where.items():
                other._groups[group][node] = set(names)
        return other

    def free(self, node: str) -> int:
        """Return the MiB left on `node`."""
        return self._free.get(node, 0)

    def leave(self, node: str) -> None:
        """Count the domains of `node` as leaving from now on."""
        self._leaving.add(node)

    def take(self, domain: DomainView, node: str) -> None:
        """Count `domain` as placed on `node`."""
        self._free[node] = self._free.get(node, 0) - domain.memory
        self._count[node] += 1
        if domain.ha.group:
            self._groups[domain.ha.group][node].add(domain.name)

    def find(self, domain: DomainView, *, avoid: Iterable[str] = ()) -> str:
        """Return the best node for `domain`, or "" if there is none.

        The order is: nodes without an earlier failure first and the latest failure last; then the wish of the group;
        then room for the rest of a group that stays together; then the most free memory; then the name."""
        avoided = set(avoid)
        failed = {node: place for place, node in enumerate(domain.run.failed, 1)} if domain.run else {}
        barred = self._emulating and domain.accelerator == "kvm"
        if not (domain.ha.group or domain.tied or failed or barred) and self._usable:
            best_node = max(self._usable, key=self._free.__getitem__)  # the usual case, quickly; names break ties
            if best_node not in avoided:
                return best_node if self._free[best_node] >= domain.memory else ""
        group = self._view.groups.get(domain.ha.group, NO_GROUP)
        rest = self._rest(domain, group)
        best, found = (0, 0, True, 0, ""), ""
        for node in self._usable:
            left = self._free[node] - domain.memory
            if node in avoided or self.refuses(domain, node):
                continue
            rank = (failed.get(node, 0), self._against(domain, node, group), left < rest, -left, node)
            if not found or rank < best:
                best, found = rank, node
        return found

    def why_not(self, domain: DomainView, *, avoid: Iterable[str] = ()) -> str:
        """Return why `find` finds no node, one clause for each node: "test1 has 64 of 128 MiB left; test2 is
        drained"."""
        if domain.tied:
            return (
                "no record names the node of its disks" if domain.tied == "?" else f"only {domain.tied} has its disks"
            )
        avoided = set(avoid)
        words = [
            self.refuses(domain, node) or f"{node} breaks the rule of group {domain.ha.group}"
            for node in self._usable
            if node not in avoided
        ]
        words += old_versions(self._view, avoid=avoided)
        return "; ".join(words) or "no other node may receive domains"

    def refuses(self, domain: DomainView, node: str, *, apart_from: Collection[str] = ()) -> str:
        """Return why `domain` may not be placed on `node`; "" if it may.

        The members of its group on the nodes `apart_from` will follow it, so they do not hold back a group that stays
        together."""
        if domain.tied and node != domain.tied:
            return f"{node} does not have its disks"
        if domain.accelerator == "kvm" and node in self._emulating:  # it would run there, but too slowly to be useful
            return f"{node} has no KVM, and the domain ran under KVM"
        group = self._view.groups.get(domain.ha.group, NO_GROUP)
        if group.nodes and node not in group.nodes:
            return f"{node} is not a node of group {domain.ha.group}"
        if self._free[node] < domain.memory:
            return f"{node} has {max(0, self._free[node])} of {domain.memory} MiB left"
        if not group.strict:
            return ""
        if group.kind is GroupKind.APART:
            broken = self._against(domain, node, group) > 0
        else:  # if the group is split already, its largest part counts
            members = self._members(domain, apart_from)
            broken = members.get(node, 0) < max(members.values(), default=0)
        return f"{node} breaks the rule of group {domain.ha.group}" if broken else ""

    def _against(self, domain: DomainView, node: str, group: Group) -> int:
        """Return how many domains of its group argue against `node`."""
        if not domain.ha.group:
            return 0
        if group.kind is GroupKind.APART:
            return len(self._groups[domain.ha.group][node] - {domain.name})
        members = self._members(domain, ())
        return sum(members.values()) - members.get(node, 0)

    def _members(self, domain: DomainView, without: Collection[str]) -> dict[str, int]:
        """Return how many other domains of its group stay on each node."""
        where = self._groups[domain.ha.group]
        return {
            node: len(names - {domain.name})
            for node, names in where.items()
            if node not in self._leaving and node not in without
        }

    def _rest(self, domain: DomainView, group: Group) -> int:
        """Return the MiB of the other domains of a group that stays together which still need a place."""
        if not domain.ha.group or group.kind is GroupKind.APART:
            return 0
        where = self._groups[domain.ha.group]
        placed = {name for node, names in where.items() if node not in self._leaving for name in names}
        leaving = {name for node, names in where.items() if node in self._leaving for name in names} - placed
        return sum(self._view.domains[name].memory for name in leaving - {domain.name})


def old_versions(view: ClusterView, *, avoid: Collection[str] = ()) -> list[str]:
    """Return a clause for each node whose version does not support the cluster's level, without the nodes `avoid`."""
    return [
        f"{name} can take in no domain: {trouble}"
        for name, node in sorted(view.nodes.items())
        if name not in avoid and (trouble := outdated(view, node))
    ]


def _places(view: ClusterView, domain: DomainView) -> set[str]:
    """Return the nodes whose memory the domain uses or is about to use."""
    places = {domain.owner.node} if domain.owner else set()
    if domain.move:
        places.add(domain.move.target)
    if domain.name in view.starting:
        places.add(view.starting[domain.name])
    if domain.name in view.moving:
        places.add(view.moving[domain.name][1])
    return places
