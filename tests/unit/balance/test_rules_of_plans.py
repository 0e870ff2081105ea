"""Golden scenarios: what the balancer does about need, rules, N+1, memory and cost, one rule a test."""

from __future__ import annotations

import dataclasses

import pytest
from clusters import FREE, check, cluster, moves, nodes, on

from veery.balance import planner
from veery.balance.candidates import candidates
from veery.balance.model import Limits
from veery.balance.state import State

RELIEVE = dataclasses.replace(FREE, even=False)


# ---- relieve
def test_a_busy_node_is_relieved_by_one_move() -> None:
    made = cluster(nodes(3), on("a", "hog", load=4.0) | on("a", "x", "y", load=1.5) | on("b", "z", load=1.0))
    plan = planner.plan(made, RELIEVE)
    assert [move.target for move in plan.moves] == ["c"]
    assert plan.moves[0].relieves == pytest.approx(0.6)  # 7.0 of 6.4 cores
    assert "a is 88% busy, above 80%" in plan.moves[0].why
    check(made, plan)


def test_a_node_below_the_limit_is_not_relieved() -> None:
    assert moves(cluster(nodes(2), on("a", "x", "y", load=3.1)), RELIEVE) == []


def test_the_host_itself_counts_as_load() -> None:
    made = cluster({"a": {"load": 4.0}, "b": {}, "c": {}}, on("a", "x", "y", load=1.5))
    assert len(moves(made, RELIEVE)) == 1


def test_relief_comes_before_evenness() -> None:
    """a lacks processor time; b has four times the memory in use."""
    made = cluster(nodes(3), on("a", "x", "y", load=3.5, memory=128) | on("b", *"stuv", memory=1536))
    first = planner.plan(made, FREE).moves[0]
    assert first.source == "a" and first.relieves > 0


def test_a_hog_that_fits_nowhere_makes_room_by_others() -> None:
    made = cluster(nodes(2), on("a", "hog", load=6.0) | on("a", "x", load=1.0) | on("b", "y", load=2.0))
    assert moves(made, RELIEVE) == [("x", "b")]  # the hog would make b busy


def test_no_move_makes_another_node_busy() -> None:
    made = cluster(nodes(2), on("a", "x", "y", load=3.6) | on("b", "z", load=6.0))
    assert moves(made, RELIEVE) == []  # 7.2 and 6.0 of 6.4 cores: each move ends no need, it carries it over


# ---- even
def test_even_domains_over_equal_nodes() -> None:
    made = cluster(nodes(2), on("a", *"stuv"))
    plan = planner.plan(made, FREE)
    assert len(plan.moves) == 2
    assert plan.after.total == pytest.approx(0)


def test_an_even_cluster_stays() -> None:
    plan = planner.plan(cluster(nodes(2), on("a", "x") | on("b", "y")), FREE)
    assert plan.moves == () and plan.end == "no further move gains enough"


def test_a_larger_node_takes_more() -> None:
    made = cluster({"a": {}, "b": {"memory": 24576, "cores": 24}}, on("a", *"stuv"))
    assert len(moves(made)) == 3


def test_relieve_only_leaves_an_uneven_cluster() -> None:
    assert moves(cluster(nodes(2), on("a", *"stuv")), RELIEVE) == []


def test_a_small_gain_is_no_move() -> None:
    made = cluster(nodes(2), on("a", "x", memory=20, vcpus=1) | on("b", "y", memory=10, vcpus=1))
    made_uneven = cluster(nodes(2), on("a", "x", "s", memory=10) | on("b", "y", memory=10))
    assert moves(made) == []
    assert moves(made_uneven, dataclasses.replace(FREE, gain=0.2)) == []


def test_the_most_moves() -> None:
    plan = planner.plan(cluster(nodes(2), on("a", *"stuv")), Limits(payback=0, moves=1))
    assert len(plan.moves) == 1 and plan.end == "the plan has its most moves, 1"
    assert planner.plan(cluster(nodes(2), on("a", *"stuv")), Limits(payback=0, moves=0)).moves == ()


# ---- cost
def test_a_move_must_gain_more_than_its_copy_costs() -> None:
    made = cluster(nodes(2, memory=131072), on("a", "x", "y", memory=49152))
    assert len(moves(made)) == 1
    assert moves(dataclasses.replace(made, link=1.0), Limits()) == []  # half a day of copying


def test_of_two_equal_gains_the_smaller_copy() -> None:
    made = cluster(nodes(2), on("a", "x", load=4.0, memory=4096) | on("a", "y", load=4.0, memory=256))
    made = dataclasses.replace(made, link=1.0)
    assert moves(made, Limits(even=False)) == [("y", "b")]


# ---- memory
def test_a_node_is_never_filled_beyond_its_memory() -> None:
    made = cluster(nodes(2, memory=4096), on("a", "x", "y", load=3.5, memory=2000) | on("b", "z", memory=2200))
    assert moves(made) == []


def test_memory_of_the_host_is_no_room() -> None:
    made = cluster({"a": {}, "b": {"reserved": 7500}}, on("a", "x", "y", load=3.5))
    assert moves(made) == []


def test_a_target_does_not_become_tight() -> None:
    made = cluster(nodes(2, memory=10000), on("a", "x", "y", load=3.5, memory=900) | on("b", "z", memory=8400))
    assert moves(made, RELIEVE) == []  # 93 %
    assert len(moves(made, dataclasses.replace(RELIEVE, tight=0.95))) == 1


# ---- rules
def test_balance_off_stays() -> None:
    assert moves(cluster(nodes(2), on("a", *"stuv", balance="off"))) == []


