"""Whatever happens: one writer a disk, proof before a start, everything runs in the end, nothing is done needlessly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from schedules import Schedule, check, schedules

from veery.ha.simulation.play import play

QUIET = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=40)
@given(schedule=schedules())
def test_a_random_schedule_keeps_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(QUIET, max_examples=3000, derandomize=False)
@given(schedule=schedules())
def test_thousands_of_random_schedules_keep_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))
