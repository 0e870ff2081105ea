"""Play COUNT random schedules one after the other, and stop at the first that breaks a promise: exit status 1 then.

    python tests/simulation/tries.py COUNT [SEED]

Unlike the test beside it it neither shrinks nor repeats: it only answers how soon a fault of the brain is found.
SEED left out: the quick test's."""

from __future__ import annotations

import os
import sys

from hypothesis import given, seed, settings
from schedules import FAST, SEED, Schedule, check, schedules

from veery.ha.simulation.play import play


def tries(count: int, number: int) -> int:
    """How many were played, with the seed `number`; ends this process with status 1 at the first that is broken."""
    played = 0

    @seed(number)
    @settings(FAST, max_examples=count)
    @given(schedule=schedules())
    def each(schedule: Schedule) -> None:
        nonlocal played
        played += 1
        try:
            check(schedule, play(schedule.scenario()))
        except Exception as error:
            print(f"schedule {played}: {schedule}\nbroken: {type(error).__name__}: {error}", flush=True)
            os._exit(1)  # hypothesis would play it again, to be sure of it

    each()
    return played


if __name__ == "__main__":
    print(tries(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SEED), "played, none broken")
