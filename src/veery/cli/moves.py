"""migrate: move one domain or many domains."""

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

_ID_DEADLINE_S = 60.0  # for veeryd to report the id of a move, which its cancellation needs


# ---- migrate
def _migrate(session: Session, args: Namespace) -> int:
    _refuse(args)
    settings = _settings(args)
    if args.plan and (args.all or args.to):
        raise Usage("--plan needs one domain and one node", "migrate")
    if args.all or args.to:
        from veery.cli.evacuation import evacuate

        _warn(session, settings, quiet=args.quiet)
        return evacuate(session, settings, args.words, args.to, everything=args.all, quiet=args.quiet, force=args.force)
    if len(args.words) != 2:
        raise Usage("migrate needs a domain and a node; for several domains use --to NODE", "migrate")
    args.domain, args.target = args.words
    refuse_domain_0([args.domain])
    order = {"target": args.target, "settings": asdict(settings), "force": args.force}
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
    """Print the risk of the chosen policy before the move starts."""
    if settings.policy == MoveSettings().policy:
        return  # the default risks nothing
    from veery.migrate.policy import find

    if (risk := find(settings.policy).risk) and not quiet:
        session.note(f"{settings.policy}: {risk}")


def _refuse(args: Namespace) -> None:
    """Raise Refused for flags of xl that veery does not support, and for flags that have no effect alone."""
    if (args.disk_dir or args.remove_source) and not args.with_disks:
        raise Refused("--disk-dir and --remove-source apply only to disks that move", hint="add --with-disks")
    if args.disk_dir and not args.disk_dir.startswith("/"):
        raise Refused(f"{args.disk_dir} is not an absolute path", hint="give the absolute path on the target")
    if args.config:
        raise Refused("a domain moves with the configuration that it runs with", hint="omit -C")
    if args.command:
        raise Refused("a domain moves through veery's relocation server, not through ssh", hint="omit -s")
    if args.paused:
        raise Refused(
            "a move does not leave a running domain paused",
            hint="move it without -p, then pause it there: veery --node NODE pause DOMAIN",
        )
    if args.keep_id:
        raise Refused("a domain gets a new id on its new node", hint="omit -D and use the name")


class _Migration:
    """One `veery migrate`. It follows the stream of the move, and cancels the move at Ctrl-C.

    The first Ctrl-C orders the cancellation, from a thread so that the stream stays intact. Reading then continues to
    the real end of the move. The second Ctrl-C leaves without waiting."""

    def __init__(self, session: Session, domain: str, *, quiet: bool) -> None:
        self._session, self._domain, self._quiet = session, domain, quiet
        self._id = ""
        self._known = threading.Event()  # set once veeryd has reported `_id`
        self._interrupt = Interrupt(self._interrupted)

    def run(self, path: str, order: dict[str, Any]) -> MoveReport:
        """Run the move. Raises veeryd's error; that of a cancelled move names the node on which the domain runs."""
        forward = Forward()
        try:
            with self._interrupt, meter(f"{self._domain} -> {order['target']}", quiet=self._quiet) as shown:
                events = self._session.client.stream(path, order)
                from veery.model.codec import convert  # slow; import it while veeryd works

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
            raise OutcomeUnknown(
                "veery left before the move ended; veeryd continues the move or undoes it", hint=where
            ) from None
        raise OutcomeUnknown("veeryd did not report the end of the move", hint="veery moves shows its state")

    def _learn(self, event: dict[str, Any]) -> None:
        first, self._id = not self._id, str(event["move"])
        if first:
            self._known.set()

    def _interrupted(self) -> None:
        self._session.note("\nveery: cancelling the move; press Ctrl-C again to leave without waiting")
        if not self._known.wait(_ID_DEADLINE_S):
            return
        try:
            self._session.client.post(f"/v1/moves/{self._id}/cancel")
        except VeeryError as error:
            self._session.note(f"veery: the move was not cancelled: {error.message}")

    def _ended(self, report: MoveReport) -> MoveReport:
        if self._interrupt.came:
            self._session.note(f"veery: too late to cancel: {report.domain} runs on {report.runs_on or report.target}")
        return report


