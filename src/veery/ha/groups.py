"""Groups of domains: which nodes they may run on, and whether they are kept apart or together.

The brain follows a group when it places a domain (ha/placement.py). It does not move running domains to meet a
group."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from veery.cluster.keys import GROUPS, NODES, POLICIES
from veery.cluster.store import Delete, Store, StoreUnavailable, Unchanged
from veery.errors import NotFound, Refused
from veery.model.ha import Group, GroupKind
from veery.model.node import Node, Role

ATTEMPTS = 8  # an attempt fails when another change gets in between


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group: its rule and its sorted domains. `made` is False if no rule was ever set; then the default applies."""

    name: str
    rule: Group
    made: bool
    domains: tuple[str, ...] = ()


async def every(store: Store) -> tuple[GroupStatus, ...]:
    """Return the groups that have a rule and those that domains name. Raises StoreUnavailable."""
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
    """Set the rule of group `name`; arguments that are None keep their value. `nodes` empty: all hypervisors.

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
    """Delete the rule of group `name`. Raises Refused if there is none, and while domains are in the group."""
    entry = await store.get(GROUPS.key(name))
    if entry is None:
        raise NotFound(f"no rule for group {name!r}", hint="veery group list shows the groups")
    members = await _members(store, name)
    if members:
        raise Refused(
            f"group {name} contains {_names(members)}", hint="first remove them with --group '': veery ha set --help"
        )
    await store.commit([Unchanged(GROUPS.key(name), entry.revision)], [Delete(GROUPS.key(name))])


async def require_met(store: Store, domain: str, name: str) -> None:
    """Raise Refused if group `name`, with `domain` in it, has a rule that cannot be met. Raises StoreUnavailable."""
    rule = await GROUPS.get(store, name)
    if rule is None:
        return
    known = await NODES.readable(store)
    if rule.nodes and not _usable(rule, known):
        raise Refused(
            f"domain {domain}: group {name} allows only {', '.join(rule.nodes)}, and no such node runs domains",
            hint=f"the nodes are {', '.join(known)}",
        )
    _check_met(name, rule, known, sorted({*await _members(store, name), domain}))


def _check_nodes(name: str, rule: Group, known: dict[str, Node]) -> None:
    for node in rule.nodes:
        if node not in known:
            raise Refused(f"group {name}: no node {node!r}", hint=f"the nodes are {', '.join(known)}")
        if not known[node].has(Role.HYPERVISOR):
            raise Refused(f"group {name}: {node} runs no domains", hint="veery node list shows the nodes that do")


def _check_met(name: str, rule: Group, known: dict[str, Node], members: list[str]) -> None:
    """Raise Refused if a strict group has more domains to keep apart than nodes."""
    nodes = _usable(rule, known)
    if rule.strict and rule.kind is GroupKind.APART and len(members) > len(nodes):
        raise Refused(
            f"group {name} cannot be met: {len(members)} domains ({_names(members)}) strictly apart on "
            f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} ({_names(nodes)})",
            hint="allow more nodes, remove domains, or keep the rule only where possible: --loose",
        )


def _usable(rule: Group, known: dict[str, Node]) -> list[str]:
    """Return the hypervisors that `rule` allows."""
    return [
        name for name, node in known.items() if node.has(Role.HYPERVISOR) and (not rule.nodes or name in rule.nodes)
    ]


async def _members(store: Store, name: str) -> list[str]:
    return sorted(domain for domain, policy in (await POLICIES.readable(store)).items() if policy.group == name)


def _names(names: list[str]) -> str:
    """Return the names in one line, at most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
