"""migrate --all and migrate --to: move many domains in one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from veery.cli.progress import figures, stood
from veery.cli.session import Session, Usage
from veery.errors import OutcomeUnknown
from veery.model.move import MoveProgress, MoveReport, MoveSettings, MoveState


def evacuate(
    session: Session,
    settings: MoveSettings,
    words: Sequence[str],
    to: Sequence[str],
    *,
    everything: bool,
    quiet: bool,
    force: bool,
) -> int:
    """Move the domains, and print one line per phase of each. Returns 1 if any domain was not moved, else 0."""
    from veery.cli.session import refuse_domain_0
    from veery.model.codec import convert, plain

    if everything and words:
        if len(words) > 1 or session.node not in ("", words[0]):
            raise Usage("--all takes at most one argument, the node to empty", "migrate")
        session.node = words[0]
    if not everything and not words:
        raise Usage("name the domains, or give --all", "migrate")
    refuse_domain_0(words)
    names = [] if everything else [session.domain(word) for word in words]
    order = {"targets": list(to), "domains": names, "settings": plain(settings), "force": force}
    lines = _ProgressLines(session, quiet=quiet or session.json)
    for event in session.client.stream("/v1/evacuate", order):
        match event["event"]:
            case "begin":
                lines.begin(event["moves"], event["refused"])
            case "progress":
                lines.show(event["move"], convert(event["progress"], MoveProgress))
            case "done":
                reports = convert(event["result"]["reports"], list[MoveReport])
                return _end(session, reports, event["result"]["refused"], quiet=quiet)
    raise OutcomeUnknown("veeryd did not report the end of the moves", hint="veery moves shows their state")


class _ProgressLines:
    """Prints one line on stderr for each phase that a domain enters, and for each note about it."""

    def __init__(self, session: Session, *, quiet: bool) -> None:
        self._session, self._quiet = session, quiet
        self._names: dict[str, str] = {}
        self._phases: dict[str, str] = {}

    def begin(self, moves: dict[str, str], refused: dict[str, str]) -> None:
        self._names = {move: name for name, move in moves.items()}
        for name, why in refused.items():
            self._say(f"{name}  refused: {why}")

    def show(self, move: str, progress: MoveProgress) -> None:
        name = self._names[move]
        if self._phases.get(move) != progress.phase:
            self._phases[move] = progress.phase
            self._say("  ".join(part for part in (name, progress.phase, figures(progress)) if part))
        if progress.note:
            self._say(f"{name}  {progress.note}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._session.note(line)


def _end(session: Session, reports: Sequence[MoveReport], refused: dict[str, Any], *, quiet: bool) -> int:
    failed = [report for report in reports if report.state is not MoveState.DONE]
    if session.json:
        session.print_json({"reports": list(reports), "refused": refused})
    elif not quiet:
        for report in reports:
            if report.state is MoveState.DONE:
                print(f"{report.domain} moved to {report.target}{stood(report, before=': ')}")
    for report in failed:
        session.note(f"veery: {report.domain} was not moved to {report.target}: {report.reason}")
    if failed or refused:
        session.note(f"veery: {len(failed) + len(refused)} of {len(reports) + len(refused)} domains were not moved")
    return 1 if failed or refused else 0
