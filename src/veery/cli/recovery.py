"""The store without a majority, and votes in it: cluster recover, node vote."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused

RECOVER_S = 900.0
VOTE_S = 120.0


def _recover(session: Session, args: Namespace) -> int:
    file = str(Path(args.file).absolute()) if args.file else ""
    order = {"file": file, "lost": args.lost}
    if args.plan:
        told = session.client.post("/v1/recovery", {**order, "plan": True}, deadline=RECOVER_S)
        if session.json:
            session.print_json(told)
        else:
            print(*told["steps"], *(f"refused: {line}" for line in told["refusals"]), sep="\n")
        return 1 if told["refusals"] else 0
    if args.lost and not args.yes:
        _ask(args.lost)
    told = session.client.post("/v1/recovery", order, deadline=RECOVER_S)
    if session.json:
        session.print_json(told)
        return 0
    print(*told["steps"], sep="\n")
    print("The store answers, and no node trusts it yet; next: veery cluster adopt --plan")
    return 0


def _ask(lost: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Refused("nobody is here to be asked", hint="--yes says it without a question")
    names = ", ".join(lost)
    print(f"If {names} still run, or come back together without the other nodes, there are two stores.")
    if input(f"Are you sure that {names} is off? (yes/no) ").strip() != "yes":
        raise Refused("nothing was recovered", hint="type yes in full, or nothing happens")


def _vote(session: Session, args: Namespace) -> int:
    if args.name:
        told = session.client.post(f"/v1/nodes/{quote(args.name)}/vote", {"on": args.what == "on"}, deadline=VOTE_S)
    else:
        told = session.client.post("/v1/vote", {"on": args.what == "on"}, deadline=VOTE_S)
    if session.json:
        session.print_json(told)
        return 0
    print(f"The store has {told['votes']} voters")
    if told["warning"]:
        session.note(f"veery: {told['warning']}")
    return 0


def _declare_recover(parser: Parser) -> None:
    parser.add_argument("--from", dest="file", metavar="FILE", default="", help="a copy of the store, on this node")
    parser.add_argument("--plan", action="store_true", help="print what would be done and what stands in the way")
    parser.add_argument(
        "--lost", metavar="NODE", action="append", default=[], help="this voter is off, by your word; may be repeated"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask about voters that are lost")


def _declare_vote(parser: Parser) -> None:
    parser.add_argument("what", metavar="on|off", choices=("on", "off"), help="give a vote, or give it up")
    parser.add_argument("name", metavar="NODE", nargs="?", default="", help="the node spoken to if left away")


VERBS: dict[str, Verb] = {
    "cluster recover": Verb(
        run=_recover,
        declare=_declare_recover,
        about="""
Makes a store of one voter on the node that is spoken to, where most voters lost their data or are gone for good: of the
data that this voter has, or of a copy (--from). Domains run on: every node that answers stands still meanwhile, so that
no watchdog fires. The other voters give up their members, and keep the data beside. A voter that does not answer is
named with --lost: you give your word that it is off. No node acts on the new store before veery cluster adopt. Then
veery node vote on gives other nodes a vote again.""",
        examples="veery cluster recover --plan\nveery cluster recover\n"
        "veery cluster recover --from /root/veery-store.db --lost test3",
        failure="with --plan: something stands in the way",
        json=True,
    ),
    "node vote": Verb(
        run=_vote,
        declare=_declare_vote,
        about="""
Gives a node of the cluster a vote in the store, or has it give its vote up, while its domains run on. A new member has
no vote before it has caught up, and every other voter has to answer. A vote is not given up where the others that
answer would be no majority. The node's veeryd starts anew afterwards. An even number of votes is warned of.""",
        examples="veery node vote on test3\nveery --node test1 node vote off",
        json=True,
    ),
}
