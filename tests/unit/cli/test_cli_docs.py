"""The docs are true to the letter: each command parses, each link leads somewhere, each file that is named is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hint_words import unusable, verb

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
GENERATED = ("commands.md",)  # the text of --help: tests of the parser look at it
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
FILE = re.compile(r"(?:[\w.-]+/)+[\w-]+\.(?:py|md|toml|service|json|lock)")
PLACES = (ROOT, ROOT / "src/veery", ROOT / "docs")
OUTSIDE = ("etc/", "var/", "run/", "usr/", "lib/", "sys/", "proc/", "dev/", "tmp/", "STATE/", "RUN/", "~/")


def blocks(text: str) -> Iterator[str]:
    """The lines of a page that are shown as typed."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def given(text: str) -> Iterator[list[str]]:
    """The words behind `veery` of each command on a page."""
    shown = [re.sub(r"^[$#] ", "", line).partition("  #")[0].partition(" # ")[0] for line in blocks(text)]
    for each in [*shown, *SPAN.findall(text)]:
        found = re.fullmatch(r"(?:\.venv/bin/)?veery ((?!lab\b).+?)\s*", each)
        if found and not re.search(r"[\[\]|…]|\.\.\.|: |&&|;", found[1]):
            yield shlex.split(found[1])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    wrong = []
    for words in given(page.read_text()):
        if verb(words)[0] is None and (words[0] == "VERB" or words[0].startswith("--")):
            continue  # a sentence about options that stand before each verb
        why = unusable(words)
        named = words[-1].startswith("--") and why.endswith("expected one argument")  # the option itself is meant
        if why and not named and "the following arguments are required" not in why:
            wrong.append(why)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for path, anchor in LINK.findall(page.read_text()):
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor[1:] not in anchors(target.read_text())):
            wrong.append(path + anchor)
    assert wrong == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    wrong = []
    for span in SPAN.findall(page.read_text()):
        name = span.split("::")[0].split(":")[0]
        placeholder = re.search(r"(^|/)[A-Z]{2,}(/|\.json)", name)
        if (
            FILE.fullmatch(name)
            and not placeholder
            and not name.startswith(OUTSIDE)
            and not any((at / name).exists() for at in PLACES)
        ):
            wrong.append(name)
    assert wrong == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    listed = {path for path, _ in LINK.findall(index.read_text())}
    assert {page.name for page in PAGES if page.parent == index.parent} - {index.name} <= listed
