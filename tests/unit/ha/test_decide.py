"""Decisions about single views: what the scenarios cannot reach, and what must never be decided."""

from __future__ import annotations

import dataclasses

import pytest
from bench.brain import EPOCH, cluster, drain, lose, measure, orphan

from veery.ha.decide import decide
from veery.ha.drainplan import plan
from veery.ha.states import NodeState, judge
from veery.ha.survival import stranded
from veery.ha.why import why
from veery.model.cluster import Owner
from veery.model.ha import (
    Admit,
    ClusterView,
    Disarmed,
    End,
    Fence,
    FenceMethods,
    FenceRecord,
    FenceState,
    Group,
    GroupKind,
    IntentKind,
    Move,
    NodeIntent,
    Note,
    Release,
    Rules,
    RunningCopy,
    RunRecord,
    Start,
    Steady,
    StorageHeartbeat,
)

RULES = Rules()
LOST = "node000"


def small() -> ClusterView:
    return cluster(4, 24)


def with_node(view: ClusterView, name: str, **fields: object) -> ClusterView:
    return dataclasses.replace(
        view,
        nodes={**view.nodes, name: dataclasses.replace(view.nodes[name], **fields)},  # type: ignore[arg-type]
    )


def with_domain(view: ClusterView, name: str, **fields: object) -> ClusterView:
    return dataclasses.replace(
        view,
        domains={**view.domains, name: dataclasses.replace(view.domains[name], **fields)},  # type: ignore[arg-type]
    )


def deeds(view: ClusterView) -> list[object]:
    return [action for action in decide(view, EPOCH, RULES) if not isinstance(action, Note)]


def test_a_healthy_cluster_is_left_alone() -> None:
    assert decide(small(), EPOCH, RULES) == ()


def test_a_lost_node_is_fenced_and_nothing_of_it_is_taken_before_the_proof() -> None:
    (fence,) = deeds(lose(small(), 1, fenced=False))
    assert isinstance(fence, Fence)
    assert (fence.name, fence.method) == (LOST, "storage")


def test_after_the_proof_its_domains_are_released_with_the_proof_as_their_guard() -> None:
    view = lose(small(), 1, fenced=True)
    released = deeds(view)
    assert [type(each) for each in released] == [Release] * 6
    assert all(each.fence == view.nodes[LOST].fence for each in released if isinstance(each, Release))


@pytest.mark.parametrize("state", [FenceState.FENCING, FenceState.FAILED])
def test_a_fence_that_is_not_proven_releases_nothing(state: FenceState) -> None:
    record = FenceRecord(state=state, method="storage", tried=(("storage", "no answer"),), at=EPOCH, revision=5)
    view = with_node(lose(small(), 1, fenced=False), LOST, fence=record)
    assert not [each for each in deeds(view) if isinstance(each, Release | Start)]


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"sign": StorageHeartbeat(age=0.5)}, NodeState.ISOLATED),
        ({"sign": StorageHeartbeat(age=0.5, stopped=True)}, NodeState.LOST),
        ({"intent": NodeIntent(kind=IntentKind.AWAY, away=100.0)}, NodeState.AWAY),
        ({"intent": NodeIntent(kind=IntentKind.AWAY, away=30.0)}, NodeState.LOST),
        ({"absent": 0.5}, NodeState.SILENT),
        ({"sign": None}, NodeState.LOST),
    ],
)
def test_what_a_silent_node_is(fields: dict[str, object], state: NodeState) -> None:
    view = with_node(lose(small(), 1, fenced=False), LOST, **fields)
    assert judge(view, EPOCH, RULES)[LOST] is state


def test_nobody_is_fenced_while_no_storage_node_tells() -> None:
    view = dataclasses.replace(lose(small(), 1, fenced=False), witnesses=0, watched=0.0)
    assert judge(view, EPOCH, RULES)[LOST] is NodeState.UNWATCHED
    assert deeds(view) == []


def test_a_storage_node_that_has_just_come_back_is_no_witness_of_silence_yet() -> None:
    view = dataclasses.replace(lose(small(), 1, fenced=False), watched=1.0)
    assert judge(view, EPOCH, RULES)[LOST] is NodeState.UNWATCHED


