"""Finds the domains that would have no place if one more node were lost. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from veery.ha.context import order, restarts
from veery.model.ha import ClusterView, DomainView, Group, GroupKind

NO_GROUP = Group()


def stranded(view: ClusterView, usable: Iterable[str], homes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return, for each node whose loss the others could not absorb, the domains that would find no place. Empty if any
    one node may be lost (N+1).

    `homes`: domain to its future node. Only domains that would be restarted count. Domains whose disks are files of
    their node do not count, because no other node can ever run them. The domains are placed as the brain would place
    them."""
    nodes = tuple(usable)
    held: dict[str, list[DomainView]] = {node: [] for node in nodes}
    free = {node: reading.room if (reading := view.nodes[node].reading) else 0 for node in nodes}
    groups: dict[str, Counter[str]] = {}
    for name, node in homes.items():
        domain = view.domains[name]
        if node not in free:
            continue
        free[node] -= domain.memory
        if domain.ha.group:
            groups.setdefault(domain.ha.group, Counter())[node] += 1
        if restarts(domain) and not domain.tied:
            held[node].append(domain)
    found = {lost: _without_place(view, lost, held[lost], free, groups) for lost in nodes}
    return {lost: names for lost, names in found.items() if names}


def _without_place(
    view: ClusterView,
    lost: str,
    domains: list[DomainView],
    free: Mapping[str, int],
    groups: Mapping[str, Counter[str]],
) -> tuple[str, ...]:
    left = {node: memory for node, memory in free.items() if node != lost}
    lie: dict[str, Counter[str]] = {}
    for name in {domain.ha.group for domain in domains if domain.ha.group}:
        lie[name] = Counter({node: count for node, count in groups[name].items() if node != lost})
    waiting = Counter[str]()
    for domain in domains:
        waiting[domain.ha.group] += domain.memory
    missing = []
    for domain in sorted(domains, key=order):
        group = view.groups.get(domain.ha.group, NO_GROUP) if domain.ha.group else NO_GROUP
        where = lie.get(domain.ha.group, Counter())
        fit = [node for node in sorted(left) if left[node] >= domain.memory and _allowed(group, where, node)]
        if group.kind is GroupKind.TOGETHER:  # prefer nodes with room for the whole group
            fit = [node for node in fit if left[node] >= waiting[domain.ha.group]] or fit
        waiting[domain.ha.group] -= domain.memory
        if not fit:
            missing.append(domain.name)
            continue
        best = max(fit, key=left.__getitem__)
        left[best] -= domain.memory
        where[best] += 1
    return tuple(missing)


def _allowed(group: Group, where: Counter[str], node: str) -> bool:
    """Return what placement.Book.refuses decides about a group, without the reasons."""
    if group.nodes and node not in group.nodes:
        return False
    if not group.strict:
        return True
    if group.kind is GroupKind.APART:
        return where[node] == 0
    return where[node] >= max(where.values(), default=0)
