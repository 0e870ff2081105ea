"""Moves: migrate, moves, move show, move cancel."""

from __future__ import annotations

import signal
import threading
import time
from argparse import Namespace
from types import FrameType
from typing import Any

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.progress import copied, figures, meter
from veery.cli.session import Session
from veery.client.http import domain_path
from veery.errors import OutcomeUnknown, Refused, VeeryError
from veery.model.move import MoveProgress, MoveReport, MoveSettings
from veery.model.units import format_size


# ---- migrate
def _migrate(session: Session, args: Namespace) -> int:
    _refuse(args)
    from veery.model.codec import plain
    from veery.model.units import parse_size

    settings = MoveSettings(
        live=args.live,
        bandwidth=parse_size(args.rate) if args.rate else 0,
        downtime=args.downtime,
        timeout=args.timeout,
        stall=args.stall,
        tls=args.tls,
    )
    order = {"target": args.target, "settings": plain(settings)}
    move = _Migration(session, args.domain, quiet=args.quiet or session.tool == "xm")
    report = move.run(domain_path(session.domain(args.domain), "migrate"), order)
    if session.json:
        session.print_json(report)
    elif session.tool == "xl":
        session.note("Migration successful.")
    elif session.tool == "veery" and not args.quiet:
        print(summary(report))
    return 0


def _refuse(args: Namespace) -> None:
    """What xl's migrate can and ours cannot, each with its reason."""
    if args.config:
        raise Refused("a domain moves with the configuration it runs with", hint="leave -C away")
    if args.command:
        raise Refused("a domain moves through veery's relocation server, not through ssh", hint="leave -s away")
    if args.paused:
        raise Refused("a running domain is not left paused by a move", hint="veery pause it first, then move it")
    if args.keep_id:
        raise Refused("a domain gets a new id on its new node", hint="leave -D away and use the name")


class _Migration:
    """One `veery migrate`: follows the stream, and has the move cancelled by Ctrl-C.

    The first Ctrl-C orders the cancellation (from a thread, so that the stream is not torn) and goes on reading to
    the move's true end; the second leaves."""

    def __init__(self, session: Session, domain: str, *, quiet: bool) -> None:
        self._session, self._domain, self._quiet = session, domain, quiet
        self._id = ""
        self._cancelled = False

    def run(self, path: str, order: dict[str, Any]) -> MoveReport:
        """Do it. Raises as the daemon says; of a cancelled move it says where the domain runs."""
        from veery.model.codec import convert

        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            with meter(f"{self._domain} -> {order['target']}", quiet=self._quiet) as shown:
                for event in self._session.client.stream(path, order):
                    if event["event"] == "done":
                        return self._ended(convert(event["result"], MoveReport))
                    self._learn(event)
                    if event["event"] != "progress":
                        continue
                    progress = convert(event["progress"], MoveProgress)
                    shown.show(
                        progress.phase, copied(progress) if progress.phase == "COPY" else None, figures(progress)
                    )
        except KeyboardInterrupt:
            where = f"veery move show {self._id}" if self._id else "veery moves"
            raise OutcomeUnknown("left before the move ended; it goes on or is being undone", hint=where) from None
        finally:
            signal.signal(signal.SIGINT, before)
        raise OutcomeUnknown("the move's end was not told", hint="veery moves tells how it stands")

    def _learn(self, event: dict[str, Any]) -> None:
        first, self._id = not self._id, str(event["move"])
        if first and self._cancelled:
            self._cancel()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._cancelled:
            raise KeyboardInterrupt
        self._cancelled = True
        self._session.note("\nveery: cancelling; Ctrl-C again leaves without waiting")
        if self._id:
            self._cancel()

    def _cancel(self) -> None:
        threading.Thread(target=self._order_cancel, daemon=True).start()

    def _order_cancel(self) -> None:
        try:
            self._session.client.post(f"/v1/moves/{self._id}/cancel")
        except VeeryError as error:
            self._session.note(f"veery: not cancelled: {error.message}")

    def _ended(self, report: MoveReport) -> MoveReport:
        if self._cancelled:
            self._session.note(f"veery: too late to cancel: {report.domain} runs on {report.runs_on or report.target}")
        return report


def summary(report: MoveReport) -> str:
    """A finished move in one line."""
    rounds = f" in {report.rounds} round{'s' if report.rounds != 1 else ''}" if report.rounds else ""
    return (
        f"{report.domain} moved from {report.source} to {report.target} in {report.total_ms / 1000:.2f} s: "
        f"downtime {report.downtime_ms:.0f} ms, {format_size(report.bytes)}{rounds}"
    )


