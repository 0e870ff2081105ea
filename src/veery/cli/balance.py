"""balance: plan moves that relieve busy nodes and make the load even."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.session import Session, Usage
from veery.client.address import find
from veery.client.http import Client
from veery.errors import Refused
from veery.model.units import format_size

if TYPE_CHECKING:
    from veery.balance.model import Cluster, Plan, Score
    from veery.cli.parser import Parser

MEASURE_MAX_S = 600
PRESENT = "present"  # the state of a node that may receive domains


def _balance(session: Session, args: Namespace) -> int:
    from veery.balance import file, planner
    from veery.balance.model import Limits

    if bool(args.cluster) == args.plan:
        raise Usage("give either --plan or --cluster FILE", "balance")
    if args.max_moves < 0:
        raise Usage("--max-moves must not be negative", "balance")
    if not 0 < args.measure <= MEASURE_MAX_S:
        raise Usage(f"--measure must be above 0 and at most {MEASURE_MAX_S}", "balance")
    cluster, silent = (file.load(Path(args.cluster)), ()) if args.cluster else _survey(session, args.measure)
    trials = planner.affordable(cluster)
    plan = planner.plan(cluster, Limits(moves=args.max_moves, even=not args.relieve, trials=trials))
    if session.json:
        session.print_json(plan)
    else:
        _tell(plan, explain=args.explain)
    return 1 if silent else 0


def _survey(session: Session, seconds: float) -> tuple[Cluster, Sequence[str]]:
    """Return the live cluster, and the hypervisors that do not answer. The load is measured over `seconds`."""
    from veery.balance.live import Report, Survey, described
    from veery.model.codec import convert
    from veery.model.domain import DomainReading, HostReading
    from veery.model.ha import Group, HaRecord

    readings = tuple[DomainReading, ...]
    status = session.client.get("/v1/cluster")
    if not status["quorum"]:
        raise Refused("the store has no quorum, so nobody knows where domains may run", hint="veery cluster status")
    began, before = time.monotonic(), session.client.get("/v1/domains", cluster="1")
    time.sleep(seconds)
    ended, after = time.monotonic(), session.client.get("/v1/domains", cluster="1")
    session.note_restored(after)
    session.note_unsettled(after)
    states = {node["name"]: node["state"] for node in status["nodes"]}
    silent = sorted({*before["silent"], *after["silent"]})
    reports = {}
    for name in sorted(before["nodes"].keys() & after["nodes"].keys()):
        host = Client(find(session.settings, name, session.lab)).get("/v1/host")["host"]
        reports[name] = Report(
            host=convert(host, HostReading),
            takes=states.get(name) == PRESENT,
            before=convert(before["nodes"][name], readings),
            after=convert(after["nodes"][name], readings),
            seconds=ended - began,
        )
    for name in silent:
        session.note(f"veery: node {name} does not answer; the plan leaves it and its domains out")
    survey = Survey(
        reports=reports,
        owners={domain: node["name"] for node in status["nodes"] for domain in node["domains"]},
        policies={row["domain"]: convert(row["policy"], HaRecord) for row in session.client.get("/v1/ha")},
        rules={row["name"]: convert(row["rule"], Group) for row in session.client.get("/v1/groups")},
    )
    return described(survey), silent


def _tell(plan: Plan, *, explain: bool) -> None:
    print(f"score {_score(plan.before)}")
    rows = [
        (
            *(str(number), move.domain, move.source, move.target, f"{move.score.total:.4f}"),
            *(format_size(move.copied << 20), f"{move.seconds:.0f} s"),
        )
        for number, move in enumerate(plan.moves, 1)
    ]
    if rows:
        lines = list(tables.plain(("Move", "Domain", "From", "To", "Score", "Copied", "Time"), rows))
        print(lines[0])
        for move, line in zip(plan.moves, lines[1:], strict=True):
            print(line)
            if explain:
                print(f"      {move.why}")
        print(f"score {_score(plan.after)}")
    print(f"end   {plan.end}")


def _score(score: Score) -> str:
    """Return a score with its parts."""
    parts = f"memory {score.memory:.4f}, vcpus {score.vcpus:.4f}, load {score.load:.4f}"
    return f"{score.total:.4f}  ({parts}, conflicts {score.conflicts}, stranded {score.stranded})"


def _declare(parser: Parser) -> None:
    parser.add_argument("--plan", action="store_true", help="plan for this cluster, and move nothing")
    parser.add_argument("--cluster", metavar="FILE", default="", help="plan for the cluster that FILE describes")
    parser.add_argument(
        "--measure", metavar="SECONDS", type=float, default=10.0, help="with --plan: measure the load so long (10)"
    )
    parser.add_argument("--explain", action="store_true", help="print the reason for each move")
    parser.add_argument("--max-moves", metavar="N", type=int, default=20, help="plan at most N moves (20)")
    parser.add_argument("--relieve", action="store_true", help="only relieve busy nodes and mend rules and N+1")


VERBS = {
    "balance": Verb(
        run=_balance,
        declare=_declare,
        about="""
Plans moves of domains, and carries none of them out. It first relieves nodes whose load is above 80 % of their cores.
Then it makes free memory, virtual processors and load even. It prints each move with the score after it. The score is
the sum of the standard deviations over the nodes, two for each domain that breaks the rule of a group, and one for
each domain that would find no place after the loss of its node (N+1). Lower is better.

No move breaks the rule of a group, fills a node beyond its memory, or makes N+1 worse. A move must gain three times
the processor time that its copy costs.

--plan asks the nodes of this cluster, and measures the load of the domains for some seconds. A short peak counts as
much as a lasting load, so look at more than one plan. --cluster plans for a described cluster, without a daemon.
docs/balance.md describes the file and the score.""",
        examples="veery balance --plan --explain\nveery balance --plan --measure 60\n"
        "veery balance --cluster lab.json --max-moves 5 --json",
        failure="with --plan: a node did not answer, and the plan leaves it out",
        json=True,
    ),
}
