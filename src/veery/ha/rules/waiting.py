"""Place what waits: domains that are to run and that nobody owns, by priority, with back-off; and forget old tries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from veery.ha.picture import Picture, note, order, restarts, seconds
from veery.ha.states import waited
from veery.model.ha import Action, DomainView, Level, Start, Steady

HOLD = 30.0  # seconds for which a start that does not end holds back those of lower priority


def place_waiting(picture: Picture) -> Iterator[Action]:
    """Start them, highest priority first; who cannot be started at all holds nobody back."""
    waiting = sorted((each for each in picture.view.domains.values() if _waits(each)), key=order)
    if not waiting:
        return
    busy = Counter(picture.view.starting.values())
    hold = _held(picture)
    for domain in waiting:
        subject = f"domain/{domain.name}"
        if picture.busy(domain):
            continue
        blocked = _not_yet(picture, domain)
        if blocked is not None:
            yield blocked
            continue
        if hold is not None and domain.ha.priority < hold[0]:
            yield note(subject, "held", hold[1])
            continue
        where = picture.book.find(domain)
        if not where:
            yield note(subject, "no-place", f"waits for a place: {picture.book.why_not(domain)}", Level.ALARM)
            continue
        if busy[where] >= picture.rules.starts:
            yield note(subject, "held", f"waits its turn: {where} is starting {busy[where]} domains")
            continue
        busy[where] += 1
        picture.book.take(domain, where)
        if hold is None or domain.ha.priority > hold[0]:
            hold = (domain.ha.priority, f"waits for those of priority {domain.ha.priority}: {domain.name} is starting")
        tries = domain.run.tries if domain.run else 0
        again = f", try {tries + 1} of {domain.ha.max_restarts}" if tries else ""
        reason = f"it is to run and nobody runs it{again}; {where} has {picture.book.free(where)} MiB left with it"
        yield Start(subject=subject, reason=reason, node=where, ha=domain.ha, run=domain.run)


def forget_tries(picture: Picture) -> Iterator[Action]:
    """A run that has lasted clears the count of tries."""
    for domain in picture.view.domains.values():
        run = domain.run
        if run is None or not (run.tries or run.failed) or domain.owner is None or picture.busy(domain):
            continue
        if waited(picture.now, run.at, picture.rules.stable):
            reason = f"it has run for {seconds(picture.rules.stable)}: earlier tries are forgotten"
            yield Steady(subject=f"domain/{domain.name}", reason=reason, run=run)


def _waits(domain: DomainView) -> bool:
    return domain.owner is None and restarts(domain)


def _not_yet(picture: Picture, domain: DomainView) -> Action | None:
    """Why a domain is not to be started now, whatever room there is."""
    run, limit = domain.run, domain.ha.max_restarts
    if run is None or run.tries == 0:
        return None
    subject, said = f"domain/{domain.name}", f" (last: {run.error})" if run.error else ""
    if run.tries >= limit:
        reason = f"given up after {run.tries} tries in a row{said}; veery ha set {domain.name} restart begins anew"
        return note(subject, "given-up", reason, Level.ALARM)
    pause = backoff(picture, run.tries)
    if not waited(picture.now, run.at, pause):
        reason = f"try {run.tries + 1} of {limit} comes {seconds(pause)} after the last{said}"
        return note(subject, "backing-off", reason, Level.WARNING)
    return None


def backoff(picture: Picture, tries: int) -> float:
    """Seconds from try number `tries` to the next."""
    return float(min(picture.rules.backoff * 2 ** min(tries - 1, 20), picture.rules.backoff_max))


def _held(picture: Picture) -> tuple[int, str] | None:
    """The priority below which all wait, and why: a start is under way, or its delay runs."""
    best: tuple[int, str] | None = None
    for domain in picture.view.domains.values():
        run = domain.run
        if run is None:
            continue
        mine = domain.ha.priority
        if best is not None and mine <= best[0]:
            continue
        if domain.name in picture.view.starting and not waited(picture.now, run.at, HOLD):
            best = (mine, f"waits for those of priority {mine}: {domain.name} is starting")
        elif (
            domain.ha.delay
            and domain.owner
            and domain.owner.node == run.node
            and not waited(picture.now, run.at, domain.ha.delay)
        ):
            best = (mine, f"waits until {seconds(domain.ha.delay)} after the start of {domain.name}")
    return best
