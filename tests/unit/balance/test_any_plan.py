"""Whatever the cluster, a plan keeps the rules, makes no N+1 worse, fills no node, and says true scores."""

from __future__ import annotations

import dataclasses
from typing import Any

from clusters import check
from hypothesis import given, settings
from hypothesis import strategies as st

from veery.balance import planner
from veery.balance.file import parse
from veery.balance.model import Cluster, Limits

GROUPS = ("g", "h", "i")


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """A cluster whose nodes have room for what is on them; its groups may be broken and its N+1 too."""
    count = draw(st.integers(1, 6))
    names = "abcdef"[:count]
    nodes: list[dict[str, Any]] = [
        {
            "name": name,
            "memory": draw(st.sampled_from([2048, 4096, 8192])),
            "reserved": draw(st.sampled_from([0, 256])),
            "cores": draw(st.sampled_from([2, 4, 8])),
            "load": draw(st.sampled_from([0.0, 0.5])),
            "in_service": draw(st.integers(0, 9)) > 0,
        }
        for name in names
    ]
    free = {node["name"]: node["memory"] - node["reserved"] for node in nodes}
    groups = [
        {
            "name": name,
            "kind": draw(st.sampled_from(["apart", "together"])),
            "strict": draw(st.booleans()),
            "nodes": draw(st.lists(st.sampled_from(names), unique=True, max_size=2)),
        }
        for name in GROUPS
    ]
    domains = []
    for number in range(draw(st.integers(0, 20))):
        memory, node = draw(st.sampled_from([128, 256, 512, 1024, 1500])), draw(st.sampled_from(names))
        if free[node] < memory:
            continue
        free[node] -= memory
        row = {
            "name": f"d{number}",
            "node": node,
            "memory": memory,
            "vcpus": draw(st.integers(1, 4)),
            "load": draw(st.sampled_from([0.0, 0.1, 0.7, 1.5, 3.0])),
            "groups": draw(st.lists(st.sampled_from(GROUPS), unique=True, max_size=2)),
            "balance": draw(st.sampled_from(["on", "on", "on", "off"])),
            "restart": draw(st.booleans()),
        }
        domains.append(row)
    return parse({"nodes": nodes, "domains": domains, "groups": groups})


limits = st.builds(
    Limits,
    moves=st.integers(0, 8),
    payback=st.sampled_from([0.0, 3.0]),
    even=st.booleans(),
    trials=st.sampled_from([0, 0, 10]),
    candidates=st.sampled_from([20, 6000]),
)


@settings(max_examples=150, deadline=None)
@given(clusters(), limits)
def test_a_plan_is_safe_and_true(cluster: Cluster, limits: Limits) -> None:
    plan = planner.plan(cluster, limits)
    check(cluster, plan)
    assert len(plan.moves) <= limits.moves
    assert plan.after.stranded <= plan.before.stranded
    assert plan.after.conflicts <= plan.before.conflicts


@settings(max_examples=40, deadline=None)
@given(clusters(), limits)
def test_trials_never_make_a_plan_worse(cluster: Cluster, limits: Limits) -> None:
    with_trials = planner.plan(cluster, dataclasses.replace(limits, trials=10))
    without = planner.plan(cluster, dataclasses.replace(limits, trials=0))
    assert with_trials.after.total <= without.after.total + 1e-9 or len(with_trials.moves) > len(without.moves)


@settings(max_examples=40, deadline=None)
@given(clusters(), limits)
def test_a_plan_is_the_same_again(cluster: Cluster, limits: Limits) -> None:
    """Also if the file lists everything in another order."""
    turned = Cluster(
        nodes=dict(reversed(cluster.nodes.items())),
        domains=dict(reversed(cluster.domains.items())),
        groups=dict(reversed(cluster.groups.items())),
    )
    plan = planner.plan(cluster, limits)
    assert plan == planner.plan(cluster, limits)
    assert [(each.domain, each.target) for each in plan.moves] == [
        (each.domain, each.target) for each in planner.plan(turned, limits).moves
    ]
