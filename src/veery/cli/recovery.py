"""Recovery of a store without a majority, and votes in the store: cluster recover, node vote."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused

RECOVER_DEADLINE_S = 900.0
VOTE_DEADLINE_S = 120.0


def _recover(session: Session, args: Namespace) -> int:
    file = str(Path(args.file).absolute()) if args.file else ""
    order = {"file": file, "lost": args.lost}
    if args.plan:
        answer = session.client.post("/v1/recovery", {**order, "plan": True}, deadline=RECOVER_DEADLINE_S)
        if session.json:
            session.print_json(answer)
        else:
            print(*answer["steps"], *(f"refused: {line}" for line in answer["refusals"]), sep="\n")
        return 1 if answer["refusals"] else 0
    if args.lost and not args.yes:
        _ask(args.lost)
    answer = session.client.post("/v1/recovery", order, deadline=RECOVER_DEADLINE_S)
    if session.json:
        session.print_json(answer)
        return 0
    print(*answer["steps"], sep="\n")
    print("The store answers, but no node trusts it yet; next: veery cluster adopt --plan")
    return 0


def _ask(lost: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Refused("stdin is not a terminal, so veery cannot ask", hint="--yes confirms without a question")
    names = ", ".join(lost)
    print(f"If {names} still run, or return together without the other nodes, the cluster has two stores.")
    if input(f"Are you sure that {names} is off? (yes/no) ").strip() != "yes":
        raise Refused("nothing was recovered", hint="type the whole word yes to confirm")


def _vote(session: Session, args: Namespace) -> int:
    if args.name:
        answer = session.client.post(
            f"/v1/nodes/{quote(args.name)}/vote", {"on": args.what == "on"}, deadline=VOTE_DEADLINE_S
        )
    else:
        answer = session.client.post("/v1/vote", {"on": args.what == "on"}, deadline=VOTE_DEADLINE_S)
    if session.json:
        session.print_json(answer)
        return 0
    print(f"The store has {answer['votes']} voters")
    if answer["warning"]:
        session.note(f"veery: {answer['warning']}")
    return 0


def _declare_recover(parser: Parser) -> None:
    parser.add_argument("--from", dest="file", metavar="FILE", default="", help="a backup of the store, on this node")
    parser.add_argument("--plan", action="store_true", help="print the steps and the obstacles; change nothing")
    parser.add_argument(
        "--lost",
        metavar="NODE",
        action="append",
        default=[],
        help="you confirm that this voter is off; can be repeated",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation of --lost")


def _declare_vote(parser: Parser) -> None:
    parser.add_argument("what", metavar="on|off", choices=("on", "off"), help="give the vote, or take it away")
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="the node's name (default: the node that veery talks to)"
    )


VERBS: dict[str, Verb] = {
    "cluster recover": Verb(
        run=_recover,
        declare=_declare_recover,
        about="""
Rebuilds the store after most voters have lost their data or are gone for good. The new store has one voter, on the node
that veery talks to. Its data is that of this voter, or a backup (--from).

Domains keep running: meanwhile every node that answers feeds its watchdog and leaves its domains alone. The other
voters stop their etcd members and keep a copy of the data. Name a voter that does not answer with --lost, which
confirms that it is off. No node acts on the new store before `veery cluster adopt`. Afterwards `veery node vote on`
gives other nodes a vote again.""",
        examples="veery cluster recover --plan\nveery cluster recover\n"
        "veery cluster recover --from /root/veery-store.db --lost test3",
        failure="with --plan: there is an obstacle",
        json=True,
    ),
    "node vote": Verb(
        run=_vote,
        declare=_declare_vote,
        about="""
Gives a node a vote in the store, or takes the vote away, while its domains keep running. A new etcd member gets its
vote once it has caught up; every other voter must answer. veery refuses to take a vote away if the other voters that
answer would not be a majority. The node's veeryd restarts afterwards. veery warns about an even number of votes.""",
        examples="veery node vote on test3\nveery --node test1 node vote off",
        json=True,
    ),
}
