"""The argument parser of one verb, and the text of its --help.

argparse does the parsing; the wording of errors, the order of sections and the fixed width (the manual in
docs/commands.md is made from the same text) are ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import NoReturn

from veery.cli.catalogue import GROUPS, Entry, Verb
from veery.cli.session import Session, Usage

WIDTH = 80
_EXITS = "0  done\n1  refused or failed, with one line that says why{}\n2  the command line was not understood"


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=WIDTH)


class _Help(argparse.Action):
    """-h, --help: print and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.print_help(sys.stdout)
        parser.exit(0)


class Parser(argparse.ArgumentParser):
    """One verb's parser; a bad command line raises Usage."""

    def __init__(self, entry: Entry, verb: Verb, tool: str = "veery") -> None:
        super().__init__(
            prog=f"{tool} {entry.name}",
            description=f"{entry.summary[0].upper()}{entry.summary[1:]}.\n\n{_flow(verb.about)}",
            epilog=_epilog(verb),
            formatter_class=_Format,
            add_help=False,
        )
        self._entry = entry
        self._optionals.title = "Options"
        self._positionals.title = "Arguments"
        verb.declare(self)
        common = self.add_argument_group("Common options")
        common.add_argument("-h", "--help", nargs=0, action=_Help, help="print this and end")
        if verb.json:
            common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        for name, value, text in COMMON:
            common.add_argument(f"--{name}", metavar=value, default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """As argparse, but leaving the printing to whoever called us."""
        raise Usage(message, self._entry.name)


COMMON = (
    ("node", "NODE", "speak to this node, not the local one (or VEERY_NODE)"),
    ("settings", "FILE", "the daemon's settings file (or VEERY_SETTINGS)"),
    ("lab", "NAME", "the lab that --node is looked up in (or VEERY_LAB)"),
)


def parse(session: Session, entry: Entry, verb: Verb, words: list[str]) -> argparse.Namespace:
    """The verb's arguments; the common options among them go into `session`. Raises Usage."""
    arguments = Parser(entry, verb, session.tool).parse_intermixed_args(words)
    for name in ("node", "settings", "lab", "json"):
        if hasattr(arguments, name):
            setattr(session, name, getattr(arguments, name))
    if session.json and not verb.json:
        raise Usage("--json says nothing here", entry.name)
    if session.dry and not verb.dry:
        raise Usage("command does not implement -N (dryrun) option", entry.name)
    return arguments


def run_verb(session: Session, entry: Entry, words: list[str]) -> int:
    """Load, parse and run one verb; the exit status."""
    session.verb = entry.name
    verb = entry.load()
    return verb.run(session, parse(session, entry, verb, words))


def _epilog(verb: Verb) -> str:
    parts = []
    if verb.examples:
        parts.append("Examples:\n" + _indent(verb.examples))
    parts.append("Exit status:\n" + _indent(_EXITS.format(f"; also\n   {verb.failure}" if verb.failure else "")))
    return "\n\n".join(parts)


def _flow(text: str) -> str:
    """`text` with each paragraph filled to the width; one with indented lines is kept as it is."""
    import textwrap

    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(item if "\n  " in item else textwrap.fill(item, WIDTH) for item in paragraphs)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())


def overview(extra: Mapping[str, str]) -> str:
    """What `veery --help` prints; `extra` are verbs of other packages with their one line each."""
    lines = [
        "usage: veery [--node NODE] [--settings FILE] [--lab NAME] [--json] [-N]",
        "             VERB [ARGUMENT...]",
        "",
        "veery keeps domains (virtual machines) running while the machines beneath them",
        "are drained, replaced, or fail. Its verbs and flags are xm's and xl's; called",
        "through a symbolic link named xm or xl it serves scripts written for those.",
        "`veery VERB --help` tells all of one verb.",
    ]
    for title, group in GROUPS:
        lines += ["", f"{title}:", *(f"  {entry.name:<16}{entry.summary}" for entry in group)]
    if extra:
        lines += ["", "Laboratory:", *(f"  {name:<16}{summary}" for name, summary in extra.items())]
    lines += ["", "Options before the verb:"]
    lines += [f"  {'--' + name + ' ' + value:<18}{text}" for name, value, text in COMMON]
    lines += [
        "  --json            print JSON where the verb can",
        "  -N                dry run of create, block-attach, network-attach: print only",
        "  --version         print the version and end",
        "",
        "Environment:",
        "  VEERY_NODE, VEERY_SETTINGS, VEERY_LAB   stand for the options of those names",
        "  VEERY_DEBUG=1                           show where an error arose",
        "",
        "Exit status:",
        _indent(_EXITS.format("")),
    ]
    return "\n".join(lines)
