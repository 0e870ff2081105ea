"""balance: plan moves that relieve busy nodes and make the load even."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.session import Session, Usage
from veery.model.units import format_size

if TYPE_CHECKING:
    from veery.balance.model import Plan, Score
    from veery.cli.parser import Parser

TRIALS_MAX = 300  # to replace moves of the plan by better ones
TRIALS_EFFORT = 1_000_000  # domains x nodes x trials: large clusters get fewer trials


def _balance(session: Session, args: Namespace) -> int:
    from veery.balance import file, planner
    from veery.balance.model import Limits

    if not args.cluster:
        raise Usage("give --cluster FILE", "balance")
    if args.max_moves < 0:
        raise Usage("--max-moves must not be negative", "balance")
    cluster = file.load(Path(args.cluster))
    trials = min(TRIALS_MAX, TRIALS_EFFORT // (len(cluster.nodes) * max(1, len(cluster.domains))))
    plan = planner.plan(cluster, Limits(moves=args.max_moves, even=not args.relieve, trials=trials))
    if session.json:
        session.print_json(plan)
    else:
        _tell(plan, explain=args.explain)
    return 0


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
    parser.add_argument("--cluster", metavar="FILE", default="", help="plan for the cluster that FILE describes")
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

--cluster plans for a described cluster, without a daemon. docs/balance.md describes the file and the score.""",
        examples="veery balance --cluster lab.json --explain\nveery balance --cluster lab.json --max-moves 5 --json",
        json=True,
    ),
}
