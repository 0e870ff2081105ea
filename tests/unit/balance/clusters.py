"""Small described clusters for the tests of the balancer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veery.balance import planner
from veery.balance.file import parse
from veery.balance.model import Cluster, Limits, Plan
from veery.balance.reserve import Reserve
from veery.balance.state import State

FREE = Limits(payback=0)  # moves cost nothing


def cluster(
    nodes: Mapping[str, Mapping[str, Any]], domains: Mapping[str, Mapping[str, Any]], **groups: Mapping[str, Any]
) -> Cluster:
    """Nodes of 8 GiB and 8 cores, and domains of 1 GiB and one vcpu, but for what is given."""
    return parse(
        {
            "nodes": [{"name": name, "memory": 8192, "cores": 8, **each} for name, each in nodes.items()],
            "domains": [{"name": name, "memory": 1024, "vcpus": 1, **each} for name, each in domains.items()],
            "groups": [{"name": name, **each} for name, each in groups.items()],
        }
    )


def nodes(count: int, **each: Any) -> dict[str, dict[str, Any]]:
    """`count` equal nodes: a, b, c, ..."""
    return {"abcdefgh"[place]: dict(each) for place in range(count)}


def on(node: str, *names: str, **each: Any) -> dict[str, dict[str, Any]]:
    """Equal domains on one node."""
    return {name: {"node": node, **each} for name in names}


def moves(cluster: Cluster, limits: Limits = FREE) -> list[tuple[str, str]]:
    """The (domain, target) of each move of the plan."""
    return [(each.domain, each.target) for each in planner.plan(cluster, limits).moves]


def check(cluster: Cluster, plan: Plan) -> None:
    """Play the moves one by one: each keeps every rule, makes no N+1 worse, and has the stated score."""
    state = State(cluster)
    reserve = Reserve(state)
    assert plan.before == state.score(reserve.total)
    seen = set()
    for move in plan.moves:
        domain, target = cluster.domains[move.domain], state.index[move.target]
        source = state.where[move.domain]
        assert state.nodes[source].name == move.source != move.target
        assert domain.balance
        assert move.domain not in seen
        assert target < state.count and source < state.count
        seen.add(move.domain)
        pain, wrong = state.pain(), state.conflicts()
        before, broken = list(reserve.counts), {name: state.broken(name) for name in cluster.groups}
        state.move(move.domain, target)
        reserve.renew()
        assert state.free[target] >= 0
        assert state.pain() <= pain + 1e-9 or state.conflicts() < wrong
        assert all(new <= old for new, old in zip(reserve.counts, before, strict=True))
        assert all(state.broken(name) <= count for name, count in broken.items())
        for group in domain.groups:
            assert not cluster.groups[group].nodes or move.target in cluster.groups[group].nodes
        same(move.score, state.score(reserve.total))
    same(plan.after, state.score(reserve.total))


def same(one: object, other: object) -> None:
    """Compare two scores, but for rounding errors."""
    import dataclasses

    import pytest

    assert dataclasses.asdict(one) == pytest.approx(dataclasses.asdict(other), abs=1e-9)  # type: ignore[call-overload]
