"""Groups of domains: which nodes they may run on, and whether they are kept apart or together. The brain keeps to a
group when it places a domain (ha/placement.py); what runs already is not moved for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from veery.cluster.keys import GROUPS, NODES, POLICIES
from veery.cluster.store import Delete, Store, StoreUnavailable, Unchanged
from veery.errors import Refused
from veery.model.ha import Group, GroupKind
from veery.model.node import Node, Role

ATTEMPTS = 8  # each lost to somebody else's change


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group: its rule (`made` is False where none was ever set: the default holds) and its domains, sorted."""

    name: str
    rule: Group
    made: bool
    domains: tuple[str, ...] = ()


async def every(store: Store) -> tuple[GroupStatus, ...]:
    """Those that have a rule, and those that domains name. Raises StoreUnavailable."""
    rules, policies = await GROUPS.readable(store), await POLICIES.readable(store)
    members: dict[str, list[str]] = {name: [] for name in rules}
    for domain, policy in policies.items():
        if policy.group:
            members.setdefault(policy.group, []).append(domain)
    return tuple(
        GroupStatus(name=name, rule=rules.get(name, Group()), made=name in rules, domains=tuple(sorted(members[name])))
        for name in sorted(members)
    )


async def assign(
    store: Store,
    name: str,
    *,
    kind: GroupKind | None = None,
    nodes: Collection[str] | None = None,
    strict: bool | None = None,
) -> Group:
    """Set the rule of group `name`; what is None stays as it was. `nodes` empty: all hypervisors.

    Raises Refused for a node that is unknown or runs no domains, and for a rule that its domains cannot meet."""
    key = GROUPS.key(name)
    for _ in range(ATTEMPTS):
        entry = await store.get(key)
        old = GROUPS.value(entry) if entry else Group()
        new = replace(
            old,
            kind=old.kind if kind is None else kind,
            nodes=old.nodes if nodes is None else tuple(dict.fromkeys(nodes)),
            strict=old.strict if strict is None else strict,
        )
        known = await NODES.readable(store)
        _check_nodes(name, new, known)
        _check_met(name, new, known, await _members(store, name))
        if (await store.commit([Unchanged(key, entry.revision if entry else 0)], [GROUPS.put(name, new)])).held:
            return new
    raise StoreUnavailable(f"group {name} changes faster than it can be read", hint="try again")


async def delete(store: Store, name: str) -> None:
    """Take the rule of group `name` away. Raises Refused where there is none, and while domains are in it."""
    entry = await store.get(GROUPS.key(name))
    if entry is None:
        raise Refused(f"no rule for group {name!r}", hint="veery group list shows those there are")
    members = await _members(store, name)
    if members:
        raise Refused(
            f"group {name} has {_names(members)}", hint="take them out first, with --group '': veery ha set --help"
        )
    await store.commit([Unchanged(GROUPS.key(name), entry.revision)], [Delete(GROUPS.key(name))])


async def require_met(store: Store, domain: str, name: str) -> None:
    """Raises Refused where group `name`, with `domain` in it, has a rule that cannot be met; StoreUnavailable."""
    rule = await GROUPS.get(store, name)
    if rule is None:
        return
    known = await NODES.readable(store)
    if rule.nodes and not _usable(rule, known):
        raise Refused(
            f"domain {domain}: group {name} allows {', '.join(rule.nodes)} only, and none of them is a node",
            hint=f"the nodes are {', '.join(known)}",
        )
    _check_met(name, rule, known, sorted({*await _members(store, name), domain}))


def _check_nodes(name: str, rule: Group, known: dict[str, Node]) -> None:
    for node in rule.nodes:
        if node not in known:
            raise Refused(f"group {name}: no node {node!r}", hint=f"the nodes are {', '.join(known)}")
        if not known[node].has(Role.HYPERVISOR):
            raise Refused(f"group {name}: {node} runs no domains", hint="veery node list shows which do")


def _check_met(name: str, rule: Group, known: dict[str, Node], members: list[str]) -> None:
    """More domains than nodes cannot be kept strictly apart."""
    nodes = _usable(rule, known)
    if rule.strict and rule.kind is GroupKind.APART and len(members) > len(nodes):
        raise Refused(
            f"group {name} cannot be met: {len(members)} domains ({_names(members)}) strictly apart on "
            f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} ({_names(nodes)})",
            hint="name more nodes, take domains out, or leave it to be kept where possible: --loose",
        )


def _usable(rule: Group, known: dict[str, Node]) -> list[str]:
    """The hypervisors that `rule` allows."""
    return [
        name for name, node in known.items() if node.has(Role.HYPERVISOR) and (not rule.nodes or name in rule.nodes)
    ]


async def _members(store: Store, name: str) -> list[str]:
    return sorted(domain for domain, policy in (await POLICIES.readable(store)).items() if policy.group == name)


def _names(names: list[str]) -> str:
    """At most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
