"""Play COUNT random schedules one after the other, and stop at the first that breaks a promise: exit status 1 then.

    python tests/simulation/tries.py COUNT [SEED] [--all]

Unlike the test beside it it neither shrinks nor repeats: it only answers how soon a fault of the brain is found.
SEED left out: the quick test's. With --all it goes on, tells how far it is, and in the end how many were broken."""

from __future__ import annotations

import os
import sys

from hypothesis import given, seed, settings
from schedules import FAST, SEED, Schedule, check, schedules

from veery.ha.simulation.play import play

TELL = 50  # schedules from one word of how far it is to the next


def tries(count: int, number: int, *, every: bool) -> tuple[int, int]:
    """How many were played with the seed `number`, and how many of them were broken; unless `every` is wanted the first
    that is broken ends this process with status 1."""
    played = broken = 0

    @seed(number)
    @settings(FAST, max_examples=count)
    @given(schedule=schedules())
    def each(schedule: Schedule) -> None:
        nonlocal played, broken
        played += 1
        try:
            check(schedule, play(schedule.scenario()))
        except Exception as error:
            print(f"schedule {played}: {schedule}\nbroken: {type(error).__name__}: {error}", flush=True)
            if not every:
                os._exit(1)  # hypothesis would play it again, to be sure of it
            broken += 1
        if every and played % TELL == 0:
            print(f"{played} played, {broken} broken", flush=True)

    each()
    return played, broken


def main() -> int:
    """Exit status 1 where one was broken."""
    figures = [int(each) for each in sys.argv[1:] if each.isdigit()]
    played, broken = tries(figures[0], figures[1] if len(figures) > 1 else SEED, every="--all" in sys.argv)
    print(f"{played} played, {broken or 'none'} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
