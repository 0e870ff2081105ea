"""simulate: play scenarios of a simulated cluster in virtual time, with the real HA code."""

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
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folder with a scenario.toml")
    parser.add_argument("--update", action="store_true", help="write the log to DIR/log.expect")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only differences and broken promises")


def _simulate(session: Session, arguments: Namespace) -> int:
    bad = 0
    for folder in arguments.folders:
        bad += not _one(session, folder, update=arguments.update, quiet=arguments.quiet)
    if bad and len(arguments.folders) > 1:
        session.note(f"veery: {bad} of {len(arguments.folders)} scenarios failed")
    return 1 if bad else 0


def _one(session: Session, folder: Path, *, update: bool, quiet: bool) -> bool:
    """Play one scenario. Returns whether it passed."""
    from veery.ha.simulation.play import play
    from veery.ha.simulation.scenario import load

    played, golden = play(load(folder)), folder / "log.expect"
    if not quiet:
        print(played.text, end="")
    for broken in played.broken:
        session.note(f"veery: {folder}: {broken}")
    if update:
        golden.write_text(played.text)
        return not played.broken
    if not golden.exists():
        return not played.broken
    try:
        expected = golden.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{golden}: {error}", hint="veery simulate DIR --update writes it again") from None
    if played.text == expected:
        return not played.broken
    lines = difflib.unified_diff(expected.splitlines(), played.text.splitlines(), str(golden), "now", lineterm="", n=1)
    session.note("\n".join(lines))
    hint = f"veery simulate --update {folder}, if the new log is correct"
    session.note(f"veery: {folder}: the log differs from log.expect\n  hint: {hint}")
    return False


VERBS = {
    "simulate": Verb(
        run=_simulate,
        declare=_declare,
        about="""Builds the cluster of DIR/scenario.toml in memory, plays the events of the scenario second by second,
and prints a log. Presence, leases, the leader and all decisions are those of the real program. Machines, networks and
disks are simulated, and time is virtual: two minutes take less than a second.

The simulation checks every disk. The exit status is 1 if two nodes write to one disk, or if a stale instance writes
after a newer one. If DIR/log.expect exists, the log must be equal to it. docs/ha.md has the keys of a scenario.""",
        examples="""veery simulate scenarios/lost-node   # one scenario
veery simulate -q scenarios/*        # all scenarios, only differences""",
        failure="a disk had two writers, or the log differs from log.expect",
    )
}