def test_nobody_is_judged_right_after_the_store_came_back() -> None:
    assert deeds(dataclasses.replace(lose(small(), 2, fenced=False), settled=5.0)) == []


@pytest.mark.parametrize("change", [{"quorum": False}, {"disarmed": Disarmed(by="me")}])
def test_without_quorum_or_disarmed_nothing_is_done(change: dict[str, object]) -> None:
    view = dataclasses.replace(orphan(lose(small(), 1, fenced=True), 3), **change)  # type: ignore[arg-type]
    assert [type(each) for each in decide(view, EPOCH, RULES)] == [Note]


@pytest.mark.parametrize(
    ("absent", "age", "witnesses", "fired"),
    [
        (40.0, 40.0, 3, True),
        (34.0, 40.0, 3, False),  # within the margin
        (40.0, 34.0, 3, False),  # fed by the storage's heartbeat later than by the lease
        (40.0, 40.0, 2, False),  # the third storage node may know of a younger heartbeat
    ],
)
def test_when_a_watchdog_is_proof(absent: float, age: float, witnesses: int, fired: bool) -> None:
    view = dataclasses.replace(lose(small(), 1, fenced=False), witnesses=witnesses)
    means = FenceMethods(methods=("watchdog",), watchdog=30.0)
    view = with_node(view, LOST, means=means, absent=absent, sign=StorageHeartbeat(age=age))
    assert [type(each) for each in deeds(view)] == ([Fence] if fired else [])


def test_a_node_that_is_back_with_an_old_copy_is_let_in_only_when_that_is_gone() -> None:
    proof = FenceRecord(state=FenceState.FENCED, revision=7)
    elsewhere = Owner(domain="domain0000", node="node001", boot="new", revision=9)
    view = with_domain(small(), "domain0000", owner=elsewhere)
    reading = view.nodes[LOST].reading
    assert reading is not None
    kept = [RunningCopy(domain=f"domain{number:04}", boot=f"domain{number:04}") for number in range(4, 24, 4)]
    old = RunningCopy(domain="domain0000", boot="domain0000")
    back = with_node(view, LOST, fence=proof, reading=dataclasses.replace(reading, copies=(*kept, old)))
    (end,) = deeds(back)
    assert isinstance(end, End)
    assert (end.name, end.boot) == ("domain0000", "domain0000")
    gone = with_node(view, LOST, fence=proof, reading=dataclasses.replace(reading, copies=tuple(kept)))
    assert [type(each) for each in deeds(gone)] == [Admit]
    assert deeds(with_node(gone, LOST, fresh=False)) == []


def test_room_goes_to_the_highest_priority_whether_it_is_lost_or_waits() -> None:
    view = lose(cluster(2, 4), 1, fenced=True)  # node001 has 170 MiB left
    names = [name for name, each in view.domains.items() if each.owner and each.owner.node == LOST]
    reading = view.nodes["node001"].reading
    assert reading is not None
    view = with_node(view, "node001", reading=dataclasses.replace(reading, room=3 * 256))
    low, high = sorted(names, key=lambda name: view.domains[name].ha.priority)
    view = with_domain(view, low, owner=None)
    assert [(type(each), each.name) for each in deeds(view)] == [(Release, high)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("run", "tries"),
    [
        (RunRecord(node=LOST, tries=5, at=EPOCH, revision=3), 4),  # the last start went well: its node was lost
        (RunRecord(node=LOST, tries=4, at=EPOCH, failed=(LOST,), revision=3), 4),  # it got no answer
        (RunRecord(node="node001", tries=4, at=EPOCH, revision=3), 4),  # moved since: it ran where it was started
        (None, 0),
    ],
)
def test_the_loss_of_a_node_is_no_failed_try(run: RunRecord | None, tries: int) -> None:
    view = with_domain(lose(small(), 1, fenced=True), "domain0000", run=run)
    (release,) = [each for each in deeds(view) if isinstance(each, Release) and each.name == "domain0000"]
    assert release.tries == tries


