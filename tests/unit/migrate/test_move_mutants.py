"""The mutants of a move: that each can still be made (fast), and that the tests which it names find it (slow)."""

from __future__ import annotations

import pytest
from move_mutants import MUTANTS

from mutation import Mutant, check, found_by


def test_every_mutant_can_still_be_made() -> None:
    check(MUTANTS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_fast_tests_find_every_mutant(mutant: Mutant) -> None:
    found = found_by(mutant)
    assert found.startswith("FAILED"), found or "it lives"
