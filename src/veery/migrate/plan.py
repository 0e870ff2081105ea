"""A prediction of a move: pure functions from observations to blockers, expected time and expected gap.

The copy is simulated in rounds, as QEMU does it (migration/ram.c, migration_iteration_run). The first round sends all
that is not zero, each later one what was written meanwhile. When the rest could be sent within the limit on the
downtime, the domain is stopped for it. For a domain that writes faster than the link, the plan asks
veery.migrate.converge, which steers real copies too."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from veery.migrate.compression import WORTH, considered
from veery.migrate.converge import Change, Course, GiveUp, Round, bound, decide, fold
from veery.migrate.policy import find
from veery.model import defects
from veery.model.move import Compress, MoveReport, MoveSettings, MoveState, Phase, Sample
from veery.model.plan import Abilities, Blocker, Forecast, Link, MemoryReading, Overhead, Plan, Reply
from veery.model.units import KIB, MIB

RECENT = 5  # earlier moves that count
WHOLE = 20  # earlier moves that count for the shortest pause: five may all have been busy ones
ROUNDS_MAX = 400
STAND = 12.0  # ms for which QEMU pauses a domain at least: it stops the processors and sends the devices' state
OUTSIDE = 40.0  # additional ms that a client sees: until the guest is awake and its frames take the new path
WAKING = 1.0  # and this many times the duration of the last steps: on a busy machine both are slow
IDLE = 256 * KIB  # bytes that even an idle domain writes in a round
ENGINE = 100.0 * MIB  # bytes/s that QEMU copies, assumed where nothing is known
PACKER = 150.0 * MIB  # bytes/s of memory that two daemons compress and decompress
NARROW = 60.0 * MIB  # bytes/s; QEMU fills a link up to this speed
LARGE = 1 << 30  # bytes; in a copy this large its beginning and end do not count
TSC_SHARE = 4000  # frequencies that differ by less than one part in this (250 ppm) count as equal, for KVM too
SCAN = 2000.0 * MIB  # bytes/s at which QEMU scans zero pages
USUAL = Overhead(before=60.0, copy=60.0, stand=STAND, away=20.0, after=15.0)
"""The overhead assumed where no earlier move shows it: measured in a lab of one machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All that is known before a move. `here`: obstacles on the source. `way`: problems of the path to the target's
    relocation port. `reply`: the target's answer (None: there is none, and `silence` says why). `home`: reasons why the
    source could not take the domain back. `abilities`: the source's. `earlier`: reports of this node's moves, the
    newest last. `probed`: bytes/s through the relocation port, 0: not probed. `path`: bytes/s of a path that the last
    copy found slow, else 0. `disk_bytes` are copied first."""

    domain: str
    source: str
    target: str
    settings: MoveSettings
    here: tuple[Blocker, ...] = ()
    way: tuple[Blocker, ...] = ()
    silence: tuple[Blocker, ...] = ()
    reply: Reply | None = None
    home: tuple[Blocker, ...] = ()
    abilities: Abilities | None = None
    memory: MemoryReading | None = None
    earlier: tuple[MoveReport, ...] = ()
    probed: float = 0.0
    path: float = 0.0
    disk_bytes: int = 0


def make(seen: Observations) -> Plan:
    """Return the plan: each obstacle once, and the expected time and gap."""
    there = seen.reply.blockers if seen.reply else ()
    blockers = tuple(dict.fromkeys((*seen.here, *seen.silence, *seen.way, *there)))
    back = tuple(dict.fromkeys((*seen.home, *(seen.reply.way_back if seen.reply else ()))))
    link, overhead = learn(seen.earlier, seen.target, seen.settings, seen.probed)
    if seen.memory and considered(seen.settings, seen.path):
        link = packed(link, seen.memory.packed, seen.settings.compress)
    forecast = foretell(seen.memory, link, overhead, seen.settings) if seen.memory else None
    if forecast is not None and seen.disk_bytes:
        total = forecast.total_ms + seen.disk_bytes / link.rate * 1000
        forecast = replace(forecast, total_ms=round(total, 1), disk_bytes=seen.disk_bytes)
    return Plan(
        domain=seen.domain,
        source=seen.source,
        target=seen.target,
        settings=seen.settings,
        possible=not blockers,
        blockers=blockers,
        back=back,
        memory=seen.memory,
        link=link,
        overhead=overhead,
        forecast=forecast,
        cautions=(*_clock(seen), *_defects(seen)) if seen.abilities and seen.reply else (),
    )


def _clock(seen: Observations) -> tuple[str, ...]:
    """Warn of a guest that counts time by the TSC. QEMU migrates its frequency, and continues with only a warning where
    the target's processor cannot scale it (target/i386/kvm/kvm.c, kvm_arch_set_tsc_khz)."""
    assert seen.abilities is not None and seen.reply is not None
    here, there = seen.abilities.tsc_khz, seen.reply.abilities.tsc_khz
    if not here or not there or seen.reply.abilities.tsc_scales or abs(here - there) * TSC_SHARE <= here:
        return ()
    return (
        f"{seen.target}'s time stamp counter runs at {there / 1000:.0f} MHz, {seen.source}'s at {here / 1000:.0f}, and "
        "it cannot be scaled: a guest with clocksource=tsc would run fast or slow; one with kvm-clock does not",
    )


