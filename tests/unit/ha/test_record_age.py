"""How old a run is, by a steady clock: a wall clock that somebody sets lets nothing go early."""

from __future__ import annotations

import dataclasses

import pytest
from bench.brain import EPOCH, cluster

from veery.ha.decide import decide
from veery.ha.record_age import RecordAges
from veery.host.clock import RealClock
from veery.model.ha import ClusterView, Rules, RunRecord, Start

NAME = "domain/domain0000"


class TwoClocks(RealClock):
    """The steady one, and the wall's, which can be set beside it."""

    def __init__(self) -> None:
        self.steady, self.wall = 100.0, EPOCH

    def now(self) -> float:
        return self.steady

    def epoch(self) -> float:
        return self.wall

    def pass_by(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


def begun(at: float, *, tries: int = 0) -> ClusterView:
    """A view in which nobody runs the first domain, whose last run began at `at`."""
    view = cluster(4, 24)
    name = NAME.removeprefix("domain/")
    mine = dataclasses.replace(view.domains[name], owner=None, run=RunRecord(node="node000", at=at, tries=tries))
    return dataclasses.replace(view, domains={**view.domains, name: mine})


def test_a_clock_that_is_set_changes_no_age() -> None:
    clock = TwoClocks()
    ages = RecordAges(clock)
    assert ages.of(begun(EPOCH - 4))[NAME] == 4  # it was there before: the wall clocks alone tell
    clock.pass_by(1)
    clock.wall += 2400
    assert ages.of(begun(EPOCH - 4))[NAME] == 5
    clock.wall -= 9000
    assert ages.of(begun(EPOCH - 4))[NAME] == 5


@pytest.mark.parametrize(("ahead", "age"), [(0.0, 0.25), (2400.0, 1.0), (-2400.0, 0.0)])
def test_a_record_that_is_new_is_no_older_than_the_last_look(ahead: float, age: float) -> None:
    clock = TwoClocks()
    ages = RecordAges(clock)
    ages.of(begun(EPOCH - 60))
    clock.pass_by(1)
    at = clock.wall - 0.25
    clock.wall += ahead
    assert ages.of(begun(at))[NAME] == age


def test_what_comes_from_the_future_is_of_now() -> None:
    assert RecordAges(TwoClocks()).of(begun(EPOCH + 300))[NAME] == 0


@pytest.mark.parametrize(("told", "starts"), [(1.0, False), (15.0, True)])
def test_a_try_waits_by_the_age_whatever_the_wall_clock_says(told: float, starts: bool) -> None:
    view = dataclasses.replace(begun(EPOCH - 5, tries=1), ages={NAME: told})
    done = decide(view, EPOCH + 2400, Rules())
    assert any(isinstance(each, Start) and each.subject == NAME for each in done) is starts
