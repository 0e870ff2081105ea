"""doctor: check everything that a cluster needs."""

from __future__ import annotations

from argparse import Namespace

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage


def _doctor(session: Session, args: Namespace) -> int:
    if args.all and args.name:
        raise Usage("give a NODE or --all", "doctor")
    name = "" if args.all else args.name or session.client.get("/v1/host")["node"]["name"]
    rows = session.client.get("/v1/doctor", node=name)
    bad = any(row["level"] == "bad" for row in rows)
    if session.json:
        session.print_json(rows)
        return int(bad)
    shown = [row for row in rows if row["level"] != "ok" or not args.quiet]
    cells = [(row["node"], row["level"], row["what"], row["told"], row["advice"] or "-") for row in shown]
    if cells:
        print(*tables.plain(("Node", "State", "What", "Found", "What to do"), cells), sep="\n")
    return int(bad)


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="the node (default: the node that veery talks to)"
    )
    parser.add_argument(
        "-a", "--all", action="store_true", help="check every node, and what must be equal on all nodes"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is not ok")


VERBS: dict[str, Verb] = {
    "doctor": Verb(
        run=_doctor,
        declare=_declare,
        about="""
Checks everything that a node needs: its clock, ports and certificates, free disk space, its paths to the storage, its
watchdog, its fence methods, its etcd member, and leftovers. With --all it checks every node, and what must be equal on
all nodes: versions and bridges. Each line is ok, warn or bad, and says what to do. The command changes nothing.""",
        examples="veery doctor\nveery doctor --all -q  # only what is not ok",
        failure="something is bad",
        json=True,
    ),
}
