"""Verbs for existing moves: moves, move show, move set, move cancel."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.progress import stood
from veery.cli.session import Session, Usage
from veery.model.move import MoveReport
from veery.model.units import format_size

_FOLLOW_INTERVAL_S = 0.5  # between two queries of `moves -f`


def _reports(session: Session) -> tuple[MoveReport, ...]:
    from veery.model.codec import convert

    return convert(session.client.get("/v1/moves"), tuple[MoveReport, ...])


def _moves(session: Session, args: Namespace) -> int:
    if args.follow:
        return _follow(session)
    reports = _reports(session)
    if session.json:
        session.print_json(reports)
        return 0
    print(*_table(reports), sep="\n")
    return 0


def _follow(session: Session) -> int:
    """Print the table, then the line of each move whose state or phase has changed, until Ctrl-C."""
    seen: dict[str, tuple[str, str]] = {}
    try:
        while True:
            reports = [each for each in _reports(session) if seen.get(each.id) != (each.state, each.phase)]
            lines = list(_table(reports))
            print(*(lines[1:] if seen else lines), sep="\n", end="\n" if lines[len(seen) > 0 :] else "", flush=True)
            seen |= {each.id: (each.state, each.phase) for each in reports}
            time.sleep(_FOLLOW_INTERVAL_S)
    except KeyboardInterrupt:
        return 0


def _table(reports: Iterable[MoveReport]) -> Iterator[str]:
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
    return tables.plain(headers, rows)


def _show(session: Session, args: Namespace) -> int:
    from veery.model.codec import convert

    report = convert(session.client.get(f"/v1/moves/{quote(args.move, safe='')}"), MoveReport)
    if session.json:
        session.print_json(report)
        return 0
    print(
        f"move {report.id}: {report.domain} from {report.source} to {report.target}, {report.state} in {report.phase}"
    )
    print(f"  total {report.total_ms:.0f} ms, {stood(report, ', ')}{format_size(report.bytes)}", end="")
    if report.packed:
        print(f" sent as {format_size(report.packed)}", end="")
    print(f" in {report.rounds} rounds, dirtied {format_size(report.dirty_rate)}/s" if report.rounds else "", end="")
    print(f", encrypted by {report.cipher}" if report.cipher else "")
    for phase, milliseconds in report.phases.items():
        print(f"  {phase:<8} {milliseconds:9.1f} ms")
    for line in timeline(report):
        print(line)
    if report.disk_bytes:
        kept = f"; kept on {report.source}: {', '.join(report.kept)}" if report.kept else ""
        print(f"  {format_size(report.disk_bytes)} of its disks moved too{kept}")
    if report.runs_on:
        print(f"  the domain runs on {report.runs_on}")
    for label, text in (("caution", report.caution), ("reason", report.reason), ("hint", report.hint)):
        if text:
            print(f"  {label}: {text}")
    return 0


def timeline(report: MoveReport) -> Iterator[str]:
    """Yield the course of a copy: one line per round, and each action of the policy with its reason."""
    if not report.samples:
        return
    yield f"  policy {report.policy or 'none'}; seconds after the copy began:"
    header = (
        f"  {'at':>8} {'round':>5} {'sent':>10} {'left':>10} {'speed':>12} {'written':>12} {'slowed':>6} {'limit':>7}"
    )
    yield header
    lines = [(remark.at, 1, f"  {remark.at:8.2f}   {remark.text}") for remark in report.story]
    before = -1
    for index, item in enumerate(report.samples):
        if item.rounds == before and index != len(report.samples) - 1:
            continue
        before = item.rounds
        row = (
            f"  {item.at:8.2f} {item.rounds:5} {format_size(item.transferred):>10} {format_size(item.remaining):>10} "
            f"{format_size(item.rate) + '/s':>12} {format_size(item.dirty_rate) + '/s':>12} {item.throttle:>4} % "
            f"{item.downtime:>4} ms"
        )
        lines.append((item.at, 0, row))
    for _, _, line in sorted(lines):
        yield line


def _set(session: Session, args: Namespace) -> int:
    from veery.model.units import parse_size

    order: dict[str, int] = {}
    if args.bandwidth:
        order["bandwidth"] = parse_size(args.bandwidth)
    if args.downtime is not None:
        order["downtime"] = args.downtime
    if not order:
        raise Usage("give --bandwidth, --downtime or both", "move set")
    session.client.post(f"/v1/moves/{quote(args.move, safe='')}/set", order)
    return 0


def _declare_moves(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing: one line for each change of a move")


def _declare_set(parser: Parser) -> None:
    _declare_move(parser)
    parser.add_argument(
        "--bandwidth", metavar="BYTES", default="", help="bytes per second, for example 32M; 0: no limit"
    )
    parser.add_argument("--downtime", metavar="MS", type=int, default=None, help="the limit of the downtime, in ms")


def _cancel(session: Session, args: Namespace) -> int:
    session.client.post(f"/v1/moves/{quote(args.move, safe='')}/cancel")
    return 0


def _declare_move(parser: Parser) -> None:
    parser.add_argument("move", metavar="ID", help="the id of a move, as veery moves prints it")


VERBS: dict[str, Verb] = {
    "moves": Verb(
        run=_moves,
        declare=_declare_moves,
        about="""
Lists the moves out of this node, the latest last: queued, running and finished ones.""",
        examples="veery moves\nveery moves -f     # until Ctrl-C",
        json=True,
    ),
    "move show": Verb(
        run=_show,
        declare=_declare_move,
        about="""
Prints the report of one move: its domain and nodes, its result, and the milliseconds of each phase. For each round of
the copy it shows the bytes sent and left, the copy rate and dirty rate, the throttle and the downtime limit. It also
shows each step of the policy with its reason. The downtime is the figure of the hypervisor.""",
        examples="veery move show 5f0c3a",
        json=True,
    ),
    "move set": Verb(
        run=_set,
        declare=_declare_set,
        about="""
Changes the bandwidth or the downtime limit of a move while it copies disks or memory. While disks are copied, the
bandwidth applies to them at once, and the copy of the memory begins with both.""",
        examples="veery move set 5f0c3a --bandwidth 32M --downtime 100",
    ),
    "move cancel": Verb(
        run=_cancel,
        declare=_declare_move,
        about="""
Cancels a move that waits in the queue or has not reached COMMIT. The domain keeps running on the source. The command
returns when the source has the domain running again.""",
        examples="veery move cancel 5f0c3a",
    ),
}
