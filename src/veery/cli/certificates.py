"""Certificates: node renew, cluster ca."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session

RENEW_DEADLINE_S = 120.0
DAY_S = 86400.0
ID_PREFIX_LENGTH = 12  # characters shown of a CA's id


def _renew(session: Session, args: Namespace) -> int:
    name = args.name or session.client.get("/v1/host")["node"]["name"]
    answer = session.client.post(f"/v1/nodes/{quote(name, safe='')}/renew", deadline=RENEW_DEADLINE_S)
    if session.json:
        session.print_json(answer)
    else:
        print(f"{name} has a new certificate, valid for {_days(answer['ends'])} days")
    return 0


def _ca(session: Session, args: Namespace) -> int:
    if args.step == "show":
        return _print_status(session, session.client.get("/v1/ca/status"))
    return _print_status(session, session.client.post(f"/v1/ca/{args.step}", deadline=RENEW_DEADLINE_S))


def _print_status(session: Session, status: dict[str, Any]) -> int:
    if session.json:
        session.print_json(status)
        return 0
    print(f"CA {status['signing'][:ID_PREFIX_LENGTH]} signs, valid for {_days(status['ends'])} days")
    others = [id[:ID_PREFIX_LENGTH] for id in status["trusted"] if id != status["signing"]]
    if not others:
        return 0
    print(f"also trusted: {', '.join(others)}")
    if status["untrusting"]:
        print(f"nodes that do not trust both CAs yet: {', '.join(status['untrusting'])}")
    elif status["old"]:
        print(f"nodes with a certificate of another CA, or with a former one: {', '.join(status['old'])}")
    newest = status["trusted"][-1] == status["signing"]
    if not status["untrusting"]:
        ready = "veery cluster ca drop" if not status["old"] else "wait, then veery cluster ca drop"
        print(f"next: {ready}" if newest else f"next: veery cluster ca renew; or, to give up the new CA: {ready}")
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
        help="show (default), renew, cancel or drop",
    )


def _declare_renew(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="the node's name (default: the node that veery talks to)"
    )


VERBS: dict[str, Verb] = {
    "node renew": Verb(
        run=_renew,
        declare=_declare_renew,
        about="""
Gives a node a new certificate for its key, valid for five years. Domains, moves and connections continue. Each node
renews its certificate automatically after two thirds of its lifetime. The cluster revokes the former certificate ten
minutes later, or once the moves of the node have ended. Until then veery refuses another renewal.""",
        examples="veery node renew\nveery node renew test1",
        json=True,
    ),
    "cluster ca": Verb(
        run=_ca,
        declare=_declare_ca,
        about="""
Shows which CA signs the nodes' certificates, and how long the CA is valid. The steps of a change to a new CA, while
domains keep running, are:

  renew   creates a new CA, and all nodes then trust both. For this the etcd
          of each voter restarts, one after the other.
  renew   (again) lets the new CA sign, and gives each node a certificate of it.
  drop    ends the trust in the old CA and deletes its key. veery refuses this
          while a node has a certificate of the old CA.
  cancel  lets the old CA sign again. `drop` then ends the trust in the new CA.

If nodes prevent a step, veery refuses the step and names them. An interrupted change continues with the next step,
which `show` prints.""",
        examples="veery cluster ca\nveery cluster ca renew\nveery cluster ca cancel\nveery cluster ca drop",
        json=True,
    ),
}