def test_apart_stays_apart() -> None:
    made = cluster(
        nodes(2),
        on("a", "x", load=3.5, groups=["g"]) | on("a", "y", load=3.5, balance="off") | on("b", "z", groups=["g"]),
        g={"strict": True},
    )
    assert ("x", "b") not in moves(made)


def test_together_stays_together() -> None:
    made = cluster(nodes(2), on("a", "x", "y", groups=["g"], load=3.5), g={"kind": "together"})
    assert moves(made) == []


def test_a_group_stays_on_its_nodes() -> None:
    made = cluster(nodes(3), on("a", *"stuv", groups=["g"]), g={"nodes": ["a", "b"], "kind": "apart"})
    assert all(target == "b" for _, target in moves(made))


def test_members_that_are_not_apart_are_parted() -> None:
    made = cluster(nodes(3), on("a", "x", "y", groups=["g"]) | on("b", "s") | on("c", "t"), g={})
    plan = planner.plan(made, RELIEVE)
    assert len(plan.moves) == 1 and plan.before.conflicts == 1 and plan.after.conflicts == 0
    assert "1 domain fewer would break the rule" in plan.moves[0].why


def test_members_that_are_not_together_are_joined() -> None:
    made = cluster(nodes(3), on("a", "x", "y", groups=["g"]) | on("b", "z", groups=["g"]), g={"kind": "together"})
    assert moves(made, RELIEVE) == [("z", "a")]


def test_a_domain_on_a_wrong_node_goes_to_a_right_one() -> None:
    made = cluster(nodes(3), on("a", "x", groups=["g"]), g={"nodes": ["b"]})
    assert moves(made, RELIEVE) == [("x", "b")]


def test_every_group_of_a_domain_counts() -> None:
    made = cluster(
        nodes(3),
        on("a", "x", groups=["g", "h"], load=3.5)
        | on("a", "y", load=3.5, balance="off")
        | on("b", "s", groups=["g"])
        | on("c", "t", groups=["h"]),
        g={},
        h={},
    )
    assert moves(made) == []


# ---- nodes out of service
def test_a_node_out_of_service_gets_nothing_and_keeps_what_it_has() -> None:
    made = cluster({"a": {}, "b": {}, "c": {"in_service": False}}, on("a", *"stuv") | on("c", "x", load=9.0))
    assert {target for _, target in moves(made)} == {"b"}


def test_one_node_has_no_moves() -> None:
    plan = planner.plan(cluster(nodes(1), on("a", "x", load=9.0, restart=False)), FREE)
    assert plan.moves == ()


def test_a_cluster_without_domains_or_without_nodes_in_service() -> None:
    assert moves(cluster(nodes(2), {})) == []
    assert moves(cluster(nodes(2, in_service=False), on("a", "x"))) == []


# ---- N+1
def test_n1_is_never_made_worse() -> None:
    """Only b has room for big. Evenness alone would fill it."""
    made = cluster(
        nodes(3, memory=4096),
        on("a", "big", memory=3500) | on("b", *"stu", memory=300) | on("c", "mid", memory=3900, restart=False),
    )
    plan = planner.plan(made, FREE)
    check(made, plan)
    assert plan.before.stranded == plan.after.stranded


def test_n1_bars_a_move_that_would_strand() -> None:
    made = cluster(
        nodes(2, memory=4096), on("a", "x", "y", memory=1900, load=3.5) | on("b", "z", memory=200, restart=True)
    )
    plan = planner.plan(made, FREE)
    check(made, plan)
    assert plan.before.stranded == 0 and plan.after.stranded == 0


def test_n1_is_mended() -> None:
    """The loss of a would strand big: b and c have 2296 MiB each. The domain of one moves to the other."""
    made = cluster(
        nodes(3, memory=4096),
        on("a", "big", memory=2500) | on("b", "s", memory=1800) | on("c", "t", memory=1800),
    )
    plan = planner.plan(made, RELIEVE)
    check(made, plan)
    assert plan.before.stranded == 1 and plan.after.stranded == 0
    assert "1 domain more would find a place" in plan.moves[0].why


def test_a_domain_that_is_not_restarted_needs_no_reserve() -> None:
    made = cluster(nodes(2, memory=4096), on("a", "x", memory=3000, restart=False) | on("b", "y", memory=3000))
    assert planner.plan(made, FREE).before.stranded == 1  # y alone


def test_the_score_by_hand() -> None:
    made = cluster(nodes(2), on("a", "x", "y", load=2.0) | on("b", "z"))
    score = planner.plan(made, Limits(moves=0)).before
    assert score.memory == pytest.approx(0.0625)  # free 6/8 and 7/8
    assert score.vcpus == pytest.approx(0.0625)
    assert score.load == pytest.approx(0.25)  # 4/8 and 0
    assert score.total == pytest.approx(0.375)


def test_a_state_counts_the_members_of_broken_groups() -> None:
    made = cluster(nodes(2), on("a", "x", "y", "z", groups=["g"]), g={"nodes": ["b"]})
    assert State(made).conflicts() == 2 + 3  # two too many on a, and three on a wrong node


def test_a_source_that_is_overfull_fills_no_target_beyond_its_memory() -> None:
    made = cluster(nodes(2, memory=4096), on("a", *"xyz", memory=2000) | on("b", "t", memory=2500))
    assert moves(made) == []  # a is 1904 MiB beyond its memory; b would be 404 beyond


def test_evenness_makes_no_node_busy() -> None:
    made = cluster(nodes(2), on("a", "x", memory=4096, vcpus=4, load=0.1) | on("b", "y", memory=64, load=6.35))
    assert ("x", "b") not in moves(made)


def test_a_domain_that_is_settled_is_no_candidate() -> None:
    made = cluster(nodes(2), on("a", "x", "y"))
    assert {each.name for each in candidates(State(made), FREE, {"x"})} == {"y"}
