"""Places waiting domains by priority, with back-off: those of fenced nodes, and those that have no owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from veery.ha.context import DecisionContext, failed_tries, given_up, note, order, restarts, seconds
from veery.ha.states import IN_USE, NodeState
from veery.model.ha import Action, DomainView, Level, Note, Policy, Release, Start, Steady
from veery.model.node import Role

ARRIVAL_FACTOR = 3  # times `Rules.use`: how long to wait for a node that arrives before an alarm
START_HOLD_S = 30.0  # seconds for which an unfinished start holds back domains of lower priority


def place_waiting(context: DecisionContext) -> Iterator[Action]:
    """Release domains of fenced nodes that find a place elsewhere, and start domains that have no owner.

    Both share one order, so that room goes to the highest priority. A domain without a place stays with its node and
    continues there when the node comes back."""
    lost, other = _lost(context)
    yield from other
    waiting = [each for each in context.view.domains.values() if each.owner is None and restarts(each)]
    busy = Counter(context.view.starting.values())
    hold = _held(context) if waiting else None
    for domain in sorted([*waiting, *lost], key=order):
        if domain.name in context.view.starting or domain.name in context.view.moving:
            continue  # already in the book
        avoid = (domain.owner.node,) if domain.owner else ()
        blocked = _not_yet(context, domain)
        where = "" if blocked is not None and blocked.state == "given-up" else context.book.find(domain, avoid=avoid)
        if where:
            context.book.take(domain, where)
        if domain.move is not None or f"domain/{domain.name}" in context.view.acting:
            continue
        if blocked is not None:
            yield blocked
        elif not where:
            yield _no_place(context, domain, avoid)
        elif domain.owner is not None:
            yield _release(context, domain)
        elif hold is not None and domain.ha.priority < hold[0]:
            yield note(f"domain/{domain.name}", "held", hold[1])
        elif busy[where] >= context.rules.starts:
            reason = f"waits: {where} is starting {busy[where]} domains already"
            yield note(f"domain/{domain.name}", "held", reason)
        else:
            busy[where] += 1
            if hold is None or domain.ha.priority > hold[0]:
                mine = domain.ha.priority
                hold = (mine, f"waits for priority {mine}: {domain.name} is starting")
            yield _start(context, domain, where)


def _lost(context: DecisionContext) -> tuple[list[DomainView], list[Action]]:
    """Return the domains of fenced nodes that should start elsewhere, and notes about the others."""
    lost: list[DomainView] = []
    other: list[Action] = []
    for name, state in context.states.items():
        if state is not NodeState.FENCED:
            continue
        for domain in context.on[name]:
            if restarts(domain):
                lost.append(domain)
            elif not domain.unreadable:
                why = (
                    f"its policy is {domain.ha.policy}"
                    if domain.ha.policy is not Policy.RESTART
                    else "it was ended on purpose"
                )
                why = why if domain.ha.max_restarts else "its policy allows no restarts"
                way = "; veery create starts it on another node" if domain.ha.wanted else ""
                reason = f"{name} is fenced; not restarted: {why}{way}"
                other.append(note(f"domain/{domain.name}", "lost", reason, Level.WARNING))
    return lost, other


def _release(context: DecisionContext, domain: DomainView) -> Action:
    assert domain.owner is not None
    node = domain.owner.node
    fence = context.view.nodes[node].fence
    assert fence is not None
    reason = f"{node} can no longer write ({fence.method}: {fence.proof}): the domain may start elsewhere"
    return Release(
        subject=f"domain/{domain.name}",
        reason=reason,
        owner=domain.owner,
        fence=fence,
        run=domain.run,
        tries=failed_tries(domain),
    )


def _start(context: DecisionContext, domain: DomainView, where: str) -> Action:
    tries = domain.run.tries if domain.run else 0
    again = f", try {tries + 1} of {domain.ha.max_restarts}" if tries else ""
    reason = (
        f"it should run and has no owner{again}: start on {where}, which then has {context.book.free(where)} MiB left"
    )
    return Start(subject=f"domain/{domain.name}", reason=reason, node=where, ha=domain.ha, run=domain.run)


def _no_place(context: DecisionContext, domain: DomainView, avoid: tuple[str, ...]) -> Note:
    fenced = f"{avoid[0]} is fenced; " if avoid else ""
    if coming := _coming(context, domain, avoid):
        return note(
            f"domain/{domain.name}",
            "arriving",
            f"{fenced}waits for {', '.join(coming)} to come into use",
        )
    reason = f"{fenced}waits for a place: {context.book.why_not(domain, avoid=avoid)}"
    return note(f"domain/{domain.name}", "no-place", reason, Level.ALARM)


def _coming(context: DecisionContext, domain: DomainView, avoid: tuple[str, ...]) -> list[str]:
    """Return the nodes that have just arrived and may soon have a place. A node that takes longer is not waited for."""
    found = []
    for name, state in context.states.items():
        node = context.view.nodes[name]
        if state is not NodeState.ARRIVING or name in avoid or not node.record.has(Role.HYPERVISOR):
            continue
        known = node.fresh  # without a reading its room is unknown
        if (node.present or 0.0) < ARRIVAL_FACTOR * context.rules.use and not (
            known and context.book.refuses(domain, name)
        ):
            found.append(name)
    return found


def forget_tries(context: DecisionContext) -> Iterator[Action]:
    """Clear the failed starts of a domain that has run long enough. This requires its node to be in use: otherwise it
    is unknown whether the domain runs."""
    for domain in context.view.domains.values():
        run = domain.run
        if run is None or not (run.tries or run.failed) or domain.owner is None or context.busy(domain):
            continue
        if context.states.get(domain.owner.node) not in IN_USE:
            continue
        subject = f"domain/{domain.name}"
        if context.waited(subject, run.at, context.rules.stable):
            reason = f"it has run for {seconds(context.rules.stable)}: earlier failed starts are forgotten"
            yield Steady(subject=subject, reason=reason, run=run)


def _not_yet(context: DecisionContext, domain: DomainView) -> Note | None:
    """Return a note why the domain must not start now, however much room there is."""
    run, limit, tries = domain.run, domain.ha.max_restarts, failed_tries(domain)
    if run is None or tries == 0:
        return None
    subject, said = f"domain/{domain.name}", f" (last: {run.error})" if run.error else ""
    if given_up(domain):
        reason = f"given up after {tries} tries in a row{said}; to try again: veery ha set {domain.name} restart"
        return note(subject, "given-up", reason, Level.ALARM)
    pause = backoff(context, tries)
    if domain.owner is None and not context.waited(subject, run.at, pause):
        reason = f"try {tries + 1} of {limit} follows {seconds(pause)} after the last{said}"
        return note(subject, "backing-off", reason, Level.WARNING)
    return None


def backoff(context: DecisionContext, tries: int) -> float:
    """Return the seconds from try number `tries` to the next."""
    return float(min(context.rules.backoff * 2 ** min(tries - 1, 20), context.rules.backoff_max))


def _held(context: DecisionContext) -> tuple[int, str] | None:
    """Return the priority below which all domains wait, and why: a start is under way, or its delay has not passed."""
    best: tuple[int, str] | None = None
    for domain in context.view.domains.values():
        run = domain.run
        if run is None:
            continue
        subject, mine = f"domain/{domain.name}", domain.ha.priority
        if best is not None and mine <= best[0]:
            continue
        if domain.name in context.view.starting and not context.waited(subject, run.at, START_HOLD_S):
            best = (mine, f"waits for priority {mine}: {domain.name} is starting")
        elif (
            domain.ha.delay
            and domain.owner
            and domain.owner.node == run.node
            and not context.waited(subject, run.at, domain.ha.delay)
        ):
            best = (mine, f"waits until {seconds(domain.ha.delay)} after the start of {domain.name}")
    return best
