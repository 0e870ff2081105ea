"""Adoption of a restored store: cluster adopt."""

from __future__ import annotations

import getpass
import sys
from argparse import Namespace

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused

_ADOPT_DEADLINE_S = 180.0


def _adopt(session: Session, args: Namespace) -> int:
    if args.plan:
        return _plan(session, args)
    if args.lost and not args.yes:
        _ask(args.lost)
    order = {"plan": False, "lost": args.lost, "by": getpass.getuser()}
    answer = session.client.post("/v1/adopt", order, deadline=_ADOPT_DEADLINE_S)
    if session.json:
        session.print_json(answer)
        return 0
    print(*answer["changes"], sep="\n", end="\n" if answer["changes"] else "")
    print(f"The store is adopted (incarnation {answer['incarnation']}); now look at: veery doctor --all")
    return 0


def _plan(session: Session, args: Namespace) -> int:
    answer = session.client.post("/v1/adopt", {"plan": True, "lost": args.lost}, deadline=_ADOPT_DEADLINE_S)
    if session.json:
        session.print_json(answer)
    else:
        for line in answer["changes"]:
            print(line)
        for line in answer["refusals"]:
            print(f"refused: {line}")
        if not answer["changes"] and not answer["refusals"]:
            print("only the incarnation has changed since the backup")
    return 1 if answer["refusals"] else 0


def _ask(lost: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Refused("stdin is not a terminal, so veery cannot ask", hint="--yes confirms without a question")
    names = ", ".join(lost)
    print(f"The domains of {names} may start on other nodes. If they still run, their disks are destroyed.")
    if input(f"Are you sure that {names} is off? (yes/no) ").strip() != "yes":
        raise Refused("nothing was adopted", hint="type the whole word yes to confirm")


def _declare_adopt(parser: Parser) -> None:
    parser.add_argument("--plan", action="store_true", help="print the changes and the obstacles; write nothing")
    parser.add_argument(
        "--lost", metavar="NODE", action="append", default=[], help="you confirm that this node is off; can be repeated"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation of --lost")


VERBS: dict[str, Verb] = {
    "cluster adopt": Verb(
        run=_adopt,
        declare=_declare_adopt,
        about="""
Adopts a store that was restored from a backup. Before the adoption, no node starts, stops, moves or fences anything on
the word of this store. veery asks every node which domains run there, and writes the owner keys accordingly. It refuses
while a node does not answer, or while a domain runs twice. Name a lost node with --lost, which confirms that it is off.
veery fences this node, and its domains may start elsewhere.""",
        examples=(
            "veery cluster adopt --plan\nveery cluster adopt\nveery cluster adopt --lost test3  # test3 is burnt down"
        ),
        failure="with --plan: there is an obstacle",
        json=True,
    ),
}
