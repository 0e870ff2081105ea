"""Decisions about a copy from its course so far: pure functions; time is an argument.

A copy goes in rounds. The first sends all of the memory, each later one what was written during the one before. The
most that was ever missing in a round is what the round found written: its `need`. Need over speed is how long the
domain would be paused if it were stopped for that round. A copy makes progress when its needs shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from veery.migrate.policy import Policy
from veery.model.move import Sample
from veery.model.units import format_size

ROUNDS_KEPT = 16  # the rounds that count
SHRINKING = 0.7  # a need below this share of the one before counts as progress
AS_MUCH = 0.9  # a need above this share is no progress at all
LONG_ROUND_S = 0.5  # in a round this long its beginning and end do not count
SPARE = 1.1  # limits and bounds get a tenth to spare
SETTLING = 1  # additional rounds after a throttle, which takes effect late
AHEAD = 0.35  # target share of the link's speed for a slowed domain's writes: pages are written twice
SWITCH_RESERVE_S = 0.5  # reserved at the end of a bound for the switch-over itself
LOOKS_APART_S = 4.0  # QEMU's extra scans follow another scan by 5 s or more; readings may be a second late
SENT = 0.95  # a round that sent this share of its need is complete
NEAR = 0.05  # and so is one with no more than this share of its need left


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass over what is missing. `need` in bytes, `rate` and `dirty_rate` (the highest seen) in bytes/s, `began` in
    seconds after the copy began. `sent` is what the copy had transferred when the round began, `left` what was missing
    at the last reading. `looks` is the hypervisor's count of scans then, and `looked` the second at which that count
    last grew."""

    number: int
    began: float
    need: int
    rate: float
    dirty_rate: float
    sent: int = 0
    left: int = 0
    looks: int = 0
    looked: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The copy's position on its policy's ladder: the limit on the downtime (ms), the throttle (percent), and whether
    the domain was stopped or leaves with the rest to follow (`post_copy`). `since`: when this last changed, in seconds
    after the copy began."""

    downtime: int
    throttle: int = 0
    stopped: bool = False
    post_copy: bool = False
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """Change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Continue as `course` says, because of `why`."""

    course: Course
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """End the copy; the domain runs on."""

    why: str
    hint: str


Action = Stay | Change | GiveUp


def fold(rounds: Sequence[Round], sample: Sample) -> tuple[Round, ...]:
    """Return the rounds with one more reading of the copy."""
    if not rounds:
        return (_begin(sample, sample.at),)
    last = rounds[-1]
    looked = sample.rounds > last.looks
    if looked and _worked_off(last, sample):
        return (*rounds, _begin(sample, sample.at - _late(last, sample)))[-ROUNDS_KEPT:]
    extra = looked or last.looks > last.number
    grown = replace(
        last,
        need=last.need if extra else max(last.need, sample.remaining),
        rate=max(last.rate, sample.rate),
        dirty_rate=max(last.dirty_rate, sample.dirty_rate),
        left=sample.remaining,
        looks=max(last.looks, sample.rounds),
        looked=sample.at if looked else last.looked,
    )
    return (*rounds[:-1], grown)


def _begin(sample: Sample, began: float) -> Round:
    return Round(
        number=sample.rounds,
        began=began,
        need=sample.remaining,
        rate=sample.rate,
        dirty_rate=sample.dirty_rate,
        sent=sample.transferred,
        left=sample.remaining,
        looks=sample.rounds,
        looked=sample.at,
    )


def _worked_off(last: Round, sample: Sample) -> bool:
    """Return whether the hypervisor scanned for written pages because `last` was complete, and not by its clock."""
    if last.number <= 1 or sample.at - last.looked < LOOKS_APART_S:
        return True
    sent = sample.transferred - last.sent
    return sent >= SENT * last.need or last.left <= NEAR * last.need


def _late(last: Round, sample: Sample) -> float:
    """Return the seconds since `last` was complete, where extra scans delayed the one that ends it."""
    extra = sample.transferred - last.sent - last.need
    return extra / last.rate if last.looks > last.number and extra > 0 and last.rate > 0 else 0.0


def speed(rounds: Sequence[Round]) -> float:
    """Return the recent speed of the copy, bytes/s; 0.0: not known yet."""
    return max((each.rate for each in rounds[-3:]), default=0.0)


def pace(rounds: Sequence[Round]) -> float:
    """Return how fast these rounds were completed one after the other, bytes/s of memory. 0.0: they do not show it,
    because they are fewer than two, or short ones that mostly wait. The hypervisor's own figure covers its last tenth
    of a second, and may be twice that."""
    spent = rounds[-1].began - rounds[0].began if rounds else 0.0
    return sum(each.need for each in rounds[:-1]) / spent if spent > LONG_ROUND_S * (len(rounds) - 1) else 0.0


def milliseconds(size: float, rate: float) -> float:
    """Return how long `size` bytes take at `rate`; infinite at 0."""
    return size / rate * 1000 if rate > 0 else float("inf")


def bound(policy: Policy, asked: float, total: int, rate: float) -> float:
    """Return the seconds within which the copy must end: the user's figure `asked`, else the policy's; 0.0: no
    bound."""
    if asked or not policy.bound:
        return asked
    return max(policy.bound, policy.passes * total / rate if rate > 0 else 0.0)


def ready(rounds: Sequence[Round], sample: Sample, course: Course) -> bool:
    """Return whether a held copy could switch over now, within its limit."""
    if not rounds or rounds[-1].number < 2:
        return False
    return milliseconds(max(sample.remaining, 0), speed(rounds)) <= course.downtime


def decide(
    policy: Policy, course: Course, rounds: Sequence[Round], sample: Sample, *, first: int, end: float, now: float
) -> Action:
    """Return the next step of a copy that began `now` seconds ago; `first` is the user's limit in ms, `end` the copy's
    bound."""
    if course.stopped:
        return Stay()
    rate = speed(rounds)
    if policy.post_copy and _leaves(course, rounds, sample, rate):
        why = (
            f"sent once, {format_size(max(sample.remaining, 0))} were written meanwhile: it switches, the rest follows"
        )
        return Change(course=replace(course, stopped=True, post_copy=True, since=now), why=why)
    if end:
        if policy.stop and now + _seconds_for(left := _left(rounds, sample), rate, end) + SWITCH_RESERVE_S >= end:
            why = f"stopped: up to {format_size(left)} are left and the bound of {end:g} s is near"
            return Change(course=replace(course, stopped=True, since=now), why=why)
        if now >= end and not policy.stop:
            return GiveUp(
                why=f"the copy did not end within {end:g} s",
                hint="give it more time or bandwidth, or --policy must-finish",
            )
    tries = [each for each in rounds if each.number >= 2 and each.began >= course.since]
    patience = _patience(policy, course, tries, rate, first=first)
    if len(tries) <= patience or rate <= 0:
        return Stay()
    judged = tries[-patience - 1 :]
    rate = pace(judged) or rate
    least = min(each.need for each in judged)
    if judged[-1].need <= SHRINKING * judged[0].need or milliseconds(least, rate) <= course.downtime:
        return Stay()
    return _climb(policy, course, judged, rate, first=first, now=now)


def _patience(policy: Policy, course: Course, tries: Sequence[Round], rate: float, *, first: int) -> int:
    """Return the rounds without progress before the next step. One is enough when the domain writes as fast as memory
    is sent, and more than the highest limit allows: no further round would find less. A throttle takes one more to have
    an effect."""
    if course.throttle or not policy.throttle:
        return policy.patience + (SETTLING if course.throttle else 0)
    if len(tries) < 2:
        return policy.patience
    before, last = tries[-2:]
    stands = milliseconds(min(before.need, last.need), pace(tries[-2:]) or rate)
    hopeless = last.need > AS_MUCH * before.need and stands > policy.limits(first)[-1]
    return 1 if hopeless else policy.patience


def _leaves(course: Course, rounds: Sequence[Round], sample: Sample, rate: float) -> bool:
    """Return whether post-copy is needed: everything was sent once, and the rest does not fit the limit. A rest that
    fits switches over without it, and can still be undone."""
    if not rounds or rounds[-1].number < 2:
        return False
    fits = milliseconds(max(sample.remaining, 0), rate) <= course.downtime
    return not fits or rounds[-1].number > 3


def _left(rounds: Sequence[Round], sample: Sample) -> int:
    """Return the bytes to be sent if the domain is stopped now: what is known to be missing, or as much as a recent
    round found, because what was written during this round is not counted yet."""
    return max([sample.remaining, *(each.need for each in rounds[-2:] if each.number >= 2)])


def _seconds_for(size: int, rate: float, end: float) -> float:
    """Return how long the rest takes once the domain is paused; half the bound while the speed is not known."""
    return size / rate * SPARE if rate > 0 else end / 2


def _climb(policy: Policy, course: Course, judged: Sequence[Round], rate: float, *, first: int, now: float) -> Action:
    """Return the smallest step that should help a copy without progress, by the least that was missing recently."""
    needed = milliseconds(min(each.need for each in judged), rate) * SPARE
    dirty = max(each.dirty_rate for each in judged)
    higher = [limit for limit in policy.limits(first) if limit > course.downtime]
    enough = [limit for limit in higher if limit >= needed]
    slower = [percent for percent in policy.throttle if percent > course.throttle]
    stands = f"it needs {needed:.0f} ms where {course.downtime} ms are allowed"
    if enough:
        why = f"limit {enough[0]} ms: {stands}"
        return Change(course=replace(course, downtime=enough[0], since=now), why=why)
    if slower:
        wanted = 100 * (1 - AHEAD * rate / dirty) if dirty > 0 else 0.0
        percent = next((each for each in slower if each >= wanted), slower[-1])
        limit = higher[-1] if higher else course.downtime
        why = f"throttle {percent} %, limit {limit} ms: {_outrun(dirty, rate)}"
        return Change(course=Course(downtime=limit, throttle=percent, since=now), why=why)
    if higher:
        why = f"limit {higher[0]} ms: {stands}"
        return Change(course=replace(course, downtime=higher[0], since=now), why=why)
    if policy.stop:
        why = f"stopped: throttled by {course.throttle} % {_outrun(dirty, rate)}"
        return Change(course=replace(course, stopped=True, since=now), why=why)
    slowed = f", slowed by {course.throttle} %" if course.throttle else ""
    return GiveUp(
        why=f"no progress: {_outrun(dirty, rate)}{slowed}; {stands}",
        hint="move it when it is quieter, give it more bandwidth, a longer --downtime, or --policy must-finish",
    )


def _outrun(dirty: float, rate: float) -> str:
    return f"it writes {format_size(dirty)}/s, the copy sends {format_size(rate)}/s"
