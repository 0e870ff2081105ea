"""The guard's decision, over every combination of what a node of a three-voter cluster can see."""

from __future__ import annotations

from itertools import product

import pytest

from veery.node.guard import Ruling, Stance, View, rule
from veery.node.witness import WitnessAnswer

END = 20.0
VOTERS = frozenset({"stor", "test1", "test2"})
ANSWERS = (True, False, None)


def seen(
    lost: float, *words: WitnessAnswer, fenced: bool = False, storage: frozenset[str] = frozenset({"stor"})
) -> Ruling:
    """What test1 makes of `words` and its own: its etcd knows no leader."""
    own = WitnessAnswer(node="test1", quorum=False)
    return rule(View(lost=lost, fenced=fenced, voters=VOTERS, storage=storage, words=(own, *words)), END)


def test_while_the_lease_holds_nothing_is_asked_of_anyone() -> None:
    assert seen(-0.1).stance is Stance.RUN
    assert seen(-0.1, WitnessAnswer(node="stor", fenced=True)).stance is Stance.RUN  # the store says that we are not
    assert seen(-0.1, fenced=True).stance is Stance.HOLD


@pytest.mark.parametrize("lost", [0.0, 5.0, END - 0.1, END, 500.0])
def test_alone_it_stops_and_then_ends(lost: float) -> None:
    wanted = Stance.HOLD if lost < END else Stance.END
    assert seen(lost) == Ruling(wanted, seen(lost).reason, feed=False)
    assert (
        seen(lost, WitnessAnswer(node="test2", quorum=True)).stance is wanted
    )  # the others have a quorum, and storage is silent


@pytest.mark.parametrize("lost", [0.0, END, 5000.0])
def test_without_a_quorum_anywhere_domains_run_on(lost: float) -> None:
    ruling = seen(lost, WitnessAnswer(node="test2", quorum=False))
    assert (ruling.stance, ruling.feed) == (Stance.STAY, True)
    assert "as reported by test1, test2" in ruling.reason


def test_one_leaderless_voter_of_three_proves_nothing() -> None:
    """Ours is: the two that do not answer may have a quorum of their own."""
    assert seen(1.0).stance is Stance.HOLD
    stranger = WitnessAnswer(node="test9", quorum=False)  # no voter that we know of
    assert seen(1.0, stranger).stance is Stance.HOLD


def test_storage_that_lets_us_in_lets_domains_run() -> None:
    ruling = seen(500.0, WitnessAnswer(node="stor", quorum=True, fenced=False))
    assert (ruling.stance, ruling.feed) == (Stance.STAY, False)  # the watchdog's time runs all the same
    both = frozenset({"stor", "stor2"})
    assert seen(1.0, WitnessAnswer(node="stor", fenced=False), storage=both).stance is Stance.HOLD
    assert (
        seen(
            1.0, WitnessAnswer(node="stor", fenced=False), WitnessAnswer(node="stor2", fenced=False), storage=both
        ).stance
        is Stance.STAY
    )
    assert seen(1.0, WitnessAnswer(node="stor", fenced=False), storage=frozenset()).stance is Stance.HOLD


def test_every_combination_of_two_answers() -> None:
    """What must hold whatever is seen."""
    times = (-5.0, 0.0, END - 1, END, 10 * END)
    for lost, quorum, fenced, other, silent in product(times, ANSWERS, ANSWERS, ANSWERS, (True, False)):
        words = [WitnessAnswer(node="stor", quorum=quorum, fenced=fenced)]
        if not silent:
            words.append(WitnessAnswer(node="test2", quorum=other))
        ruling = seen(lost, *words)
        leaderless = 1 + (quorum is False) + (not silent and other is False)
        if lost < 0:
            assert ruling == Ruling(Stance.RUN, ruling.reason, feed=True)
            continue
        assert ruling.stance is not Stance.RUN  # what is held goes on under a lease only
        assert ruling.feed == (ruling.stance is Stance.STAY and leaderless >= 2)
        if fenced:
            assert ruling.stance is (Stance.HOLD if lost < END else Stance.END)
        elif leaderless >= 2 or fenced is False:
            assert ruling.stance is Stance.STAY
        else:
            assert ruling.stance is (Stance.HOLD if lost < END else Stance.END)
        if ruling.feed:
            assert 2 * leaderless > len(VOTERS)


@pytest.mark.parametrize("lost", [0.0, END, 500.0])
def test_a_store_that_was_restored_ends_nothing(lost: float) -> None:
    """We reach it, and its doubt keeps everybody from acting on it: a fence by watchdog would lead to nothing."""
    own = WitnessAnswer(node="test1", quorum=True)
    view = View(lost=lost, fenced=False, voters=VOTERS, storage=frozenset({"stor"}), words=(own,), doubted=True)
    ruling = rule(view, END)
    assert (ruling.stance, ruling.feed) == (Stance.STAY, True)


def test_a_node_that_is_shut_out_stops_also_under_a_restored_store() -> None:
    shut = (WitnessAnswer(node="stor", fenced=True),)
    for lost, wanted in ((1.0, Stance.HOLD), (END, Stance.END)):
        view = View(lost=lost, fenced=False, voters=VOTERS, storage=frozenset({"stor"}), words=shut, doubted=True)
        ruling = rule(view, END)
        assert (ruling.stance, ruling.feed) == (wanted, False)