def test_tries_are_not_forgotten_while_the_node_is_gone() -> None:
    run = RunRecord(node=LOST, tries=2, at=EPOCH - 999.0, revision=3)
    steady = [each for each in deeds(with_domain(small(), "domain0000", run=run)) if isinstance(each, Steady)]
    assert [each.name for each in steady] == ["domain0000"]
    gone = with_domain(lose(small(), 1, fenced=False), "domain0000", run=run)
    assert not [each for each in deeds(gone) if isinstance(each, Steady)]


def test_back_off_doubles_and_ends_at_the_limit() -> None:
    view = orphan(small(), 1)
    ha = dataclasses.replace(view.domains["domain0000"].ha, max_restarts=4, group="")
    for tries, since, starts in ((1, 4.0, False), (1, 6.0, True), (3, 19.0, False), (3, 21.0, True), (4, 999.0, False)):
        run = RunRecord(tries=tries, at=EPOCH - since, revision=3)
        done = deeds(with_domain(view, "domain0000", ha=ha, run=run))
        assert bool([each for each in done if isinstance(each, Start)]) is starts, (tries, since)


def test_a_drain_keeps_its_limits_and_counts_moves_that_are_under_way() -> None:
    view = drain(small(), 1)
    assert [type(each) for each in deeds(view)] == [Move]
    busy = dataclasses.replace(view, moving={"domain0000": (LOST, "node001")}, acting=frozenset({"domain/domain0000"}))
    assert deeds(busy) == []


def test_the_domains_that_no_other_node_could_carry_are_named() -> None:
    view = cluster(3, 6)
    homes = {name: each.owner.node for name, each in view.domains.items() if each.owner}
    nodes = [name for name in view.nodes if name.startswith("node")]
    found = stranded(view, nodes, homes)  # 682 MiB each, 512 taken: two of 256 do not fit into 170 and 170
    assert (list(found), len(found[LOST])) == (nodes, 2)
    assert stranded(view, nodes, dict(list(homes.items())[:3])) == {}


@pytest.mark.parametrize(
    ("group", "lost"),
    [
        (Group(kind=GroupKind.APART, strict=True), {"node000": ("domain0000",), "node001": ("domain0001",)}),
        (Group(kind=GroupKind.APART), {}),
        (Group(nodes=("node000",)), {"node000": ("domain0000",)}),
    ],
)
def test_groups_speak_against_the_loss_of_a_node(group: Group, lost: dict[str, tuple[str, ...]]) -> None:
    view = dataclasses.replace(cluster(3, 3), groups={"db": group})
    for name in ("domain0000", "domain0001"):
        view = with_domain(view, name, ha=dataclasses.replace(view.domains[name].ha, group="db"))
    for name in ("node000", "node001"):
        reading = view.nodes[name].reading
        assert reading
        view = with_node(view, name, reading=dataclasses.replace(reading, room=1024))
    homes = {"domain0000": "node000", "domain0001": "node001"}
    found = stranded(view, ("node000", "node001"), homes)
    assert found == lost
    tied = with_domain(view, "domain0000", tied="node000")
    assert "node000" not in stranded(tied, ("node000", "node001"), homes), "no other node could ever run it"


def test_a_drain_of_a_storage_node_names_what_hangs_on_it() -> None:
    view = small()
    found = plan(view, "stor1", EPOCH, RULES, volumes={"web": ("domain0000",), "old": ("away",), "spare": ()})
    (risk,) = found.risks
    assert risk.startswith("domain0000 would lose disks when stor1 stops: it serves web, ")
    assert found.warnings == (
        "stor1 serves old, spare, which no running domain uses: they are not served while it is down",
    )
    assert plan(view, "stor1", EPOCH, RULES).risks == ()