def _declare_migrate(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("target", metavar="NODE", help="a node's name or address")
    parser.add_argument(
        "-l", "--live", action="store_true", default=True, help="let the domain run during the copy: the default"
    )
    parser.add_argument("--no-live", dest="live", action="store_false", help="stop it for the copy")
    parser.add_argument(
        "--rate", metavar="BYTES", default="", help="copy at most so many bytes a second, for example 100M"
    )
    parser.add_argument("--downtime", metavar="MS", type=int, default=50, help="pause it for at most so many ms (50)")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=0.0, help="give the copy up after so long")
    parser.add_argument(
        "--stall", metavar="SECONDS", type=float, default=15.0, help="give it up when nothing moved so long (15)"
    )
    parser.add_argument(
        "--no-tls", dest="tls", action="store_false", help="do not encrypt (both nodes' settings must allow it)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "-d",
        "--debug",
        "-e",
        "-F",
        dest="ignored",
        action="store_true",
        help="accepted as xl has them; veeryd watches the domain",
    )
    parser.add_argument("-C", dest="config", metavar="CONFIG", default="", help="refused: xl's other configuration")
    parser.add_argument("-s", dest="command", metavar="COMMAND", default="", help="refused: xl's way through ssh")
    parser.add_argument("-p", dest="paused", action="store_true", help="refused: xl's leaving it paused")
    parser.add_argument("-D", dest="keep_id", action="store_true", help="refused: xl's keeping of the id")


# ---- moves
def _reports(session: Session) -> tuple[MoveReport, ...]:
    from veery.model.codec import convert

    return convert(session.client.get("/v1/moves"), tuple[MoveReport, ...])


def _moves(session: Session, args: Namespace) -> int:
    reports = _reports(session)
    if session.json:
        session.print_json(reports)
        return 0
    rows = [
        (
            item.id,
            item.domain,
            item.source,
            item.target,
            item.state,
            item.phase,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.started)),
            f"{item.total_ms / 1000:.2f} s",
            f"{item.downtime_ms:.0f} ms",
        )
        for item in sorted(reports, key=lambda item: item.started)
    ]
    headers = ("ID", "Domain", "From", "To", "State", "Phase", "Started", "Total", "Downtime")
    print(*tables.plain(headers, rows), sep="\n")
    return 0


def _show(session: Session, args: Namespace) -> int:
    from veery.model.codec import convert

    report = convert(session.client.get(f"/v1/moves/{args.move}"), MoveReport)
    if session.json:
        session.print_json(report)
        return 0
    print(
        f"move {report.id}: {report.domain} from {report.source} to {report.target}, {report.state} in {report.phase}"
    )
    print(
        f"  total {report.total_ms:.0f} ms, downtime {report.downtime_ms:.0f} ms, {format_size(report.bytes)}", end=""
    )
    print(f" in {report.rounds} rounds, dirtied {format_size(report.dirty_rate)}/s")
    for phase, milliseconds in report.phases.items():
        print(f"  {phase:<8} {milliseconds:9.1f} ms")
    if report.runs_on:
        print(f"  the domain runs on {report.runs_on}")
    for label, text in (("reason", report.reason), ("hint", report.hint)):
        if text:
            print(f"  {label}: {text}")
    return 0


def _cancel(session: Session, args: Namespace) -> int:
    session.client.post(f"/v1/moves/{args.move}/cancel")
    return 0


def _declare_move(parser: Parser) -> None:
    parser.add_argument("move", metavar="ID", help="a move's id, as veery moves prints it")


VERBS: dict[str, Verb] = {
    "migrate": Verb(
        run=_migrate,
        declare=_declare_migrate,
        about="""
Moves a running domain to another node, live: its memory is copied while it runs, and it stops only for the last
few milliseconds. Its disks must be reachable from both nodes (volumes are). Everything that can be checked is
checked before anything starts.

While it goes on, phase, percent, rate, dirty rate and remaining time are shown: as a bar on a terminal, else one
line a phase and at most one a second, on stderr. The last line, on stdout, tells total time, downtime and bytes.

Ctrl-C cancels the move and says where the domain runs; a second Ctrl-C leaves without waiting. Up to the phase
COMMIT a move that fails leaves the domain running where it was; from there on it runs on the target.""",
        examples="""
veery migrate busybox test2
veery migrate --live --rate 100M --downtime 30 busybox 172.16.31.2
veery --json migrate busybox test2      # the report, for a script""",
        failure="when cancelled: the domain runs on where it was",
        json=True,
    ),
    "moves": Verb(
        run=_moves,
        declare=lambda parser: None,
        about="Lists the moves that this node took part in, the latest last.",
        examples="veery moves",
        json=True,
    ),
    "move show": Verb(
        run=_show,
        declare=_declare_move,
        about="Prints the report of one move: what it was, how it ended, the milliseconds of each phase.",
        examples="veery move show 5f0c3a",
        json=True,
    ),
    "move cancel": Verb(
        run=_cancel,
        declare=_declare_move,
        about="Cancels a move that has not reached COMMIT; the domain runs on at its source. Returns at once.",
        examples="veery move cancel 5f0c3a",
    ),
}
