"""A store that was restored: cluster adopt."""

from __future__ import annotations

import getpass
import sys
from argparse import Namespace

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused

_DEADLINE = 180.0


def _adopt(session: Session, args: Namespace) -> int:
    if args.plan:
        return _plan(session, args)
    if args.lost and not args.yes:
        _ask(args.lost)
    order = {"plan": False, "lost": args.lost, "by": getpass.getuser()}
    told = session.client.post("/v1/adopt", order, deadline=_DEADLINE)
    if session.json:
        session.print_json(told)
        return 0
    print(*told["changes"], sep="\n", end="\n" if told["changes"] else "")
    print(f"The store is adopted (incarnation {told['incarnation']}); now look at: veery doctor --all")
    return 0


def _plan(session: Session, args: Namespace) -> int:
    told = session.client.post("/v1/adopt", {"plan": True, "lost": args.lost}, deadline=_DEADLINE)
    if session.json:
        session.print_json(told)
    else:
        for line in told["changes"]:
            print(line)
        for line in told["refusals"]:
            print(f"refused: {line}")
        if not told["changes"] and not told["refusals"]:
            print("nothing has changed since the copy but the incarnation")
    return 1 if told["refusals"] else 0


def _ask(lost: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Refused("nobody is here to be asked", hint="--yes says it without a question")
    names = ", ".join(lost)
    print(f"What ran on {names} may be started on other nodes. If it still runs, its disks are destroyed.")
    if input(f"Are you sure that {names} is off? (yes/no) ").strip() != "yes":
        raise Refused("nothing was adopted", hint="type yes in full, or nothing happens")


def _declare_adopt(parser: Parser) -> None:
    parser.add_argument("--plan", action="store_true", help="print what would be written and what stands in the way")
    parser.add_argument(
        "--lost", metavar="NODE", action="append", default=[], help="this node is off, by your word; may be repeated"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask about nodes that are lost")


VERBS: dict[str, Verb] = {
    "cluster adopt": Verb(
        run=_adopt,
        declare=_declare_adopt,
        about="""
Adopts a store that was restored from a backup. Until then no node starts, ends, moves or fences anything by what the
store says. Every node is asked what runs there, and the store's owner keys are written from that. It is refused while
a node does not answer, or while a domain runs twice. A node that is gone is named with --lost: you give your word that
it is off. It is fenced, and its domains may start elsewhere.""",
        examples=(
            "veery cluster adopt --plan\nveery cluster adopt\nveery cluster adopt --lost test3  # test3 is burnt down"
        ),
        failure="with --plan: something stands in the way",
        json=True,
    ),
}
