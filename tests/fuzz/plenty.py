"""How long fuzzers run: a fixed slice by default, for FUZZ_SECONDS with examples of their own each time otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / ".cache" / "fuzz"
"""What was found is kept here, and tried first by the next long run."""
KEPT = ROOT / "tests" / "data" / "fuzz"
"""Inputs that were once mishandled: every run tries them."""
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
FUZZERS = 9
"""The fuzzers that share FUZZ_SECONDS."""
ROUND = 200
"""Examples between two looks at the clock."""


def plenty(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a property `examples` times, always the same ones; where FUZZ_SECONDS is set, for this fuzzer's share of
    them, each time with others."""
    quiet = list(HealthCheck)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        if not SECONDS:
            steady = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
            return settings(steady, suppress_health_check=quiet)(test)
        database = DirectoryBasedExampleDatabase(CORPUS)
        more = settings(max_examples=ROUND, deadline=None, derandomize=False, database=database)
        wild = settings(more, suppress_health_check=quiet)(test)

        @wraps(wild)
        def run(*args: Any, **keywords: Any) -> None:
            ends = time.monotonic() + SECONDS / FUZZERS
            while time.monotonic() < ends:
                wild(*args, **keywords)

        return run

    return decorate