def test_a_domain_that_has_ended_and_is_kept_blocks_a_drain_with_a_way_out() -> None:
    view = small()
    reading = view.nodes[LOST].reading
    assert reading is not None
    copy = RunningCopy(domain="domain0000", boot="domain0000", ended=True)
    view = with_node(view, LOST, reading=dataclasses.replace(reading, copies=(copy,)))
    (blocker,) = plan(view, LOST, EPOCH, RULES).blockers
    assert blocker.endswith("it has ended and is kept, so it cannot be moved: veery --node node000 destroy domain0000")
    (stuck,) = [each for each in decide(drain(view, 1), EPOCH, RULES) if each.name == "domain0000"]
    assert isinstance(stuck, Note)
    assert stuck.state == "stuck"
    assert [each.name for each in deeds(drain(view, 1))] == ["domain0008"], "the others leave"  # type: ignore[attr-defined]


def test_why_says_how_a_domain_stands_now() -> None:
    view = small()
    reading = view.nodes[LOST].reading
    assert reading is not None
    said = "paused: veery --node node000 unpause domain0000 lets it go on"
    copy = RunningCopy(domain="domain0000", boot="domain0000", said=said)
    view = with_node(view, LOST, reading=dataclasses.replace(reading, copies=(copy,)))
    assert f"domain0000 {said}" in why(view, "domain0000", EPOCH, RULES)
    ha = dataclasses.replace(view.domains["domain0000"].ha, wanted=False)
    lines = "; ".join(why(with_domain(view, "domain0000", ha=ha), "domain0000", EPOCH, RULES))
    assert "is not restarted: it was asked to end" in lines
    assert "to have it restarted: veery ha set domain0000 restart" in lines
    assert "policy restart: not restarted" in lines
    gone = with_domain(with_node(view, LOST, absent=60.0, present=None), "domain0000", ha=ha)
    assert said not in "; ".join(why(gone, "domain0000", EPOCH, RULES)), "nobody knows how it stands now"


def test_why_says_that_a_guest_was_asked_to_shut_down_and_when_that_lapses() -> None:
    view = small()
    ha = dataclasses.replace(view.domains["domain0000"].ha, wanted=False, stopping=EPOCH - 60)
    lines = "; ".join(why(with_domain(view, "domain0000", ha=ha), "domain0000", EPOCH, RULES))
    assert "domain0000 was asked to shut down 60 s ago and is not restarted; the request lapses in 540 s" in lines
    assert "to take it back now: veery ha set domain0000 restart" in lines
    assert "it was asked to end, or has ended" not in lines
    ended = with_domain(view, "domain0000", ha=ha, owner=None)
    assert "lapses" not in "; ".join(why(ended, "domain0000", EPOCH, RULES)), "it has followed"


def test_a_node_that_arrives_for_too_long_is_no_reason_to_call_nobody() -> None:
    view = orphan(cluster(2, 4), 1)
    for name in ("node000", "node001"):
        view = with_node(view, name, fresh=False)  # they never say what room they have
    for present, state in ((2.0, "arriving"), (60.0, "no-place")):
        for name in ("node000", "node001"):
            view = with_node(view, name, present=present)
        (found,) = decide(view, EPOCH, RULES)
        assert isinstance(found, Note)
        assert found.state == state


def test_an_unknown_node_cannot_be_drained() -> None:
    (blocker,) = plan(small(), "moon", EPOCH, RULES).blockers
    assert blocker.startswith("no node 'moon': the nodes are node000,")


def test_a_large_cluster_is_decided_in_time() -> None:
    whole = cluster()
    assert measure(whole, 3)[2] == 0
    assert measure(lose(whole, 5, fenced=True), 3)[1] < 2000


def test_a_node_is_not_fenced_for_a_place_that_a_waiting_domain_takes() -> None:
    view = lose(cluster(2, 4), 1, fenced=False)
    names = [name for name, each in view.domains.items() if each.owner and each.owner.node == LOST]
    low, high = sorted(names, key=lambda name: view.domains[name].ha.priority)
    reading = view.nodes["node001"].reading
    assert reading is not None
    room = sum(each.memory for each in view.domains.values()) - view.domains[low].memory
    view = with_node(view, "node001", reading=dataclasses.replace(reading, room=room))
    assert [type(each) for each in deeds(view)] == [Fence]
    assert [type(each) for each in deeds(with_domain(view, high, owner=None))] == [Start]
