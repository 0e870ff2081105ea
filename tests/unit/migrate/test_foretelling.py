"""A move foretold: what never may be otherwise, whatever the figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veery.cli.plan import lines
from veery.hypervisor.qemu import build
from veery.hypervisor.qemu.abilities import needs, obstacles, processor
from veery.hypervisor.qemu.build import Build
from veery.migrate.check import stopped
from veery.migrate.plan import IDLE, OUTSIDE, STAND, USUAL, Observations, foretell, learn, make, written
from veery.model.domain import DomainReading, DomainSpec, DomainState
from veery.model.move import Compress, MoveReport, MoveSettings, MoveState, Phase
from veery.model.plan import (
    LEVELS,
    Abilities,
    Blocker,
    Link,
    MemoryReading,
    Obstacle,
    Processor,
    Reply,
    common,
    level,
)
from veery.model.units import MIB

SPEC = DomainSpec(name="busybox", uuid="11111111-2222-4333-8444-555555555555", memory=512)
ABLE = Abilities(driver="qemu", version="10.0.2", accelerator="tcg", machines=(build.MACHINE,))


def memory(used: float, pace: float = 0.0, most: float = 0.0, total: int = 4096 * MIB) -> MemoryReading:
    """`used` bytes in use, `pace` bytes/s of them written, `most` in all."""
    looks = (0.05, 0.2, 0.8)
    dirtied = tuple((seconds, min(pace * seconds, most or used)) for seconds in looks)
    return MemoryReading(total=total, used=int(used), dirtied=dirtied)


def link(rate: float) -> Link:
    return Link(rate=rate, scan=2000.0 * MIB, probed=0.0, source="test")


SIZES = st.floats(1 * MIB, 4000 * MIB)
PACES = st.floats(0, 2000 * MIB)
RATES = st.floats(1 * MIB, 4000 * MIB)


@given(used=SIZES, pace=PACES, slow=RATES, more=st.floats(1.0, 50.0))
@settings(max_examples=200, deadline=None)
def test_a_quicker_link_never_copies_a_round_slower(used: float, pace: float, slow: float, more: float) -> None:
    gentle = MoveSettings(policy="gentle")
    narrow = foretell(memory(used, pace), link(slow), USUAL, gentle)
    wide = foretell(memory(used, pace), link(slow * more), USUAL, gentle)
    if narrow.converges:
        assert wide.converges
        assert wide.total_ms <= narrow.total_ms + gentle.downtime + 1


@given(used=SIZES, rate=RATES, pace=PACES)
@settings(max_examples=200, deadline=None)
def test_an_end_is_always_foretold_and_a_gentle_gap_is_within_its_limit(used: float, rate: float, pace: float) -> None:
    gentle = MoveSettings(policy="gentle", downtime=100)
    found = foretell(memory(used, pace), link(rate), USUAL, gentle)
    idle = foretell(memory(used), link(rate), USUAL, gentle)
    assert found.bytes >= int(used)
    assert found.total_ms >= used / rate * 1000
    if found.converges:
        assert found.gap_ms <= 100 + STAND + 2 * USUAL.away + OUTSIDE + 1
        assert idle.total_ms <= found.total_ms + 101
    else:
        assert found.why
        assert found.needed > 100


@given(seconds=st.floats(0, 100), longer=st.floats(0, 100), pace=PACES, used=SIZES)
def test_more_time_never_writes_less_and_never_more_than_there_is(
    seconds: float, longer: float, pace: float, used: float
) -> None:
    reading = memory(used, pace)
    assert written(reading, seconds) <= written(reading, seconds + longer) <= max(used, pace * 0.8) + 1


def test_a_quick_writer_over_little_memory_is_told_from_a_slow_one_over_much() -> None:
    quick = memory(512 * MIB, 1000 * MIB, most=10 * MIB)
    slow = memory(512 * MIB, 12.5 * MIB)
    assert abs(written(quick, 0.8) - written(slow, 0.8)) < MIB
    assert written(quick, 8.0) < 11 * MIB < 99 * MIB < written(slow, 8.0)


def test_policies_differ_where_a_domain_outruns_the_link() -> None:
    flat_out, path = memory(512 * MIB, 200 * MIB), link(64 * MIB)
    gentle = foretell(flat_out, path, USUAL, MoveSettings(policy="gentle"))
    balanced = foretell(flat_out, path, USUAL, MoveSettings(policy="balanced"))
    forced = foretell(flat_out, path, USUAL, MoveSettings(policy="must-finish"))
    assert not gentle.converges
    assert gentle.needed > 1000
    assert balanced.steps
    assert forced.converges
    stopped = foretell(flat_out, path, USUAL, MoveSettings(live=False))
    assert stopped.gap_ms > 8000
    assert stopped.rounds == 1


def report(target: str, copy: float, sent: int, state: MoveState = MoveState.DONE) -> MoveReport:
    times = {Phase.BEGIN: 5.0, Phase.PREPARE: 95.0, Phase.COPY: copy, Phase.LOADED: 4.0, Phase.COMMIT: 3.0}
    times |= {Phase.FINISH: 13.0, Phase.CONFIRM: 30.0}
    return MoveReport(
        id="1",
        domain="busybox",
        source="a",
        target=target,
        state=state,
        phase=Phase.CONFIRM,
        started=0.0,
        downtime_ms=20.0,
        bytes=sent,
        phases={phase.value: spent for phase, spent in times.items()},
    )


def test_what_earlier_moves_and_a_probe_teach() -> None:
    bare, usual = learn((), "b", MoveSettings())
    assert usual == USUAL
    assert "no earlier move" in bare.source
    moved = (report("b", 1060.0, 200 * MIB), report("b", 1060.0, 200 * MIB), report("c", 10060.0, 200 * MIB))
    path, overhead = learn(moved, "b", MoveSettings())
    assert round(path.rate / MIB) == 200
    assert (overhead.before, overhead.away, overhead.after, overhead.stand) == (100.0, 20.0, 30.0, 20.0)
    assert learn(moved, "b", MoveSettings(), probed=50.0 * MIB)[0].rate == 50.0 * MIB
    probes = [20.0, 60.0, 90.0, 180.0, 300.0, 1200.0]
    rates = [learn(moved, "b", MoveSettings(), probed=each * MIB)[0].rate / MIB for each in probes]
    assert [round(each) for each in rates] == [20, 60, 60, 60, 100, 400]
    assert learn(moved, "b", MoveSettings(bandwidth=MIB))[0].rate == MIB
    capped = (*moved, report("b", 60060.0, 200 * MIB))
    assert learn(capped, "b", MoveSettings())[0].rate == path.rate
    failed = tuple(replace(each, state=MoveState.FAILED) for each in moved)
    assert learn(failed, "b", MoveSettings())[1] == USUAL


def test_moves_of_large_domains_teach_what_a_probe_does_not() -> None:
    """A third of a probe is what two busy cores under TCG made of it; this node's own moves may show more."""
    large = [report("b", copy=1000.0 * seconds, sent=8 << 30) for seconds in (10, 12, 80)]  # the last had a cap
    link, _ = learn(large, "b", MoveSettings(), probed=1500.0 * MIB)
    assert link.rate == pytest.approx((8 << 30) / 11, rel=0.1)
    assert "earlier moves of large domains" in link.source
    assert learn(large, "b", MoveSettings(), probed=600.0 * MIB)[0].rate == 600.0 * MIB, "no more than is there now"
    assert learn(large, "c", MoveSettings(), probed=1500.0 * MIB)[0].rate == 500.0 * MIB, "another target"
    small = [report("b", copy=100.0, sent=128 << 20)]
    assert learn(small, "b", MoveSettings(), probed=1500.0 * MIB)[0].rate == 500.0 * MIB
    slow = [report("b", copy=80_000.0, sent=8 << 30)]
    assert learn(slow, "b", MoveSettings(), probed=1500.0 * MIB)[0].rate == 500.0 * MIB, "it may have had a cap"
    squeezed = [replace(each, packed=1 << 30) for each in large]
    assert learn(squeezed, "b", MoveSettings(), probed=1500.0 * MIB)[0].rate == 500.0 * MIB


