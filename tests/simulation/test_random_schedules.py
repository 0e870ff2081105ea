"""Whatever happens: one writer a disk, proof before a start, everything runs in the end, nothing is done needlessly."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from mutants import MUTANTS, Mutant, check_all
from mutants import play as play_mutant
from schedules import FAST, QUICK, SEED, Fault, Schedule, check, restored_schedules, schedules

from veery.ha.simulation.play import play
from veery.ha.simulation.scenario import DomainSetup, NodeSetup
from veery.model.node import Role


@pytest.mark.timeout(1800)  # half a minute of one processor; of a busy machine much more
@seed(SEED)
@settings(FAST, max_examples=QUICK)
@given(schedule=schedules())
def test_a_random_schedule_keeps_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))


@pytest.mark.timeout(1800)
@seed(SEED)
@settings(FAST, max_examples=QUICK)
@given(schedule=restored_schedules())
def test_a_store_that_is_restored_starts_and_ends_nothing(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))


def test_every_mutant_can_still_be_made() -> None:
    check_all()


@pytest.mark.timeout(900)
def test_the_schedules_find_a_silence_that_is_judged_too_soon() -> None:
    mutant = next(each for each in MUTANTS if each.name == "silence is judged however new the store is")
    assert "only just come back" in play_mutant(mutant, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_schedules_find_every_mutant(mutant: Mutant) -> None:
    """Those of the quick run, and those that are not marked as rare all within it."""
    found = play_mutant(mutant, 1000 if mutant.rare else QUICK)
    assert found and not found.startswith("no verdict"), found


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
@pytest.mark.timeout(7200)
@settings(FAST, max_examples=3000)
@given(schedule=schedules())
def test_thousands_of_random_schedules_keep_every_promise(schedule: Schedule) -> None:
    check(schedule, play(schedule.scenario()))
