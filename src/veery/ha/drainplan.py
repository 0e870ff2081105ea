"""Whether a node can be drained: where each of its domains would go, and everything that stands in the way, at once.

Pure; `veery node drain --plan` shows it, and a drain is refused by it."""

from __future__ import annotations

from dataclasses import dataclass

from veery.ha.picture import Picture
from veery.ha.placement import weakest
from veery.ha.states import NodeState, usable
from veery.model.ha import ClusterView, Rules
from veery.model.node import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    """`moves`: (domain, target) in the order in which they begin, `side_by_side` of them at once. `blockers`: why it
    cannot be; `risks`: why it should not be, which `force` passes over. `warnings`: what is merely to be known."""

    node: str
    moves: tuple[tuple[str, str], ...] = ()
    side_by_side: int = 1
    blockers: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan(view: ClusterView, name: str, now: float, rules: Rules) -> DrainPlan:
    """What draining node `name` would come to, by `view`. An unknown node is a blocker too."""
    if name not in view.nodes:
        return DrainPlan(node=name, blockers=(f"no node {name!r}: the nodes are {', '.join(view.nodes)}",))
    if not view.quorum:
        return DrainPlan(node=name, blockers=("the store has no quorum: nothing can be moved",))
    picture = Picture.of(view, now, rules)
    blockers, moves = [], []
    state = picture.states[name]
    if view.nodes[name].absent is not None or state in (NodeState.RETURNING, NodeState.ADMITTING):
        blockers.append(f"node {name} is {state}: what runs there cannot be moved")
    picture.book.leave(name)
    rest = [other for other in usable(view, picture.states) if other != name]
    if not rest and view.nodes[name].record.has(Role.HYPERVISOR):
        blockers.append(f"no other node may be given domains: {name} is the last")
    blockers += [f"node {name}: {said}" for said in view.nodes[name].unreadable]
    for domain in sorted(picture.on[name], key=lambda each: (-each.memory, each.name)):
        if domain.unreadable:
            blockers += [f"domain {domain.name}: {said}" for said in domain.unreadable]
            continue
        target = picture.book.find(domain, avoid=(name,)) if rest else ""
        if target:
            picture.book.take(domain, target)
            moves.append((domain.name, target))
        elif rest:
            blockers.append(f"domain {domain.name}: {picture.book.why_not(domain, avoid=(name,))}")
    rank = {domain.name: place for place, domain in enumerate(picture.on[name])}
    moves.sort(key=lambda move: rank[move[0]])
    risks, warnings = _survival(view, rest, dict(moves)) if not blockers else ((), ())
    return DrainPlan(
        node=name,
        moves=tuple(moves),
        side_by_side=min(rules.out, max(1, len({target for _, target in moves})) * rules.into),
        blockers=tuple(blockers),
        risks=risks,
        warnings=warnings,
    )


def _survival(view: ClusterView, rest: list[str], moved: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(risks, warnings) about the loss of one more node. Of one that is left alone none can be lost: that is by
    nature so, and merely told; of several it is a risk if it is this drain that makes it so."""
    where = {each.name: each.owner.node for each in view.domains.values() if each.owner}
    if len(rest) == 1:
        return (), (f"{rest[0]} is left alone: until the drained node is back, none may be lost",)
    after = weakest(view, rest, {**where, **moved})
    if not after:
        return (), ()
    everyone = [name for name, node in view.nodes.items() if node.absent is None and node.record.has(Role.HYPERVISOR)]
    if weakest(view, everyone, where):
        return (), (f"the loss of {after} could not be carried, nor can one be before",)
    return (f"{after} could then not be lost: the others would not carry its domains",), ()
