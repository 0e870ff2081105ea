"""Moves running domains: away from drained and sick nodes, and home again after a resume that asked for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from veery.ha import sickness
from veery.ha.context import DecisionContext, failed_tries, note, order, restarts, seconds
from veery.ha.sickness import leaving_order, may_leave
from veery.ha.states import IN_USE, NodeState
from veery.model.ha import Action, Clear, DomainView, End, IntentKind, Level, Move
from veery.model.verdict import HealthRecord, NodeVerdict


def drain(context: DecisionContext) -> Iterator[Action]:
    """Move every domain away from nodes that are being drained."""
    for name, state in context.states.items():
        if state is NodeState.DRAINING:
            yield from _away(context, name, "is drained", context.on[name])


def leave_sick(context: DecisionContext) -> Iterator[Action]:
    """Move domains away from sick nodes if the cluster can bear it, and report the health of nodes."""
    held = sickness.held_back(context)
    for name, state in context.states.items():
        health = context.view.nodes[name].health
        if state not in IN_USE:
            continue
        if cause := sickness.shared_quarantine(context, name):
            reason = f"{name} still receives domains ({health.reason}): {cause}"
            yield note(f"health/{name}", "common", reason, Level.ALARM)
        elif health.verdict is NodeVerdict.QUARANTINE:
            yield note(f"health/{name}", "quarantine", f"{name} receives no domains: {health.reason}", Level.WARNING)
        elif health.verdict is NodeVerdict.WELL and (withheld := health.withheld):
            what = "emptied" if withheld.would is NodeVerdict.EVACUATE else "given no domains"
            yield note(f"health/{name}", "would", f"{name} would be {what}: {withheld.text}", Level.WARNING)
        elif health.verdict is NodeVerdict.EVACUATE and name in held:
            reason = f"{name} is sick ({health.reason}), but is not emptied: {held[name]}"
            yield note(f"health/{name}", "sick-held", reason, Level.ALARM)
        elif health.verdict is NodeVerdict.EVACUATE:
            yield note(f"health/{name}", "sick", f"{name} is sick ({health.reason})", Level.ALARM)
        if state is NodeState.SICK and name not in held:
            domains = sorted((each for each in context.on[name] if may_leave(each)), key=leaving_order)
            yield from _away(context, name, f"is sick ({health.reason})", domains, verdict=health)


def _away(
    context: DecisionContext,
    name: str,
    why: str,
    domains: Sequence[DomainView],
    *,
    verdict: HealthRecord | None = None,
) -> Iterator[Action]:
    for domain in domains:
        subject = f"domain/{domain.name}"
        if context.busy(domain):
            continue
        if kept := context.kept(domain):
            yield note(subject, "stuck", f"{name} {why}; {kept}", Level.WARNING)
            continue
        if context.resting(subject):
            yield note(subject, "stuck", f"{name} {why}; {context.resting(subject)}", Level.WARNING)
            continue
        target = context.book.find(domain, avoid=(name,))
        if not target:
            reason = f"{name} {why}, but it stays: {context.book.why_not(domain, avoid=(name,))}"
            yield note(subject, "stuck", reason, Level.ALARM)
            continue
        yield from _move(context, domain, name, target, f"{name} {why}", verdict=verdict)


def _move(
    context: DecisionContext,
    domain: DomainView,
    source: str,
    target: str,
    why: str,
    *,
    homeward: bool = False,
    verdict: HealthRecord | None = None,
) -> Iterator[Action]:
    subject = f"domain/{domain.name}"
    if domain.owner is None:
        return
    if not context.may_move(source, target):
        yield note(subject, "queued", f"{why}: waits for a free slot to move to {target}")
        return
    context.count(source, target)
    context.book.take(domain, target)
    yield Move(
        subject=subject,
        reason=f"{why}: move to {target}, which then has {context.book.free(target)} MiB left",
        source=source,
        target=target,
        owner=domain.owner,
        homeward=homeward,
        urgent=verdict is not None and verdict.severe,
        verdict=verdict.reason if verdict else "",
        run=domain.run,
    )


def come_home(context: DecisionContext) -> Iterator[Action]:
    """Move domains home to a node whose resume asked for it. When all are home, clear the intent."""
    for name, node in context.view.nodes.items():
        intent = node.intent
        if intent is None or intent.kind is not IntentKind.RESUME or context.states[name] is not NodeState.PRESENT:
            continue
        left = 0
        for domain in sorted(context.view.domains.values(), key=order):
            if domain.run is None or domain.run.home != name:
                continue
            if domain.owner is None and not restarts(domain) and not context.busy(domain):
                continue  # it will not be started
            leaving = context.busy(domain)  # a domain that is still leaving is not home
            if domain.owner and domain.owner.node == name and not leaving:
                continue
            left += 1
            yield from _home(context, domain, name)
        if not left and f"node/{name}" not in context.view.acting:
            yield Clear(subject=f"node/{name}", reason="in use again, and all domains are home", intent=intent)


def _home(context: DecisionContext, domain: DomainView, home: str) -> Iterator[Action]:
    subject = f"domain/{domain.name}"
    if context.busy(domain) or domain.owner is None:
        return
    source = domain.owner.node
    if context.resting(subject):
        yield note(subject, "stuck", f"comes home to {home}; {context.resting(subject)}", Level.WARNING)
    elif context.states.get(source) not in (NodeState.PRESENT, NodeState.OUTDATED):
        yield note(subject, "stuck", f"comes home to {home} when {source} is well again", Level.WARNING)
    elif refused := context.book.refuses(domain, home, apart_from=_following(context, domain, home)):
        yield note(subject, "stuck", f"cannot come home: {refused}", Level.WARNING)
    else:
        yield from _move(context, domain, source, home, "comes home", homeward=True)


def _following(context: DecisionContext, domain: DomainView, home: str) -> set[str]:
    """Return the nodes whose domains of the same group all come home to `home` too."""
    group = [
        each
        for each in context.view.domains.values()
        if domain.ha.group and each.ha.group == domain.ha.group and each.owner and each.owner.node != home
    ]
    staying = {each.owner.node for each in group if each.owner and not (each.run and each.run.home == home)}
    return {each.owner.node for each in group if each.owner} - staying


def leave_cut_off(context: DecisionContext) -> Iterator[Action]:
    """End the domains of nodes that are present but have lost the storage.

    Such domains hang. Ending them on their node is proof, and then they start where the storage is reachable. A domain
    without a place elsewhere is not ended."""
    for name, state in context.states.items():
        if state is not NodeState.CUT_OFF:
            continue
        sign = context.view.nodes[name].sign
        age = seconds(sign.age if sign else 0.0)
        yield note(f"node/{name}", state, "is present, but its heartbeats on storage have stopped", Level.ALARM)
        for domain in context.on[name]:
            subject = f"domain/{domain.name}"
            if context.busy(domain) or not restarts(domain) or not domain.owner:
                continue
            if context.resting(subject):
                yield note(subject, "stuck", f"{name} has lost the storage; {context.resting(subject)}", Level.WARNING)
                continue
            place = context.book.find(domain, avoid=(name,))
            if not place:
                why = context.book.why_not(domain, avoid=(name,))
                yield note(subject, "stuck", f"{name} has lost the storage; no place elsewhere: {why}", Level.ALARM)
                continue
            context.book.take(domain, place)
            reason = f"{name} has had no storage for {age}, others have it: it is ended there and starts elsewhere"
            yield End(
                subject=subject,
                reason=reason,
                node=name,
                boot=domain.owner.boot,
                run=domain.run,
                tries=failed_tries(domain),
            )
