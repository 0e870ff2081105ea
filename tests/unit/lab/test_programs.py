"""No program is started that the set-up does not bring: the sources, the documents and the packages agree."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from veery.lab import packages, programs, setup
from veery.lab.programs import ASKED_FOR, DOCUMENTED, MINIMAL, PACKAGE_OF
from veery.lab.xen import dom0

TOP = Path(__file__).parents[3]
INSTALLED = frozenset({*packages.QEMU, *packages.OTHERS})
OWN = frozenset({"veery", "veeryd", "xm", "guest"})  # our commands, and a name that a test's own program has
# Functions that take a command line, and names that hold one. `env` and `nsenter` hand the rest of theirs on.
CALLS = frozenset(
    {"run", "spawn", "inside", "enter", "create_subprocess_exec", "Popen", "execv", "execvp", "which", "check_output"}
) | {"_run", "_outside", "terminal"}
NAMES = frozenset({"words", "argv", "command", "cmd"})
PROGRAM = re.compile(r"[a-z/][a-zA-Z0-9_./+-]*")
# Not command lines of the machine: veery's own arguments, orders of apt-get and tc, keyword pairs.
OTHERS = frozenset(
    {"init", "install", "lab", "migrate", "done", "refused", "absent", "unsure", "host", "link set lo up"}
)


def first(node: ast.AST) -> str:
    """The first word of a list or tuple display, also of `[*("a", "b"), c]` and of `["a"] + b`; "" if not a literal."""
    if isinstance(node, ast.BinOp):
        return first(node.left)
    if isinstance(node, ast.Starred):
        return first(node.value)
    if isinstance(node, ast.List | ast.Tuple) and node.elts:
        return first(node.elts[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def started(tree: ast.Module) -> Iterator[str]:
    """The first word of each command line that a module writes down."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS:
                yield from (first(each) for each in node.args if isinstance(each, ast.List | ast.Tuple | ast.BinOp))
            if name in {"create_subprocess_exec", "which", "execvp"} and node.args:
                yield first(node.args[0])
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(getattr(each, "id", "") in NAMES for each in targets)
            if named and isinstance(node.value, ast.List | ast.Tuple | ast.BinOp):
                yield first(node.value)
        elif isinstance(node, ast.FunctionDef) and node.returns and "[str" in ast.unparse(node.returns):
            for each in ast.walk(node):
                if isinstance(each, ast.Return) and isinstance(each.value, ast.List | ast.BinOp):
                    yield first(each.value)


def sources() -> list[Path]:
    return [path for top in ("src", "tests", "bench") for path in sorted((TOP / top).rglob("*.py"))]


def test_the_reader_finds_the_first_word() -> None:
    text = 'run(["a", 1]); x.spawn([*("b", "c"), d]); argv = ["e"] + f; which("g"); run("h"); words: list = ["-i"]'
    assert sorted(started(ast.parse(text))) == ["-i", "a", "b", "e", "g"]


def test_every_program_has_a_package() -> None:
    """One that fails wants a row in src/veery/lab/programs.py, with its package."""
    for path in sources():
        words = {word for word in started(ast.parse(path.read_text())) if PROGRAM.fullmatch(word)}
        assert words - OWN - OTHERS <= set(PACKAGE_OF), path.relative_to(TOP)


def test_every_package_comes_with_the_set_up() -> None:
    there = MINIMAL | ASKED_FOR | INSTALLED | set(dom0.PACKAGES) | DOCUMENTED
    assert set(PACKAGE_OF.values()) <= there


def test_each_package_has_its_program() -> None:
    """As dpkg tells of those that are installed; what somebody put on this machine by hand proves nothing."""
    here = packages.installed(tuple(sorted(set(PACKAGE_OF.values()))))
    assert set(here) >= INSTALLED & set(PACKAGE_OF.values())
    for program, package in PACKAGE_OF.items():
        if package not in here or package == "python3":
            continue  # python3 is a link of python3-minimal's
        listed = subprocess.run(["dpkg", "-L", package], check=True, capture_output=True, text=True, timeout=60).stdout
        names = {line for line in listed.splitlines() if re.match(r"(/usr)?/s?bin/", line)}
        assert {name for name in names if name == program or name.endswith(f"/{program}")}, (program, package)


def test_documents_name_the_package_of_a_program_that_is_not_installed() -> None:
    for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))):
        text = path.read_text()
        for program, package in PACKAGE_OF.items():
            if package in DOCUMENTED and re.search(rf"\b{program}\b", text):
                assert f"`{package}`" in text, f"{path.name} uses {program} and does not name {package}"


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are looked for in PATH; here it has none."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert setup.main(["programs"]) == 1
    assert "dpkg-query is not installed" in capsys.readouterr().err


def test_a_program_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dpkg-query").symlink_to("/usr/bin/dpkg-query")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "tgtadm (of tgt)" in programs.absent()
