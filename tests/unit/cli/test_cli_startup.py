"""A short start, help for every verb, and the manual that is made from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_standin import Run, StandIn

from veery.cli.catalogue import entries
from veery.cli.completion import script
from veery.cli.manual import manual, pages
from veery.cli.parser import WIDTH
from veery.client.address import DEFAULT_RUN, DEFAULT_SETTINGS
from veery.config.settings import DEFAULT_PATH, Settings

HEAVY = {"aiohttp", "asyncio", "rich", "cryptography", "pyroute2", "msgspec", "qemu", "logging"}
MANUAL = Path(__file__).parents[3] / "docs" / "commands.md"


@pytest.mark.parametrize("words", [["list"], ["--node", "test2", "domid", "busybox"], ["--help"], ["destroy"]])
def test_nothing_heavy_is_loaded(daemon: StandIn, words: list[str]) -> None:
    """What `veery list` must not import to stay within its 150 ms."""
    code = f"import sys; sys.argv = ['veery', *{words}]; from veery.__main__ import run; run(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "veery.cli.main" in loaded
    assert not loaded & HEAVY


def test_defaults_are_the_settings_own() -> None:
    assert Settings().run == DEFAULT_RUN
    assert str(DEFAULT_PATH) == DEFAULT_SETTINGS


@pytest.mark.parametrize("name", entries())
def test_every_verb_has_its_manual(run: Run, name: str) -> None:
    told = run(*name.split(), "--help")
    assert told.code == 0
    for title in ("usage: veery", "Common options:", "Examples:", "Exit status:"):
        assert title in told.out
    too_long = [line for line in told.out.splitlines() if len(line) > WIDTH]
    assert not too_long
    assert f"{name} " in told.out.partition("Examples:")[2].replace("\n", " ")


def test_overview_fits(run: Run) -> None:
    told = run("help")
    assert all(f"  {name} " in told.out for name in entries())
    assert max(len(line) for line in told.out.splitlines()) <= WIDTH


def test_the_manual_is_current() -> None:
    assert MANUAL.read_text() == manual(), "run: .venv/bin/python -m veery.cli.manual > docs/commands.md"


def test_completion_is_bash() -> None:
    subprocess.run(["bash", "-n"], input=script(), text=True, check=True, timeout=20)
    ask = f'{script()}\nCOMP_WORDS=(veery volume re); COMP_CWORD=2; _veery; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "resize\n"


def test_every_verb_has_a_man_page() -> None:
    made = dict(pages())
    assert made.keys() == {"veery.1", "veeryd.8", *(f"veery-{name.replace(' ', '-')}.1" for name in entries())}
    for name, text in made.items():
        assert [line for line in text.splitlines() if line.startswith(".SH")][:2] == [".SH NAME", ".SH SYNOPSIS"], name
        # A line that begins with a dot or a quote is an order to roff: ours are these alone.
        orders = {line.split()[0] for line in text.splitlines() if line[:1] in (".", "'")}
        assert orders <= {".TH", ".SH", ".nf", ".fi"}, name
        assert text.count("\n.nf\n") == text.count("\n.fi\n"), name
