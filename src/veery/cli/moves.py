"""Moving: migrate, of one domain or of many."""

from __future__ import annotations

import threading
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from veery.cli.catalogue import Verb
from veery.cli.interrupt import Interrupt
from veery.cli.parser import Parser
from veery.cli.progress import Forward, copied, figures, meter, stood
from veery.cli.session import Session, Usage, refuse_domain_0
from veery.client.http import domain_path
from veery.errors import OutcomeUnknown, Refused, VeeryError
from veery.model.move import Compress, MoveProgress, MoveReport, MoveSettings
from veery.model.units import format_size

_ID_DEADLINE_S = 60.0  # for the daemon to tell the id of a move that is to be cancelled


# ---- migrate
def _migrate(session: Session, args: Namespace) -> int:
    _refuse(args)
    settings = _settings(args)
    if args.plan and (args.all or args.to):
        raise Usage("--plan wants one domain and one node", "migrate")
    if args.all or args.to:
        from veery.cli.evacuation import evacuate

        _warn(session, settings, quiet=args.quiet)
        return evacuate(session, settings, args.words, args.to, everything=args.all, quiet=args.quiet)
    if len(args.words) != 2:
        raise Usage("migrate wants a domain and a node; several domains need --to NODE", "migrate")
    args.domain, args.target = args.words
    refuse_domain_0([args.domain])
    order = {"target": args.target, "settings": asdict(settings)}
    if args.plan:
        from veery.cli.plan import tell

        return tell(session, session.client.post(domain_path(session.domain(args.domain), "plan"), order))
    _warn(session, settings, quiet=args.quiet)
    move = _Migration(session, args.domain, quiet=args.quiet or session.tool == "xm")
    report = move.run(domain_path(session.domain(args.domain), "migrate"), order)
    if session.json:
        session.print_json(report)
    elif session.tool == "xl":
        session.note("Migration successful.")
    elif session.tool == "veery" and not args.quiet:
        print(summary(report))
    return 0


def _settings(args: Namespace) -> MoveSettings:
    from veery.model.units import parse_size

    return MoveSettings(
        policy=args.policy,
        live=args.live,
        bandwidth=parse_size(args.rate) if args.rate else 0,
        downtime=args.downtime,
        timeout=args.timeout,
        stall=args.stall,
        tls=args.tls,
        turns=args.turns,
        with_disks=args.with_disks,
        disk_dir=args.disk_dir,
        remove_source=args.remove_source,
        compress=Compress(args.compress),
    )


def _warn(session: Session, settings: MoveSettings, *, quiet: bool) -> None:
    """What a policy risks is said before anything starts."""
    if settings.policy == MoveSettings().policy:
        return  # the default risks nothing
    from veery.migrate.policy import find

    if (risk := find(settings.policy).risk) and not quiet:
        session.note(f"{settings.policy}: {risk}")


def _refuse(args: Namespace) -> None:
    """What xl's migrate can and ours cannot, each with its reason; and flags that mean nothing alone."""
    if (args.disk_dir or args.remove_source) and not args.with_disks:
        raise Refused("--disk-dir and --remove-source are about disks that move", hint="add --with-disks")
    if args.disk_dir and not args.disk_dir.startswith("/"):
        raise Refused(f"{args.disk_dir} is not an absolute path", hint="name it from the root, on the target")
    if args.config:
        raise Refused("a domain moves with the configuration it runs with", hint="leave -C away")
    if args.command:
        raise Refused("a domain moves through veery's relocation server, not through ssh", hint="leave -s away")
    if args.paused:
        raise Refused(
            "a running domain is not left paused by a move",
            hint="move it without -p, then pause it there: veery --node NODE pause DOMAIN",
        )
    if args.keep_id:
        raise Refused("a domain gets a new id on its new node", hint="leave -D away and use the name")