def test_a_domain_stands_no_longer_for_what_moved_before_it() -> None:
    quiet, busy = report("b", 1060.0, 200 * MIB), replace(report("b", 1060.0, 200 * MIB), downtime_ms=300.0)
    assert learn((quiet, *[busy] * 6), "b", MoveSettings())[1].stand == 20.0


@pytest.mark.parametrize(
    ("wanted", "path", "share", "rate"),
    [
        (MoveSettings(), 60.0, 0.5, 120.0),
        (MoveSettings(), 60.0, 0.1, 150.0),
        (MoveSettings(), 60.0, 0.8, 60.0),
        (MoveSettings(), 0.0, 0.5, 60.0),
        (MoveSettings(compress=Compress.NO), 60.0, 0.5, 60.0),
        (MoveSettings(compress=Compress.YES), 0.0, 0.8, 75.0),
        (MoveSettings(bandwidth=30 * MIB), 0.0, 0.5, 60.0),
        (MoveSettings(policy="post-copy"), 60.0, 0.5, 60.0),
    ],
)
def test_a_packed_copy_is_foretold_as_one(wanted: MoveSettings, path: float, share: float, rate: float) -> None:
    seen = Observations(
        domain="busybox",
        source="a",
        target="b",
        settings=wanted,
        memory=replace(memory(200 * MIB), packed=share),
        probed=60.0 * MIB,
        path=path * MIB,
    )
    assert make(seen).link.rate == rate * MIB


