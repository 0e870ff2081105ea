"""Whatever happens: one writer a disk, proof before a start, everything runs in the end, nothing is done needlessly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from schedules import Fault, Schedule, check, schedules

from veery.ha.simulation.play import play
from veery.ha.simulation.scenario import DomainSetup, NodeSetup
from veery.model.node import Role

QUIET = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=40)
@given(schedule=schedules())
def test_a_random_schedule_keeps_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))


def test_the_judge_sees_a_start_without_proof() -> None:
    """The fence fails twice while the node stands frozen: nothing starts before the third, which is the proof."""
    nodes = {name: NodeSetup() for name in ("n1", "n2", "n3")}
    nodes["stor"] = NodeSetup(roles=(Role.STORAGE, Role.VOTER), room=0)
    frozen = Fault(kind="freeze", node="n1", domain="d", begin=20.0, lasts=41.0)
    told = play(Schedule(nodes, {"d": DomainSetup(on="n1")}, (frozen,), ()).scenario())
    check(Schedule(nodes, {"d": DomainSetup(on="n1")}, (frozen,), ()), told)
    assert [(node, method) for _, node, method in told.fences] == [("n1", "storage")]
    assert told.starts[0][0] > told.fences[0][0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(QUIET, max_examples=3000, derandomize=False)
@given(schedule=schedules())
def test_thousands_of_random_schedules_keep_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))
