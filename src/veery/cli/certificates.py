"""Certificates: node renew, cluster ca."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session

RENEW_S = 120.0
DAY_S = 86400.0
SHORT = 12  # signs of a CA's id


def _renew(session: Session, args: Namespace) -> int:
    name = args.name or session.client.get("/v1/host")["node"]["name"]
    told = session.client.post(f"/v1/nodes/{quote(name, safe='')}/renew", deadline=RENEW_S)
    if session.json:
        session.print_json(told)
    else:
        print(f"{name} has a new certificate, good for {_days(told['ends'])} days")
    return 0


def _ca(session: Session, args: Namespace) -> int:
    if args.step == "show":
        return _told(session, session.client.get("/v1/ca/status"))
    return _told(session, session.client.post(f"/v1/ca/{args.step}", deadline=RENEW_S))


def _told(session: Session, status: dict[str, Any]) -> int:
    if session.json:
        session.print_json(status)
        return 0
    print(f"CA {status['signing'][:SHORT]} signs, good for {_days(status['ends'])} days")
    others = [id[:SHORT] for id in status["trusted"] if id != status["signing"]]
    if not others:
        return 0
    print(f"also trusted: {', '.join(others)}")
    if status["untrusting"]:
        print(f"do not trust both yet: {', '.join(status['untrusting'])}")
    elif status["old"]:
        print(f"have another CA's certificate, or a former one: {', '.join(status['old'])}")
    newest = status["trusted"][-1] == status["signing"]
    if not status["untrusting"]:
        ready = "veery cluster ca drop" if not status["old"] else "wait, then veery cluster ca drop"
        print(f"next: {ready}" if newest else f"next: veery cluster ca renew; or give the new CA up: {ready}")
    return 0


def _days(ends: float) -> int:
    return max(0, int((ends - time.time()) / DAY_S))


def _declare_ca(parser: Parser) -> None:
    parser.add_argument(
        "step",
        metavar="STEP",
        nargs="?",
        default="show",
        choices=("show", "renew", "cancel", "drop"),
        help="show (if left away), renew, cancel or drop",
    )


def _declare_renew(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="a node's name; the one spoken to if left away"
    )


VERBS: dict[str, Verb] = {
    "node renew": Verb(
        run=_renew,
        declare=_declare_renew,
        about="""
Gives a node a new certificate for the key that it has, good for five years. Domains, moves and connections go on. Each
node does this by itself at two thirds of its certificate's life. The former certificate is put out ten minutes later,
or once the moves of the node have ended; until then another renewal is refused.""",
        examples="veery node renew\nveery node renew test1",
        json=True,
    ),
    "cluster ca": Verb(
        run=_ca,
        declare=_declare_ca,
        about="""
Shows which CA signs the nodes' certificates, and for how long it is good. `renew` takes the next step to a new CA, with
domains running. First a new CA is made, and all nodes come to trust both; each voter's etcd is restarted for it, one
after the other. Ordered again, `renew` has the new CA sign, and each node get a certificate of it. `drop` then ends the
trust in the old CA, and deletes its key. It is refused while a node has a certificate of the old one. `cancel` has the
old CA sign again; `drop` then ends the trust in the new one.

A step is refused while nodes stand in its way: they are named. A change that was broken off goes on with the next step,
which `show` tells.""",
        examples="veery cluster ca\nveery cluster ca renew\nveery cluster ca cancel\nveery cluster ca drop",
        json=True,
    ),
}