def test_a_plan_tells_every_blocker_once_and_what_would_keep_it_from_coming_back() -> None:
    bridge = Blocker(kind=Obstacle.NETWORK, reason="there is no bridge xenbr7", hint="make it")
    shut = Blocker(kind=Obstacle.PORT, reason="connection refused", hint="start veeryd")
    paused = Blocker(kind=Obstacle.DOMAIN, reason="busybox is crashed")
    old = Blocker(kind=Obstacle.VERSION, reason="a has an older QEMU")
    seen = Observations(
        domain="busybox",
        source="a",
        target="b",
        settings=MoveSettings(),
        here=(paused,),
        way=(shut,),
        reply=Reply(node="b", blockers=(bridge, bridge), way_back=(shut,), abilities=ABLE),
        home=(old,),
    )
    plan = make(seen)
    assert plan.blockers == (paused, shut, bridge)
    assert plan.back == (old, shut)
    assert not plan.possible
    assert plan.forecast is None
    free = make(replace(seen, here=(), way=(), reply=None, memory=memory(64 * MIB)))
    assert free.possible
    assert free.forecast is not None
    assert free.forecast.bytes >= 64 * MIB + IDLE
    with_disk = make(replace(seen, memory=memory(64 * MIB), disk_bytes=1000 * MIB))
    assert with_disk.forecast is not None
    assert with_disk.forecast.total_ms > free.forecast.total_ms + 1000


@pytest.mark.parametrize(
    ("here", "there", "scales", "told"),
    [
        (2_600_000, 2_400_000, False, True),
        (2_600_000, 2_400_000, True, False),
        (2_600_000, 2_600_100, False, False),
        (0, 2_400_000, False, False),
        (2_600_000, 0, False, False),
    ],
)
def test_a_counter_that_cannot_be_scaled_is_told_and_keeps_nobody(
    here: int, there: int, scales: bool, told: bool
) -> None:
    target = replace(ABLE, accelerator="kvm", tsc_khz=there, tsc_scales=scales)
    seen = Observations(
        domain="web",
        source="near",
        target="far",
        settings=MoveSettings(),
        reply=Reply(node="far", blockers=(), way_back=(), abilities=target),
        abilities=replace(target, tsc_khz=here),
    )
    plan = make(seen)
    assert plan.possible
    assert bool(plan.cautions) is told
    assert any("2400 MHz" in line for line in lines(plan)) is told