def summary(report: MoveReport) -> str:
    """Return one line about a finished move."""
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
        "words", metavar="DOMAIN NODE", nargs="*", help="the domain (name, id or UUID) and the target node"
    )
    parser.add_argument(
        "--to",
        metavar="NODE",
        action="append",
        default=[],
        help="move the named domains, or all domains, to NODE; repeat it to spread them over several nodes",
    )
    parser.add_argument("--all", action="store_true", help="move all domains of the node away (of NODE, if given)")
    _declare_copy(parser)
    _declare_disks(parser)
    parser.add_argument(
        "--no-turns", dest="turns", action="store_false", help="do not wait for other moves before copy and switch-over"
    )
    parser.add_argument("--plan", action="store_true", help="move nothing; print the obstacles and the expected time")
    parser.add_argument(
        "--force", action="store_true", help="move also to a node that is sick or in quarantine (veery node health)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _declare_xl(parser)


def _declare_copy(parser: Parser) -> None:
    parser.add_argument(
        "--policy",
        metavar="NAME",
        default="balanced",
        help="policy for a domain that writes faster than the copy: gentle, balanced, must-finish or post-copy (which "
        "cannot be undone)",
    )
    parser.add_argument(
        "-l", "--live", action="store_true", default=True, help="keep the domain running during the copy (default)"
    )
    parser.add_argument("--no-live", dest="live", action="store_false", help="pause the domain during the copy")
    parser.add_argument(
        "--rate",
        "--bandwidth",
        metavar="BYTES",
        default="",
        help="limit of the copy in bytes per second, for example 100M",
    )
    parser.add_argument(
        "--downtime",
        metavar="MS",
        type=int,
        default=50,
        help="limit of the downtime in ms (50); policies can raise it",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="give up the copy after this time; with must-finish: finish by then",
    )
    parser.add_argument(
        "--stall", metavar="SECONDS", type=float, default=15.0, help="give up after this time without progress (15)"
    )
    parser.add_argument(
        "--no-tls", dest="tls", action="store_false", help="do not encrypt (the settings of both nodes must allow it)"
    )
    parser.add_argument(
        "--compress",
        metavar="WHEN",
        choices=[each.value for each in Compress],
        default=Compress.AUTO.value,
        help="compress the stream: auto (if the path is slow and a sample of the memory compresses well), yes, no",
    )


def _declare_disks(parser: Parser) -> None:
    parser.add_argument(
        "--with-disks", action="store_true", help="also move the disks that only its node has (files, devices)"
    )
    parser.add_argument(
        "--disk-dir",
        metavar="DIR",
        default="",
        help="folder of these disks on NODE (default: [storage] local, or else the same path)",
    )
    parser.add_argument(
        "--remove-source",
        action="store_true",
        help="delete the disk files here at the end (default: rename to FILE.moved-to-NODE)",
    )


def _declare_xl(parser: Parser) -> None:
    """Declare xl's own flags. veery ignores some, and refuses the others with a reason."""
    parser.add_argument(
        "-d",
        "--debug",
        "-e",
        "-F",
        dest="ignored",
        action="store_true",
        help="ignored, for xl's sake: veeryd watches the domain",
    )
    parser.add_argument(
        "-C", dest="config", metavar="CONFIG", default="", help="refused: xl's replacement configuration"
    )
    parser.add_argument("-s", dest="command", metavar="COMMAND", default="", help="refused: xl's ssh command")
    parser.add_argument("-p", dest="paused", action="store_true", help="refused: xl's flag to leave the domain paused")
    parser.add_argument("-D", dest="keep_id", action="store_true", help="refused: xl's flag to keep the id")


VERBS: dict[str, Verb] = {
    "migrate": Verb(
        run=_migrate,
        declare=_declare_migrate,
        about="""
Moves a running domain to another node (live migration). The domain runs during the copy of its memory, and is paused
only for the last few milliseconds. Both nodes must reach its disks, as they do with volumes; otherwise use
--with-disks. veery checks everything that it can before the move starts.

During the move, veery shows the phase, percentage, rate, dirty rate and remaining time on stderr: as a bar on a
terminal, otherwise as one line per phase and at most one per second. It also reports each round, each step of the
policy and each wait. The last line, on stdout, has the total time, the downtime and the bytes.

The policies are:

  gentle       never exceeds --downtime, and gives up if that is impossible
  balanced     (default) raises the downtime limit step by step if the copy
               does not converge, then slows the domain
  must-finish  ends by --timeout (default: 30 seconds, more for a large
               domain), and pauses the domain for the rest if necessary
  post-copy    sends all memory once, resumes the domain on the target and
               sends the rest afterwards. It always ends. But from COMMIT until
               the rest has arrived, the instance is lost if QEMU dies on either
               node. veery repairs a broken link by itself.

docs/moves.md describes them in detail.

With --all or --to, many domains move in one order. The copies run side by side. The last steps take turns, so no domain
is paused for longer than in a move alone. Without --to, veery spreads the domains over all other live nodes by free
memory. Moves beyond the limits of the nodes (docs/settings.md) wait in a queue that `veery moves` shows.

With --with-disks, disks that are files or devices of the source node move too. veery copies them while the domain runs;
then each write goes to both nodes until the domain has moved. The source keeps the disks until the domain runs on the
target.

Ctrl-C cancels the move and prints where the domain runs. A second Ctrl-C leaves without waiting. If a move fails before
the phase COMMIT, the domain keeps running on the source. From COMMIT on, it runs on the target.

With --plan nothing moves. veery prints every obstacle with a hint how to remove it. Then it prints the expected time
and gap, estimated from the domain's memory, the path to the target and earlier moves. Last it prints what would prevent
a move back. The exit status is 1 if there is an obstacle.""",
        examples="""
veery migrate busybox test2
veery migrate --plan busybox test2
veery migrate --live --rate 100M --downtime 30 busybox 172.16.31.2
veery migrate --with-disks --disk-dir /srv/disks busybox test2
veery migrate --policy must-finish --timeout 60 db test2
veery migrate --to test2 web mail db    # several domains
veery migrate --all test1               # every domain of test1
veery --json migrate busybox test2      # the report, for a script""",
        failure="the move was cancelled, and the domain runs on the source",
        json=True,
    ),
}