def _defects(seen: Observations) -> tuple[str, ...]:
    """Return known defects of the two QEMUs that this move may meet."""
    assert seen.abilities is not None and seen.reply is not None
    here, there = seen.abilities, seen.reply.abilities
    if here.driver != "qemu" or there.driver != "qemu":
        return ()
    versions = f"QEMU {here.version} here, {there.version} on {seen.target}"
    return tuple(
        f"{versions}: {each.told}; {each.hint} ({each.source})"
        for each in defects.between(here.version, there.version, here.accelerator)
    )


def learn(
    reports: Sequence[MoveReport], target: str, settings: MoveSettings, probed: float = 0.0
) -> tuple[Link, Overhead]:
    """Return the path to `target` as earlier moves and a probe show it, and the overhead of a move besides the copy.

    On a wide link the processors limit both a probe and QEMU, and QEMU gets about a third of the probe's speed. A link
    narrower than `NARROW` limits both alike. Earlier moves of large domains to that target count where they were faster
    than that. Without a probe earlier moves decide; those much slower than the fastest had a limit, and are ignored."""
    done = [each for each in reports if each.state is MoveState.DONE and Phase.CONFIRM in each.phases]
    alike = [each for each in done if each.target == target][-RECENT:] or done[-RECENT:]
    overhead = _overhead(alike)
    if alike:
        overhead = replace(overhead, stand=max(STAND, min(each.downtime_ms for each in done[-WHOLE:])))
    speeds = [_speed(each, overhead.copy) for each in alike]
    best = max(speeds, default=0.0)
    if probed:
        rate, words = max(probed / 3, min(probed, NARROW)), "a probe just now"
        seen = min(probed, _pace([each for each in alike if each.target == target]))
        if seen > rate:
            rate, words = seen, "a probe just now and earlier moves of large domains"
    elif best:
        rate = statistics.median(each for each in speeds if each >= best / 2)
        words = f"{len(alike)} earlier move{'s' if len(alike) != 1 else ''}"
    else:
        rate, words = ENGINE, "no probe and no earlier move"
    if settings.bandwidth and settings.bandwidth < rate:
        rate, words = float(settings.bandwidth), "the bandwidth limit of this move"
    return Link(rate=rate, scan=SCAN, probed=probed, source=words), overhead


def packed(link: Link, share: float, wanted: Compress) -> Link:
    """Return `link` for a copy whose memory compresses to `share` of its size, where that is done."""
    if wanted is not Compress.YES and share > WORTH:
        return link
    return replace(link, rate=max(min(link.rate / max(share, 0.01), PACKER), 1.0), source=f"{link.source}, packed")


def _overhead(reports: Sequence[MoveReport]) -> Overhead:
    if not reports:
        return USUAL

    def spent(*names: Phase) -> float:
        return statistics.median(sum(each.phases.get(name, 0.0) for name in names) for each in reports)

    return Overhead(
        before=spent(Phase.BEGIN, Phase.PREPARE),
        copy=USUAL.copy,
        stand=STAND,
        away=spent(Phase.LOADED, Phase.COMMIT, Phase.FINISH),
        after=spent(Phase.CONFIRM),
    )