@pytest.mark.parametrize(
    ("here", "there", "accelerator", "told"),
    [
        ("10.0.3", "10.0.4", "kvm", 1),  # what was mended in between
        ("10.0.4", "10.0.3", "kvm", 1),
        ("10.0.5", "10.1.0", "kvm", 2),
        ("10.0.2", "10.0.6", "kvm", 0),
        ("10.1.2", "10.0.2", "kvm", 0),
        ("10.1.1", "10.1.1", "kvm", 0),
        ("10.0.3", "10.0.4", "tcg", 0),
        ("", "10.0.4", "kvm", 1),
    ],
)
def test_known_defects_of_two_versions_are_told(here: str, there: str, accelerator: str, told: int) -> None:
    target = replace(ABLE, accelerator=accelerator, version=there)
    plan = make(
        Observations(
            domain="web",
            source="near",
            target="far",
            settings=MoveSettings(),
            reply=Reply(node="far", blockers=(), way_back=(), abilities=target),
            abilities=replace(target, version=here),
        )
    )
    assert plan.possible
    assert len(plan.cautions) == told
    assert all("https://" in each and "10." in each for each in plan.cautions)


def test_what_a_node_cannot_build() -> None:
    plan = Build(accel="tcg", memory=512, ports=8)
    assert obstacles(ABLE, SPEC, plan) == ()
    older = replace(ABLE, version="7.2.22", machines=("pc-q35-7.2",), features=("pni", "popcnt"))
    spec = replace(SPEC, kernel="/nowhere/vmlinuz")
    found = obstacles(older, spec, replace(plan, cpu="qemu64,+avx2,+pni", layout=99))
    assert [each.kind for each in found] == [
        Obstacle.VERSION,
        Obstacle.VERSION,
        Obstacle.VERSION,
        Obstacle.CPU,
        Obstacle.KERNEL,
    ]
    assert "corrupts memory" in found[0].reason
    assert "avx2" in found[3].reason
    assert "pni" not in found[3].reason
    assert all(each.hint for each in found)
    kvm = obstacles(replace(older, accelerator="kvm", machines=()), SPEC, replace(plan, accel="kvm"))
    assert [each.kind for each in kvm] == [Obstacle.CPU]  # under KVM an old QEMU corrupts nothing
    assert [each.kind for each in obstacles(ABLE, SPEC, replace(plan, accel="kvm"))] == [Obstacle.DRIVER]


FEATURES = st.frozensets(st.sampled_from(sorted(frozenset().union(*LEVELS))))


@given(sets=st.lists(FEATURES, min_size=1, max_size=5))
def test_every_node_can_give_the_baseline(sets: list[frozenset[str]]) -> None:
    nodes = [
        Processor(node=str(number), accelerator="kvm", model="", version="", features=tuple(sorted(one)))
        for number, one in enumerate(sets)
    ]
    shared = common(nodes)
    words, given_ = processor(shared, "kvm")
    assert all(needs(words) <= one for one in sets)
    assert level(given_) <= max(1, min(level(LEVELS[0] | one) for one in sets))
    assert processor(shared, "tcg")[0] == build.CPU


@pytest.mark.parametrize(
    ("driver", "state", "count"), [("xen", "paused", 1), ("qemu", "paused", 0), ("xen", "blocked", 0)]
)
def test_a_paused_domain_stays_where_it_is_under_xen(driver: str, state: str, count: int) -> None:
    reading = DomainReading(
        name="a", uuid="u", domid=3, state=DomainState(state), memory=64, vcpus=1, cpu_seconds=0.0, started=0.0
    )
    found = stopped(reading, driver)
    assert len(found) == count
    assert all(each.hint == "veery unpause a" for each in found)
