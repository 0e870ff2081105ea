"""Faults put into the package, one line each: what the lists of mutants share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import veery

PACKAGE = Path(veery.__file__).parent
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """In `file` of the package `old` becomes `new`. `rare`: only the slow run has to find it. `by`: the tests, one or
    several with spaces between, or the scenario that have to find it; "": the schedules."""

    name: str
    file: str
    old: str
    new: str
    rare: bool = False
    by: str = ""


def check(mutants: Sequence[Mutant]) -> None:
    """Raise AssertionError where a line to be changed is not there once, or a name stands twice."""
    for mutant in mutants:
        count = (PACKAGE / mutant.file).read_text().count(mutant.old)
        assert count == 1, f"{mutant.name}: {count} times in {mutant.file}: {mutant.old}"
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names), "two mutants have one name"


@contextmanager
def made(mutant: Mutant) -> Iterator[dict[str, str]]:
    """A copy of the package with the fault in it; the environment in which it is imported instead of ours."""
    with tempfile.TemporaryDirectory(prefix="veery-mutant-") as folder:
        shutil.copytree(PACKAGE, Path(folder) / "veery", ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder) / "veery" / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        yield {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}


def found_by(mutant: Mutant, deadline: float = 300.0) -> str:
    """The first of the tests `mutant.by` that fails; "" when all pass, "no verdict: ..." when they did not run."""
    with made(mutant) as environ:
        argv = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout", "60", *mutant.by.split()]
        done = subprocess.run(
            argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=deadline, check=False
        )
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines()
    failed = next((line for line in lines if line.startswith("FAILED")), "")
    if not failed and "+++ Timeout +++" in done.stdout + done.stderr:
        failed = f"FAILED {mutant.by}: it never ends"
    return failed or f"no verdict: {(done.stdout + done.stderr)[-300:]}"
