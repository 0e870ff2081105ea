"""Move what runs: away from drained and sick nodes, and home again where that was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from veery.ha.picture import Picture, failed_tries, note, order, restarts, seconds
from veery.ha.states import NodeState
from veery.model.ha import Action, Clear, DomainView, End, IntentKind, Level, Move, Policy


def drain(picture: Picture) -> Iterator[Action]:
    """Empty maintained nodes of everything, sick ones of what the brain may move."""
    for name, state in picture.states.items():
        if state is NodeState.DRAINING:
            yield from _away(picture, name, "is drained", everything=True)
        elif state is NodeState.SICK:
            reading = picture.view.nodes[name].reading
            yield from _away(picture, name, f"is sick ({reading.sick if reading else ''})", everything=False)


def _away(picture: Picture, name: str, why: str, *, everything: bool) -> Iterator[Action]:
    for domain in picture.on[name]:
        subject = f"domain/{domain.name}"
        if picture.busy(domain) or not (everything or domain.ha.policy is not Policy.OFF):
            continue
        if kept := picture.kept(domain):
            yield note(subject, "stuck", f"{name} {why}; {kept}", Level.WARNING)
            continue
        if picture.resting(subject):
            yield note(subject, "stuck", f"{name} {why}; {picture.resting(subject)}", Level.WARNING)
            continue
        target = picture.book.find(domain, avoid=(name,))
        if not target:
            reason = f"{name} {why}, but it stays: {picture.book.why_not(domain, avoid=(name,))}"
            yield note(subject, "stuck", reason, Level.ALARM)
            continue
        yield from _move(picture, domain, name, target, f"{name} {why}", homeward=False)


def _move(
    picture: Picture, domain: DomainView, source: str, target: str, why: str, *, homeward: bool
) -> Iterator[Action]:
    subject = f"domain/{domain.name}"
    if domain.owner is None:
        return
    if not picture.may_move(source, target):
        yield note(subject, "queued", f"{why}: waits its turn to move to {target}")
        return
    picture.count(source, target)
    picture.book.take(domain, target)
    yield Move(
        subject=subject,
        reason=f"{why}: to {target}, which has {picture.book.free(target)} MiB left with it",
        source=source,
        target=target,
        owner=domain.owner,
        homeward=homeward,
        run=domain.run,
    )


def come_home(picture: Picture) -> Iterator[Action]:
    """Where a resume asked for it: what had to leave a node comes back; then the intent is fulfilled."""
    for name, node in picture.view.nodes.items():
        intent = node.intent
        if intent is None or intent.kind is not IntentKind.RESUME or picture.states[name] is not NodeState.PRESENT:
            continue
        left = 0
        for domain in sorted(picture.view.domains.values(), key=order):
            if domain.run is None or domain.run.home != name:
                continue
            if domain.owner is None and not restarts(domain) and not picture.busy(domain):
                continue  # nobody is to start it
            leaving = picture.busy(domain)  # one that is still on its way out is not home
            if domain.owner and domain.owner.node == name and not leaving:
                continue
            left += 1
            yield from _home(picture, domain, name)
        if not left and f"node/{name}" not in picture.view.acting:
            yield Clear(subject=f"node/{name}", reason="in use again, and everything is home", intent=intent)


def _home(picture: Picture, domain: DomainView, home: str) -> Iterator[Action]:
    subject = f"domain/{domain.name}"
    if picture.busy(domain) or domain.owner is None:
        return
    source = domain.owner.node
    if picture.resting(subject):
        yield note(subject, "stuck", f"comes home to {home}; {picture.resting(subject)}", Level.WARNING)
    elif picture.states.get(source) is not NodeState.PRESENT:
        yield note(subject, "stuck", f"comes home to {home} when {source} is well again", Level.WARNING)
    elif refused := picture.book.refuses(domain, home, apart_from=_following(picture, domain, home)):
        yield note(subject, "stuck", f"cannot come home: {refused}", Level.WARNING)
    else:
        yield from _move(picture, domain, source, home, "comes home", homeward=True)


def _following(picture: Picture, domain: DomainView, home: str) -> set[str]:
    """The nodes whose domains of the same group all come home to `home` too."""
    group = [
        each
        for each in picture.view.domains.values()
        if domain.ha.group and each.ha.group == domain.ha.group and each.owner and each.owner.node != home
    ]
    staying = {each.owner.node for each in group if each.owner and not (each.run and each.run.home == home)}
    return {each.owner.node for each in group if each.owner} - staying


def leave_cut_off(picture: Picture) -> Iterator[Action]:
    """A node that is there but has lost the storage: its domains hang. They are ended there, which is proof, and then
    start where the storage is reached. Nothing is ended that has no place elsewhere."""
    for name, state in picture.states.items():
        if state is not NodeState.CUT_OFF:
            continue
        sign = picture.view.nodes[name].sign
        age = seconds(sign.age if sign else 0.0)
        yield note(f"node/{name}", state, "is here, but its heartbeats on storage have ended", Level.ALARM)
        for domain in picture.on[name]:
            subject = f"domain/{domain.name}"
            if picture.busy(domain) or not restarts(domain) or not domain.owner:
                continue
            if picture.resting(subject):
                yield note(subject, "stuck", f"{name} has lost the storage; {picture.resting(subject)}", Level.WARNING)
                continue
            place = picture.book.find(domain, avoid=(name,))
            if not place:
                why = picture.book.why_not(domain, avoid=(name,))
                yield note(subject, "stuck", f"{name} has lost the storage; no place elsewhere: {why}", Level.ALARM)
                continue
            picture.book.take(domain, place)
            reason = f"{name} has had no storage for {age}, others have: ended there, to start elsewhere"
            yield End(
                subject=subject,
                reason=reason,
                node=name,
                boot=domain.owner.boot,
                run=domain.run,
                tries=failed_tries(domain),
            )
