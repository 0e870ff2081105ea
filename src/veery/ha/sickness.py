"""Decides which sick nodes are emptied now, and why the others are not. Pure.

A verdict empties a node only if the cluster can bear it: one node at a time, with room left for the loss of one more,
and never for a sign that many nodes show at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from veery.ha.commoncause import COMMON_S, common_signs, hypervisors, is_common
from veery.ha.context import DecisionContext
from veery.ha.states import NodeState
from veery.ha.survival import stranded
from veery.model.ha import ClusterView, DomainView, Policy
from veery.model.verdict import NodeVerdict

WAIT_S = 30.0  # gives other nodes time to show the same sign, if its cause may lie outside of the node
FAILED_MOVES_MAX = 2  # failed moves out of a sick node, after which the brain stops trying


def held_back(context: DecisionContext) -> dict[str, str]:
    """Return the sick nodes that are not emptied now, each with the reason."""
    sick = [name for name, state in context.states.items() if state is NodeState.SICK]
    if not sick:
        return {}
    held: dict[str, str] = {}
    common = common_signs(context.view)
    waiting = []
    for name in sick:
        why = _common_cause(context, name, common) or _failed(context, name) or _reserve(context, name)
        if why := why or _too_early(context, name):
            held[name] = why
        elif _has_way_out(context, name):
            waiting.append(name)
    waiting.sort(key=lambda name: _turn(context, name))
    most = at_once(context.view)
    for name in waiting[most:]:
        held[name] = f"it waits for {_named(waiting[:most])}: at most {most} at a time"
    return held


def at_once(view: ClusterView) -> int:
    """Return how many nodes may be emptied at a time because of their sensors."""
    return max(1, len(hypervisors(view)) // 4)


def leaving_order(domain: DomainView) -> tuple[int, int, str]:
    """Return the sort key for leaving a sick node: higher priority first, then less memory, which is copied sooner."""
    return -domain.ha.priority, domain.memory, domain.name


def may_leave(domain: DomainView) -> bool:
    """Return True if the brain may move the domain away from a sick node."""
    return not domain.unreadable and domain.ha.policy is not Policy.OFF


def _turn(context: DecisionContext, name: str) -> tuple[bool, bool, float, str]:
    health = context.view.nodes[name].health
    return not context.out[name], not health.severe, health.since, name  # nodes that are being emptied finish first


def _has_way_out(context: DecisionContext, name: str) -> bool:
    domains = [each for each in context.on[name] if may_leave(each)]
    return any(context.busy(each) or context.book.find(each, avoid=(name,)) for each in domains)


# ---- one cause for many
def _common_cause(context: DecisionContext, name: str, common: dict[str, frozenset[str]]) -> str:
    asking = {each.sensor for each in context.view.nodes[name].health.signs if each.asks is NodeVerdict.EVACUATE}
    shared = [sensor for sensor in sorted(asking) if name in common.get(sensor, ())]
    if len(shared) < len(asking) or not shared:
        return ""
    nodes = sorted(frozenset().union(*(common[sensor] for sensor in shared)))
    return f"{_named(nodes)} show the same ({', '.join(shared)}) within {COMMON_S / 60:.0f} minutes: a common cause"


def shared_quarantine(context: DecisionContext, name: str) -> str:
    """Return why a node in quarantine is given domains all the same: it shares the cause with others. "" if it is
    not."""
    if context.view.nodes[name].health.verdict is not NodeVerdict.QUARANTINE:
        return ""
    common = common_signs(context.view)
    if not is_common(context.view, name, common):
        return ""
    asking = [each for each in context.view.nodes[name].health.signs if each.asks is NodeVerdict.QUARANTINE]
    nodes = sorted(frozenset().union(*(common[each.sensor] for each in asking)))
    return f"{_named(nodes)} show the same within {COMMON_S / 60:.0f} minutes: a common cause"


def _too_early(context: DecisionContext, name: str) -> str:
    """Return why the node must wait: other nodes still have time to show the same sign. "" if they have not."""
    health = context.view.nodes[name].health
    asking = [each for each in health.signs if each.asks is NodeVerdict.EVACUATE]
    if not all(each.shared for each in asking) or len(hypervisors(context.view)) < 2:
        return ""
    age_s = context.view.ages.get(f"health/{name}", max(0.0, context.now - health.since))
    return f"waits {WAIT_S:g} s, in case other nodes show the same" if age_s < WAIT_S else ""


# ---- moves that fail
def _failed(context: DecisionContext, name: str) -> str:
    """Return why no more moves out of the node are tried; "" if they still are."""
    count, last = 0, ""
    for domain in context.on[name]:
        run = domain.run
        if run is not None and run.unmoved and _since_then(context, name, domain):
            count += run.unmoved
            last = f"{domain.name}: {run.error}"
    if count < FAILED_MOVES_MAX:
        return ""
    return f"{count} moves out of it have failed ({last}): veery node drain {name} tries again"


def _since_then(context: DecisionContext, name: str, domain: DomainView) -> bool:
    """Return True if the run record of `domain` was written after the verdict on its node."""
    view = context.view
    verdict, written = view.ages.get(f"health/{name}"), view.ages.get(f"domain/{domain.name}")
    if verdict is not None and written is not None:
        return written <= verdict
    return domain.run is not None and domain.run.at >= view.nodes[name].health.since


# ---- a place for the loss of one more
def _reserve(context: DecisionContext, name: str) -> str:
    """Return which loss the cluster could no longer survive once the node is empty; "" if that does not keep it from
    being emptied."""
    view = context.view
    rest = [each for each in context.usable if each != name]
    if view.nodes[name].health.severe or len(rest) < 2:
        return ""
    where = {each.name: each.owner.node for each in view.domains.values() if each.owner}
    before = {domain for names in stranded(view, rest, where).values() for domain in names}
    after = stranded(view, rest, {**where, **dict(_placed(context, name))})
    for lost, names in after.items():
        if new := [domain for domain in names if domain not in before]:
            return f"if {lost} were lost then, {_named(new)} would find no place"
    return ""


def _placed(context: DecisionContext, name: str) -> Iterator[tuple[str, str]]:
    book = context.book.copy()
    book.leave(name)
    for domain in sorted(context.on[name], key=leaving_order):
        if may_leave(domain) and (target := book.find(domain, avoid=(name,))):
            book.take(domain, target)
            yield domain.name, target


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
