"""Each slow test is run by some target of the Makefile: `make test` leaves all of them out."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTEST = "-m pytest"


@dataclass(frozen=True)
class Command:
    """One run of pytest, or of a script beside the tests: its paths, and which tests of them it takes."""

    paths: tuple[str, ...]
    marks: str = ""
    keyword: str = ""

    def reaches(self, file: str) -> bool:
        """Whether it runs slow tests of `file`. With -k it may take some tests of a folder only, or none of them."""
        if self.marks == "not slow":
            return False
        script = file.replace("/test_", "/")
        named = file in self.paths or script in self.paths
        return named or (not self.keyword and any(file.startswith(f"{path}/") for path in self.paths))


def commands(makefile: str) -> list[Command]:
    """The commands of all targets that run tests."""
    found = []
    for line in makefile.replace("\\\n", " ").splitlines():
        if not line.startswith("\t") or " tests/" not in line.replace(",", " "):
            continue
        plain = re.sub(r"\$\(or \$\(PYTEST\),(.*)\)", r"\1", line)  # what runs where the user names nothing
        words = shlex.split(plain.partition(PYTEST)[2] if PYTEST in plain else plain)
        options = dict(itertools.pairwise(words))
        paths = tuple(word for word in words if word.startswith("tests/"))
        found.append(Command(paths, options.get("-m", ""), options.get("-k", "")))
    return found


def slow_files() -> list[str]:
    """The files that have a slow test."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    own = Path(__file__)
    return [str(path.relative_to(ROOT)) for path in files if path != own and "mark.slow" in path.read_text()]


@pytest.mark.parametrize("file", slow_files())
def test_a_target_runs_it(file: str) -> None:
    made = commands((ROOT / "Makefile").read_text())
    assert any(command.reaches(file) for command in made), f"no target of the Makefile runs the slow tests of {file}"


def test_what_counts_as_running_it() -> None:
    makefile = """
one:
	@python -m pytest $(or $(PYTEST),-n 2 -m 'not slow' tests/unit \\
		tests/faults)
two: ## tests/unit
	@python -m pytest -m slow $(or $(PYTEST),tests/faults/test_a.py)
	@python tests/unit/mutants.py
	@python -m pytest -m slow tests/fuzz -k some || true
"""
    made = commands(makefile)
    assert [command.paths for command in made] == [
        ("tests/unit", "tests/faults"),
        ("tests/faults/test_a.py",),
        ("tests/unit/mutants.py",),
        ("tests/fuzz",),
    ]

    def reached(file: str) -> bool:
        return any(command.reaches(file) for command in made)

    assert reached("tests/faults/test_a.py")
    assert reached("tests/unit/test_mutants.py")
    assert not reached("tests/faults/test_b.py")
    assert not reached("tests/unit/test_a.py")
    assert not reached("tests/fuzz/test_a.py"), "which tests of the folder -k takes is not known"
