"""Hints are commands that work: every `veery VERB` in a hint is a verb, with options that it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import veery
from hint_words import commands, unusable
from veery.cli import foreign
from veery.cli.catalogue import entries
from veery.cli.parser import Parser

SOURCES = Path(veery.__file__).parent
PLACE = "PLACE"
COMMAND = re.compile(
    r"(?:(?<=^)|(?<=: )|(?<=or )|(?<=with )|(?<=then )|(?<=; )|(?<=, ))veery ((?:[a-z-]+|--)[^;,:()`]*)"
)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of each hint= in a call; what an f-string fills in is PLACE."""
    for node in ast.walk(tree):
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            if keyword.arg == "hint":
                for text in flat(keyword.value):
                    yield node.lineno, text


def flat(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may have."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else PLACE for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from flat(node.body)
        yield from flat(node.orelse)


def hints() -> Iterator[tuple[str, str]]:
    """(place, words behind `veery`) of each command in a hint."""
    for path in sorted(SOURCES.rglob("*.py")):
        for line, text in texts(ast.parse(path.read_text())):
            for match in COMMAND.finditer(text):
                yield f"{path.relative_to(SOURCES)}:{line}", match[1]


def wrong(words: list[str]) -> str:
    """What is wrong with the command `words`; "" where it is one of ours."""
    while words and words[0] in ("--node", "--settings", "--lab"):
        words = words[2:]
    known = entries()
    if not words or words[0].startswith(PLACE) or words[0] in ("lab", "...", "--help", *foreign.VERBS):
        return ""
    name = next((name for count in (2, 1) if (name := " ".join(words[:count])) in known), "")
    if not name:
        return f"no verb {words[0]}" if not any(entry.startswith(f"{words[0]} ") for entry in known) else ""
    entry = known[name]
    options = {option for action in Parser(entry, entry.load())._actions for option in action.option_strings}
    return next((f"{name} has no {word}" for word in words if word.startswith("--") and word not in options), "")


def test_every_command_in_a_hint_is_one() -> None:
    found = list(hints())
    assert len(found) > 50
    bad = [f"{place}: veery {words}: {what}" for place, words in found if (what := wrong(words.split()))]
    assert not bad, "\n".join(bad)


def sentences() -> Iterator[tuple[str, str]]:
    """(place, text) of each text of the package that is no docstring and names a command."""
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        manual = {
            id(part)
            for node in ast.walk(tree)
            for keyword in (node.keywords if isinstance(node, ast.Call) else ())
            if keyword.arg in ("about", "help", "description", "examples", "epilog", "failure")
            for part in ast.walk(keyword.value)
        }
        for node in ast.walk(tree):
            if id(node) in inner | spoken | manual or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            for text in flat(node):
                if "veery " in text:
                    yield f"{path.relative_to(SOURCES)}:{node.lineno}", text


def test_every_command_that_is_named_can_be_given_as_it_stands() -> None:
    """In hints, reasons and warnings alike: with the words that its verb needs."""
    found = [(place, words) for place, text in sentences() for words in commands(text)]
    assert len(found) > 150
    bad = [f"{place}: {why}" for place, words in found if (why := unusable(words))]
    assert not bad, "\n".join(bad)


def test_a_command_is_cut_where_its_sentence_goes_on() -> None:
    told = "veery list shows them; then: veery --node test1 destroy web, or veery ha set web restart wants it again"
    assert list(commands(told)) == [
        ["list"],
        ["--node", "test1", "destroy", "web"],
        ["ha", "set", "web", "restart"],
    ]
    assert unusable(["console"])
    assert unusable(["ha", "set", "web", "sometimes"])
    assert not unusable(["console", "--help"])


def test_a_wrong_hint_is_found() -> None:
    assert wrong(["lst"]) == "no verb lst"
    assert wrong(["migrate", "--livve", "PLACE"]) == "migrate has no --livve"
    assert wrong(["--node", "PLACE", "list", "--cluster"]) == ""
