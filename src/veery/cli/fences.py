"""Fences of nodes: fence list, show, test, confirm, lift."""

from __future__ import annotations

import getpass
import sys
import time
from argparse import Namespace
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused

_ORDER_DEADLINE_S = 60.0


def _path(name: str, *rest: str) -> str:
    return "/v1/fences/" + "/".join(quote(word, safe="") for word in (name, *rest))


def _moment(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


# ---- looking
def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/fences")
    if session.json:
        session.print_json(rows)
        return 0
    cells = []
    for row in rows:
        record = row["record"]
        cells.append(
            (row["node"], record["state"], record["method"] or "-", _moment(record["at"]), record["proof"] or "-")
        )
    print(*tables.plain(("Node", "State", "By", "Last try", "Proof"), cells), sep="\n")
    return 0


def _show(session: Session, args: Namespace) -> int:
    row = session.client.get(_path(args.name))
    if session.json:
        session.print_json(row)
        return 0
    record = row["record"]
    pairs = {
        "node": row["node"],
        "state": record["state"],
        "proof": record["proof"] or "-",
        "last try": _moment(record["at"]),
        "initiator": row["iqn"] or "-",
    }
    pairs |= dict(record["tried"])
    print(*(f"{name:<9}: {value}" for name, value in pairs.items()), sep="\n")
    return 0


def _test(session: Session, args: Namespace) -> int:
    rows = session.client.get(_path(args.name, "test"))
    if session.json:
        session.print_json(rows)
    else:
        cells = [(row["method"], "yes" if row["works"] else "no", row["told"]) for row in rows]
        print(*tables.plain(("Method", "Works", ""), cells), sep="\n")
    return 0 if any(row["works"] for row in rows) else 1


# ---- acting
def _confirm(session: Session, args: Namespace) -> int:
    if not args.yes:
        if not sys.stdin.isatty():
            raise Refused("stdin is not a terminal, so veery cannot ask", hint="--yes confirms without a question")
        print(
            f"The cluster will start its domains on other nodes. If {args.name} still runs, their disks are destroyed."
        )
        if input(f"Are you sure that {args.name} is off, or has no path to the storage? (yes/no) ").strip() != "yes":
            raise Refused("nothing was confirmed", hint="type the whole word yes to confirm")
    session.client.post(_path(args.name, "confirm"), {"by": getpass.getuser()}, deadline=_ORDER_DEADLINE_S)
    print(f"{args.name} is confirmed as off")
    return 0


def _lift(session: Session, args: Namespace) -> int:
    clean = session.client.delete(_path(args.name), deadline=_ORDER_DEADLINE_S)
    kept = ", ".join(sorted(clean["kept"])) or "no domains"
    print(f"the fence of {args.name} is lifted; it runs {kept}")
    return 0


# ---- arguments
def _declare_nothing(parser: Parser) -> None:
    pass


def _declare_name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name, as veery node list shows it")


def _declare_confirm(parser: Parser) -> None:
    _declare_name(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


VERBS: dict[str, Verb] = {
    "fence list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="Lists the fenced nodes. The targets of all volumes refuse them until the fence is lifted.",
        examples="veery fence list",
        json=True,
    ),
    "fence show": Verb(
        run=_show,
        declare=_declare_name,
        about="Prints the fence of one node: its state, and the result of each fence method.",
        examples="veery fence show test1",
        json=True,
    ),
    "fence test": Verb(
        run=_test,
        declare=_declare_name,
        about="""
Tests for each fence method whether it would work on the node now: the storage nodes, its power board, its watchdog.
Nothing is switched or changed.""",
        examples="veery fence test test1",
        failure="no method would work",
        json=True,
    ),
    "fence confirm": Verb(
        run=_confirm,
        declare=_declare_confirm,
        about="""
Confirms that an absent node is off, or has lost its path to the storage for good, if nothing else can prove it. The
cluster may then start its domains on other nodes. If the confirmation is wrong, two nodes write to the same disks and
destroy them. veery refuses it while the node is present.""",
        examples="veery fence confirm test3\nveery fence confirm test3 --yes  # without a question",
    ),
    "fence lift": Verb(
        run=_lift,
        declare=_declare_name,
        about="""
Lifts the fence of a node, so that the targets accept it again. The node itself must answer and confirm that it has no
stale instance of a domain that may run elsewhere. A stale process would write again within seconds of the lift.""",
        examples="veery fence lift test3",
    ),
}
