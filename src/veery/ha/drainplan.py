"""The plan of a drain: where each domain of the node would go, and everything that prevents the drain, all at once.

Pure. `veery node drain --plan` shows it, and a drain is refused by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from veery.ha.context import DecisionContext, restarts
from veery.ha.placement import old_versions
from veery.ha.states import NodeState, usable
from veery.ha.survival import stranded
from veery.model.ha import ClusterView, Rules
from veery.model.node import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    """`moves`: (domain, target) in the order in which they begin, `side_by_side` of them at a time. `blockers`: why the
    node cannot be drained. `risks`: why it should not be; `force` overrides them. `warnings`: consequences that refuse
    nothing."""

    node: str
    moves: tuple[tuple[str, str], ...] = ()
    side_by_side: int = 1
    blockers: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan(
    view: ClusterView,
    name: str,
    now: float,
    rules: Rules,
    *,
    volumes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> DrainPlan:
    """Return the plan for draining node `name` in `view`. `volumes`: those that the node serves as a storage node, each
    with the domains that use it as a disk. An unknown node is a blocker too."""
    if name not in view.nodes:
        return DrainPlan(node=name, blockers=(f"no node {name!r}: the nodes are {', '.join(view.nodes)}",))
    if not view.quorum:
        return DrainPlan(node=name, blockers=("the store has no quorum: nothing can be moved",))
    context = DecisionContext.of(view, now, rules)
    blockers, moves = [], []
    state = context.states[name]
    if view.nodes[name].absent is not None or state in (NodeState.RETURNING, NodeState.ADMITTING):
        blockers.append(f"node {name} is {state}: its domains cannot be moved")
    context.book.leave(name)
    rest = [other for other in usable(view, context.states) if other != name]
    if not rest and view.nodes[name].record.has(Role.HYPERVISOR):
        old = "".join(f"; {each}" for each in old_versions(view, avoid=(name,)))
        blockers.append(f"no other node may receive domains: {name} is the last{old}")
    blockers += [f"node {name}: {said}" for said in view.nodes[name].unreadable]
    for domain in sorted(context.on[name], key=lambda each: (-each.memory, each.name)):
        if domain.unreadable:
            blockers += [f"domain {domain.name}: {said}" for said in domain.unreadable]
            continue
        if kept := context.kept(domain):
            blockers.append(f"domain {domain.name}: {kept}")
            continue
        target = context.book.find(domain, avoid=(name,)) if rest else ""
        if target:
            context.book.take(domain, target)
            moves.append((domain.name, target))
        elif rest:
            blockers.append(f"domain {domain.name}: {context.book.why_not(domain, avoid=(name,))}")
    rank = {domain.name: place for place, domain in enumerate(context.on[name])}
    moves.sort(key=lambda move: rank[move[0]])
    risks, warnings = _survival(view, rest, dict(moves)) if not blockers else ((), ())
    serving_risks, serving_warnings = _serving(view, name, volumes)
    return DrainPlan(
        node=name,
        moves=tuple(moves),
        side_by_side=min(rules.out, max(1, len({target for _, target in moves})) * rules.into),
        blockers=tuple(blockers),
        risks=risks + serving_risks,
        warnings=warnings + serving_warnings,
    )


def _survival(view: ClusterView, rest: list[str], moved: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (risks, warnings) about the loss of one more node.

    If one node remains alone, it can never be lost, so that is only a warning. With several nodes it is a risk if this
    drain causes it."""
    where = {each.name: each.owner.node for each in view.domains.values() if each.owner}
    if len(rest) == 1:
        return (), (f"only {rest[0]} remains: its loss could not be survived until the drained node is back",)
    after = stranded(view, rest, {**where, **moved})
    if not after:
        return (), ()
    everyone = [name for name, node in view.nodes.items() if node.absent is None and node.record.has(Role.HYPERVISOR)]
    before = {name for names in stranded(view, everyone, where).values() for name in names}
    for lost, names in after.items():
        if new := [name for name in names if name not in before]:
            return (f"if {lost} were lost then, {_named(new)} would find no place",), ()
    lost, names = next(iter(after.items()))
    return (), (f"if {lost} were lost, {_named(names)} would find no place, as before the drain",)


def _serving(view: ClusterView, name: str, volumes: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Return (risks, warnings) about the volumes that the node serves: a drain does not move them."""
    used = {volume: [each for each in domains if _runs(view, each)] for volume, domains in volumes.items()}
    busy = {volume: domains for volume, domains in used.items() if domains}
    risks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if busy:
        domains = sorted({each for names in busy.values() for each in names})
        risks = (
            f"{_named(domains)} would lose disks when {name} stops: it serves {_named(sorted(busy))}, and a drain does "
            f"not move volumes: veery volume move {sorted(busy)[0]} --help",
        )
    idle = [volume for volume in volumes if volume not in busy]
    if idle:
        warnings = (
            f"{name} serves {_named(idle)}, which no running domain uses: they are not served while it is down",
        )
    return risks, warnings


def _runs(view: ClusterView, name: str) -> bool:
    domain = view.domains.get(name)
    return domain is not None and (domain.owner is not None or restarts(domain))


def _named(names: Sequence[str]) -> str:
    """Return the names in one line, at most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