class _Migration:
    """One `veery migrate`: follows the stream, and has the move cancelled by Ctrl-C.

    The first Ctrl-C orders the cancellation (from a thread, so that the stream is not torn) and goes on reading to
    the move's true end; the second leaves."""

    def __init__(self, session: Session, domain: str, *, quiet: bool) -> None:
        self._session, self._domain, self._quiet = session, domain, quiet
        self._id = ""
        self._known = threading.Event()  # whether the daemon has told `_id`
        self._interrupt = Interrupt(self._interrupted)

    def run(self, path: str, order: dict[str, Any]) -> MoveReport:
        """Do it. Raises as the daemon says; of a cancelled move it says where the domain runs."""
        forward = Forward()
        try:
            with self._interrupt, meter(f"{self._domain} -> {order['target']}", quiet=self._quiet) as shown:
                events = self._session.client.stream(path, order)
                from veery.model.codec import convert  # takes as long as all before: while veeryd is at work

                for event in events:
                    if event["event"] == "done":
                        return self._ended(convert(event["result"], MoveReport))
                    self._learn(event)
                    if event["event"] != "progress":
                        continue
                    progress = convert(event["progress"], MoveProgress)
                    if note := forward.note(progress):
                        shown.say(note)
                    shown.show(
                        f"{progress.phase} {progress.step}".strip(),
                        copied(progress) if progress.phase == "COPY" or progress.step == "post-copy" else None,
                        figures(progress),
                    )
        except KeyboardInterrupt:
            where = f"veery move show {self._id}" if self._id else "veery moves"
            raise OutcomeUnknown("left before the move ended; it goes on or is being undone", hint=where) from None
        raise OutcomeUnknown("the move's end was not told", hint="veery moves tells how it stands")

    def _learn(self, event: dict[str, Any]) -> None:
        first, self._id = not self._id, str(event["move"])
        if first:
            self._known.set()

    def _interrupted(self) -> None:
        self._session.note("\nveery: cancelling; Ctrl-C again leaves without waiting")
        if not self._known.wait(_ID_DEADLINE_S):
            return
        try:
            self._session.client.post(f"/v1/moves/{self._id}/cancel")
        except VeeryError as error:
            self._session.note(f"veery: not cancelled: {error.message}")

    def _ended(self, report: MoveReport) -> MoveReport:
        if self._interrupt.came:
            self._session.note(f"veery: too late to cancel: {report.domain} runs on {report.runs_on or report.target}")
        return report


def summary(report: MoveReport) -> str:
    """A finished move in one line."""
    rounds = f" in {report.rounds} round{'s' if report.rounds != 1 else ''}" if report.rounds else ""
    packed = f" sent as {format_size(report.packed)}" if report.packed else ""
    disks = f", {format_size(report.disk_bytes)} of disks" if report.disk_bytes else ""
    kept = f"; kept on {report.source}: {', '.join(report.kept)}" if report.kept else ""
    cipher = f", {report.cipher}" if report.cipher else ""
    return (
        f"{report.domain} moved from {report.source} to {report.target} in {report.total_ms / 1000:.2f} s: "
        f"{stood(report, ', ')}{format_size(report.bytes)}{packed}{rounds}{cipher}{disks}{kept}"
    )


