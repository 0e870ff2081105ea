"""simulate: play scenarios of a simulated cluster, with the real brain, in virtual time."""

from __future__ import annotations

import difflib
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from veery.cli.catalogue import Verb
from veery.errors import Refused

if TYPE_CHECKING:
    from veery.cli.parser import Parser
    from veery.cli.session import Session


def _declare(parser: Parser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a folder with scenario.toml")
    parser.add_argument("--update", action="store_true", help="write the story to DIR/log.expect")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what differs or was broken")


def _simulate(session: Session, arguments: Namespace) -> int:
    bad = 0
    for folder in arguments.folders:
        bad += not _one(session, folder, update=arguments.update, quiet=arguments.quiet)
    if bad and len(arguments.folders) > 1:
        session.note(f"veery: {bad} of {len(arguments.folders)} scenarios did not go as they should")
    return 1 if bad else 0


def _one(session: Session, folder: Path, *, update: bool, quiet: bool) -> bool:
    """Play one; whether it went as it should."""
    from veery.ha.simulation.play import play
    from veery.ha.simulation.scenario import load

    told, golden = play(load(folder)), folder / "log.expect"
    if not quiet:
        print(told.text, end="")
    for broken in told.broken:
        session.note(f"veery: {folder}: {broken}")
    if update:
        golden.write_text(told.text)
        return not told.broken
    if not golden.exists():
        return not told.broken
    try:
        expected = golden.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{golden}: {error}", hint="veery simulate DIR --update writes it anew") from None
    if told.text == expected:
        return not told.broken
    lines = difflib.unified_diff(expected.splitlines(), told.text.splitlines(), str(golden), "now", lineterm="", n=1)
    session.note("\n".join(lines))
    session.note(f"veery: {folder}: not as in log.expect\n  hint: veery simulate --update {folder}, if it is right so")
    return False


VERBS = {
    "simulate": Verb(
        run=_simulate,
        declare=_declare,
        about="""Builds the cluster of DIR/scenario.toml in memory, lets happen to it what is written there, second by
second, and prints the story. Presence, leases, the leader and every decision are the real program's; machines,
networks and disks are simulated, and time is virtual: two minutes take less than a second.

A judge looks at every disk. Two nodes that write to one, or an old copy that writes after a newer, is exit status 1.
Where DIR/log.expect is, the story has to be the same. docs/ha.md has the keys of a scenario.""",
        examples="""veery simulate scenarios/lost-node   # the first case of all
veery simulate -q scenarios/*        # all of them, only what differs""",
        failure="a disk had two writers, or the story is not that of log.expect",
    )
}
