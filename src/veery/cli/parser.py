"""The argument parser of one verb, and the text of its --help.

argparse does the parsing. This module sets the wording of errors, the order of sections and the fixed width:
docs/commands.md is generated from the same text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import NoReturn

from veery.cli.catalogue import GROUPS, Entry, Verb
from veery.cli.session import Session, Usage

WIDTH = 80
_EXITS = "0  success\n1  refused or failed, with one line that says why{}\n2  invalid command line"


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=WIDTH)


class _Help(argparse.Action):
    """The action of -h and --help: print the help and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.print_help(sys.stdout)
        parser.exit(0)


class Parser(argparse.ArgumentParser):
    """The parser of one verb. A bad command line raises Usage."""

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
        common.add_argument("-h", "--help", nargs=0, action=_Help, help="print this help and exit")
        if verb.json:
            common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        for name, value, text in COMMON:
            common.add_argument(f"--{name}", metavar=value, default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Raise Usage with `message`. argparse itself would print it and exit."""
        raise Usage(message, self._entry.name)


COMMON = (
    ("node", "NODE", "send the command to this node (or set VEERY_NODE)"),
    ("settings", "FILE", "the settings file of veeryd (or set VEERY_SETTINGS)"),
    ("lab", "NAME", "look up --node in this lab (or set VEERY_LAB)"),
)


def parse(session: Session, entry: Entry, verb: Verb, words: list[str]) -> argparse.Namespace:
    """Return the verb's arguments, and store the common options in `session`. Raises Usage."""
    arguments = Parser(entry, verb, session.tool).parse_intermixed_args(words)
    for name in ("node", "settings", "lab", "json"):
        if hasattr(arguments, name):
            setattr(session, name, getattr(arguments, name))
    if session.json and not verb.json:
        raise Usage("this verb does not support --json", entry.name)
    if session.dry and not verb.dry:
        raise Usage("command does not implement -N (dryrun) option", entry.name)
    return arguments


def run_verb(session: Session, entry: Entry, words: list[str]) -> int:
    """Load, parse and run one verb. Returns the exit status."""
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
    """Fill each paragraph of `text` to the width. A paragraph with indented lines stays as it is."""
    import textwrap

    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(item if "\n  " in item else textwrap.fill(item, WIDTH) for item in paragraphs)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())


def overview(extra: Mapping[str, str]) -> str:
    """Return the text of `veery --help`. `extra` maps verbs of other packages to their summaries."""
    lines = [
        "usage: veery [--node NODE] [--settings FILE] [--lab NAME] [--json] [-N]",
        "             VERB [ARGUMENT...]",
        "",
        "veery keeps domains (virtual machines) running while their hosts are drained,",
        "replaced, or fail. Its verbs and flags are those of xm and xl. Under the name",
        "xm or xl (a symbolic link) it runs the scripts that were written for them.",
        "`veery VERB --help` describes one verb.",
    ]
    for title, group in GROUPS:
        lines += ["", f"{title}:", *(f"  {entry.name:<16}{entry.summary}" for entry in group)]
    if extra:
        lines += ["", "Laboratory:", *(f"  {name:<16}{summary}" for name, summary in extra.items())]
    lines += ["", "Options before the verb:"]
    lines += [f"  {'--' + name + ' ' + value:<18}{text}" for name, value, text in COMMON]
    lines += [
        "  --json            print JSON, if the verb supports it",
        "  -N                dry run of create, block-attach and network-attach",
        "  --version         print the version and exit",
        "",
        "Environment:",
        "  VEERY_NODE, VEERY_SETTINGS, VEERY_LAB   defaults of the options of these names",
        "  VEERY_DEBUG=1                           print the traceback of an error",
        "",
        "Exit status:",
        _indent(_EXITS.format("")),
    ]
    return "\n".join(lines)