def _declare_migrate(parser: Parser) -> None:
    parser.add_argument(
        "words", metavar="DOMAIN NODE", nargs="*", help="a domain (name, id or UUID) and the node it goes to"
    )
    parser.add_argument(
        "--to",
        metavar="NODE",
        action="append",
        default=[],
        help="move all the domains named, or all there are, to this node; given again: spread over these nodes",
    )
    parser.add_argument(
        "--all", action="store_true", help="move every domain of the node away (of NODE, where one is named)"
    )
    _declare_copy(parser)
    _declare_disks(parser)
    parser.add_argument(
        "--no-turns", dest="turns", action="store_false", help="copy and switch over at once, whoever else does so now"
    )
    parser.add_argument(
        "--plan", action="store_true", help="move nothing: tell what stands in the way, and how long it would take"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _declare_xl(parser)


def _declare_copy(parser: Parser) -> None:
    parser.add_argument(
        "--policy",
        metavar="NAME",
        default="balanced",
        help="what is done about a domain that writes faster than can be copied: gentle, balanced, must-finish or "
        "post-copy (which has no way back)",
    )
    parser.add_argument(
        "-l", "--live", action="store_true", default=True, help="let the domain run during the copy: the default"
    )
    parser.add_argument("--no-live", dest="live", action="store_false", help="stop it for the copy")
    parser.add_argument(
        "--rate",
        "--bandwidth",
        metavar="BYTES",
        default="",
        help="copy at most so many bytes a second, for example 100M",
    )
    parser.add_argument(
        "--downtime",
        metavar="MS",
        type=int,
        default=50,
        help="pause it for at most so many ms (50); policies climb from there",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="give the copy up after so long; with must-finish: end by then",
    )
    parser.add_argument(
        "--stall", metavar="SECONDS", type=float, default=15.0, help="give it up when nothing moved so long (15)"
    )
    parser.add_argument(
        "--no-tls", dest="tls", action="store_false", help="do not encrypt (both nodes' settings must allow it)"
    )
    parser.add_argument(
        "--compress",
        metavar="WHEN",
        choices=[each.value for each in Compress],
        default=Compress.AUTO.value,
        help="pack the stream: auto (where the path is slow and a sample of the memory packs well), yes, no",
    )


def _declare_disks(parser: Parser) -> None:
    parser.add_argument(
        "--with-disks", action="store_true", help="take along the disks that only its node has (files, devices)"
    )
    parser.add_argument(
        "--disk-dir", metavar="DIR", default="", help="their folder on NODE; else [storage] local, else the same path"
    )
    parser.add_argument(
        "--remove-source", action="store_true", help="remove their files here at the end, else FILE.moved-to-NODE"
    )


def _declare_xl(parser: Parser) -> None:
    """xl's own flags: some are taken and mean nothing here, some are refused with the reason."""
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


VERBS: dict[str, Verb] = {
    "migrate": Verb(
        run=_migrate,
        declare=_declare_migrate,
        about="""
Moves a running domain to another node, live: its memory is copied while it runs, and it stops only for the last
few milliseconds. Its disks must be reachable from both nodes (volumes are), or go along with --with-disks. Everything
that can be checked is checked before anything starts.

While it goes on, phase, percent, rate, dirty rate and remaining time are shown: as a bar on a terminal, else one
line a phase and at most one a second, on stderr. Each new round, step of the policy and wait is said in words. The
last line, on stdout, tells total time, downtime and bytes.

Policies: gentle never stands longer than --downtime and gives up where that cannot be; balanced (the default) raises
the limit step by step when the copy does not get on, then slows the domain; must-finish ends within its bound
(--timeout, else 30 seconds or more for a large domain) and at last stops the domain for the rest; post-copy sends all
of the memory once, lets the domain go on at the target, and the rest follows: it always ends, but from COMMIT until
the rest has followed the run is lost if either node's QEMU dies. A cut link is mended by itself. docs/moves.md pictures
them.

With --all or --to, many domains move at once: their memory is copied side by side, their last steps take turns, so
that none stands still for longer than alone. Without --to they are spread over all other nodes that are alive, by
free memory. More than the nodes' limits allow (docs/settings.md) wait in a queue that `veery moves` shows.

With --with-disks, disks that are files or devices of its node alone go along: they are copied while it runs, then
each write goes to both nodes until it has moved. Nothing here is removed before it runs there.

Ctrl-C cancels the move and says where the domain runs; a second Ctrl-C leaves without waiting. Up to the phase
COMMIT a move that fails leaves the domain running where it was; from there on it runs on the target.

With --plan nothing moves. Everything that stands in the way is told at once, each with what would lift it; then the
time and the gap that are to be expected, from the domain's memory, the way to the target and earlier moves; then
what would keep the domain from coming back. Exit status 1 when something stands in the way.""",
        examples="""
veery migrate busybox test2
veery migrate --plan busybox test2
veery migrate --live --rate 100M --downtime 30 busybox 172.16.31.2
veery migrate --with-disks --disk-dir /srv/disks busybox test2
veery migrate --policy must-finish --timeout 60 db test2
veery migrate --to test2 web mail db    # several at once
veery migrate --all test1               # every domain of test1
veery --json migrate busybox test2      # the report, for a script""",
        failure="when cancelled: the domain runs on where it was",
        json=True,
    ),
}