def _speed(report: MoveReport, fixed: float) -> float:
    """Return the bytes/s of an earlier copy, 0.0 where it was too short to show it."""
    spent = report.phases.get(Phase.COPY, 0.0) - fixed
    measured = report.bytes / spent * 1000 if spent > fixed and report.bytes > 8 * MIB else 0.0
    return max([measured, *(sample.rate for sample in report.samples[:1] if measured)])


def _pace(reports: Sequence[MoveReport]) -> float:
    """Return the bytes/s at which large domains were copied, over all of COPY; 0.0: there were none."""
    large = [each for each in reports if each.bytes >= LARGE and not each.packed and each.phases.get(Phase.COPY)]
    speeds = [each.bytes / each.phases[Phase.COPY] * 1000 for each in large]
    return statistics.median(each for each in speeds if each >= max(speeds) / 2) if speeds else 0.0


def written(memory: MemoryReading, seconds: float) -> float:
    """Return the bytes that differ after `seconds`: interpolated between the samples, after the last one extrapolated
    from the last two; never more than is in use."""
    points = [(0.0, 0.0), *memory.dirtied]
    most = float(max(memory.used, points[-1][1]))
    for (before, low), (after, high) in itertools.pairwise(points):
        if seconds <= after:
            return min(most, max(low, low + (high - low) * (seconds - before) / (after - before)))
    if len(points) == 1:
        return 0.0
    (before, low), (after, high) = points[-2:]
    slope = max(0.0, (high - low) / (after - before))
    return min(most, high + slope * (seconds - after))


@dataclass(slots=True)
class _Copy:
    """The state of a simulated copy. `sent` in bytes, `now` in seconds since it began."""

    now: float = 0.0
    sent: float = 0.0
    number: int = 1


def foretell(memory: MemoryReading, link: Link, overhead: Overhead, settings: MoveSettings) -> Forecast:
    """Return the forecast of the move. More bandwidth never makes it longer, more writing never shorter."""
    policy, rate = find(settings.policy), max(link.rate, 1.0)
    course = Course(downtime=settings.downtime)
    end = bound(policy, settings.timeout, memory.used, rate)
    copy, need, steps = _Copy(), float(memory.used), []
    rounds: tuple[Round, ...] = ()
    gave_up = ""
    standing = 0.0 if settings.live else need / rate
    spent = need / rate + (memory.total - memory.used) / link.scan
    while settings.live:
        copy.now += spent
        copy.sent += need
        slowed = spent * (100 - course.throttle) / 100
        fresh = IDLE + written(memory, slowed)
        copy.number += 1
        if fresh / rate * 1000 <= course.downtime or course.stopped:
            need = fresh
            break
        need = fresh
        spent = need / rate
        sample = _sample(copy, need, rate, written(memory, 1.0), course)
        rounds = fold(rounds, sample)
        action = decide(policy, course, rounds, sample, first=settings.downtime, end=end, now=copy.now)
        if isinstance(action, GiveUp) or copy.number > ROUNDS_MAX:
            gave_up = action.why if isinstance(action, GiveUp) else "the copy would never end"
            break
        if isinstance(action, Change):
            course = action.course
            steps.append(action.why)
            if course.stopped:
                break
    follows = need / rate if course.post_copy else 0.0
    if settings.live:
        standing = 0.0 if course.post_copy else need / rate
        copy.sent += need
    away = overhead.stand + standing * 1000 + overhead.away
    total = overhead.before + overhead.copy + (copy.now + follows) * 1000 + away + overhead.after
    if not settings.live:
        total += (memory.total - memory.used) / link.scan * 1000
        copy.sent = need
    return Forecast(
        converges=not gave_up,
        total_ms=round(total, 1),
        gap_ms=round(away + OUTSIDE + WAKING * overhead.away, 1),
        bytes=int(copy.sent),
        rounds=copy.number,
        rate=rate,
        dirty_rate=written(memory, 1.0),
        downtime=course.downtime,
        throttle=course.throttle,
        steps=tuple(steps),
        why=gave_up,
        needed=round(need / rate * 1000, 1) if gave_up else 0.0,
    )


def _sample(copy: _Copy, need: float, rate: float, dirty: float, course: Course) -> Sample:
    return Sample(
        at=copy.now,
        rounds=copy.number,
        transferred=int(copy.sent),
        remaining=int(need),
        rate=rate,
        dirty_rate=dirty,
        throttle=course.throttle,
        downtime=course.downtime,
    )
