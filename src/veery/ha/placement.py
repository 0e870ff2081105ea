"""Where a domain may run: memory, groups, what failed before. One `Book` a decision, so that what is given to one
domain is no longer there for the next. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from veery.model.ha import ClusterView, DomainView, Group, GroupKind
from veery.model.node import Role

NO_GROUP = Group()


class Book:
    """What each node has left, counted from the owner keys, the promises of moves and the orders under way.

    A node's room is what its last reading says: MiB for domains in all. A node that never gave one has none."""

    def __init__(self, view: ClusterView, usable: Iterable[str], leaving: Iterable[str] = ()) -> None:
        """`usable`: the nodes that may be given domains. `leaving`: those whose domains are to run elsewhere."""
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
        """A book of its own, in which what is given away is not given away here."""
        other = Book.__new__(Book)
        other._view, other._usable, other._emulating = self._view, self._usable, self._emulating
        other._leaving, other._free, other._count = set(self._leaving), dict(self._free), Counter(self._count)
        other._groups = defaultdict(lambda: defaultdict(set))
        for group, where in self._groups.items():
            for node, names in where.items():
                other._groups[group][node] = set(names)
        return other

    def free(self, node: str) -> int:
        """MiB left on `node`."""
        return self._free.get(node, 0)

    def leave(self, node: str) -> None:
        """The domains of `node` are to run elsewhere from now on."""
        self._leaving.add(node)

    def take(self, domain: DomainView, node: str) -> None:
        """`domain` is, or will be, on `node`."""
        self._free[node] = self._free.get(node, 0) - domain.memory
        self._count[node] += 1
        if domain.ha.group:
            self._groups[domain.ha.group][node].add(domain.name)

    def find(self, domain: DomainView, *, avoid: Iterable[str] = ()) -> str:
        """The best node for `domain`; "" where there is none. Nodes on which it failed come last,
        the latest failure last of all; then the group's
        wish, room for the rest of a group that lies together, the most memory left, the name."""
        shunned = set(avoid)
        failed = {node: place for place, node in enumerate(domain.run.failed, 1)} if domain.run else {}
        barred = self._emulating and domain.accelerator == "kvm"
        if not (domain.ha.group or domain.tied or failed or barred) and self._usable:
            best_node = max(self._usable, key=self._free.__getitem__)  # the usual case, quickly: names break ties
            if best_node not in shunned:
                return best_node if self._free[best_node] >= domain.memory else ""
        group = self._view.groups.get(domain.ha.group, NO_GROUP)
        rest = self._rest(domain, group)
        best, found = (0, 0, True, 0, ""), ""
        for node in self._usable:
            left = self._free[node] - domain.memory
            if node in shunned or self.refuses(domain, node):
                continue
            rank = (failed.get(node, 0), self._against(domain, node, group), left < rest, -left, node)
            if not found or rank < best:
                best, found = rank, node
        return found

    def why_not(self, domain: DomainView, *, avoid: Iterable[str] = ()) -> str:
        """Why `find` finds none, one clause a node: "test1 has 64 of 128 MiB left; test2 is drained"."""
        if domain.tied:
            return (
                "nobody knows which node has its disks" if domain.tied == "?" else f"only {domain.tied} has its disks"
            )
        shunned = set(avoid)
        words = [
            self.refuses(domain, node) or f"{node} is against group {domain.ha.group}"
            for node in self._usable
            if node not in shunned
        ]
        return "; ".join(words) or "no other node may be given domains"

    def refuses(self, domain: DomainView, node: str, *, apart_from: Collection[str] = ()) -> str:
        """Why `domain` may not be given to `node`; "" where it may. The members of its group on the nodes
        `apart_from` are to follow it, so they do not hold a group back that lies together."""
        if domain.tied and node != domain.tied:
            return f"{node} does not have its disks"
        if domain.accelerator == "kvm" and node in self._emulating:  # it would run, and too slowly to be of use
            return f"{node} has no KVM, under which it ran"
        group = self._view.groups.get(domain.ha.group, NO_GROUP)
        if group.nodes and node not in group.nodes:
            return f"{node} is not of group {domain.ha.group}"
        if self._free[node] < domain.memory:
            return f"{node} has {max(0, self._free[node])} of {domain.memory} MiB left"
        if not group.strict:
            return ""
        if group.kind is GroupKind.APART:
            broken = self._against(domain, node, group) > 0
        else:  # of a group that is split already, the largest part counts
            members = self._members(domain, apart_from)
            broken = members.get(node, 0) < max(members.values(), default=0)
        return f"{node} is against group {domain.ha.group}" if broken else ""

    def _against(self, domain: DomainView, node: str, group: Group) -> int:
        """How many of its group speak against `node`."""
        if not domain.ha.group:
            return 0
        if group.kind is GroupKind.APART:
            return len(self._groups[domain.ha.group][node] - {domain.name})
        members = self._members(domain, ())
        return sum(members.values()) - members.get(node, 0)

    def _members(self, domain: DomainView, without: Collection[str]) -> dict[str, int]:
        """How many others of its group each node has that they are to stay on."""
        where = self._groups[domain.ha.group]
        return {
            node: len(names - {domain.name})
            for node, names in where.items()
            if node not in self._leaving and node not in without
        }

    def _rest(self, domain: DomainView, group: Group) -> int:
        """MiB of the others of a group that lies together which are to get a place too."""
        if not domain.ha.group or group.kind is GroupKind.APART:
            return 0
        where = self._groups[domain.ha.group]
        placed = {name for node, names in where.items() if node not in self._leaving for name in names}
        leaving = {name for node, names in where.items() if node in self._leaving for name in names} - placed
        return sum(self._view.domains[name].memory for name in leaving - {domain.name})


def _places(view: ClusterView, domain: DomainView) -> set[str]:
    """The nodes whose memory a domain takes or is about to take."""
    places = {domain.owner.node} if domain.owner else set()
    if domain.move:
        places.add(domain.move.target)
    if domain.name in view.starting:
        places.add(view.starting[domain.name])
    if domain.name in view.moving:
        places.add(view.moving[domain.name][1])
    return places
