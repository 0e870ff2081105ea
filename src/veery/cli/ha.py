"""High availability: ha set, ha list, ha show, why, events, disarm, arm, cluster status."""

from __future__ import annotations

import getpass
import time
from argparse import Namespace
from typing import Any
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage
from veery.errors import Failed

POLICIES = ("restart", "migrate-only", "off")


# ---- what is asked for
def _set(session: Session, args: Namespace) -> int:
    wanted = {
        "policy": args.policy,
        "priority": args.priority,
        "group": args.group,
        "max_restarts": args.max_restarts,
        "delay": args.delay,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    record = session.client.post(f"/v1/ha/{quote(args.domain, safe='')}", body)
    if session.json:
        session.print_json(record)
    return 0


def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/ha")
    if session.json:
        session.print_json(rows)
        return 0
    cells = []
    for row in rows:
        policy = row["policy"]
        wanted = "yes" if policy["wanted"] else "no"
        tries = f"{row['tries']}/{policy['max_restarts']}"
        cells.append(
            (
                *(row["domain"], policy["policy"], str(policy["priority"]), policy["group"] or "-"),
                *(wanted, row["node"] or "-", tries, row["home"] or "-", row.get("now") or "-"),
            )
        )
    print(
        *tables.plain(("Domain", "Policy", "Priority", "Group", "Wanted", "Node", "Restarts", "Home", "Now"), cells),
        sep="\n",
    )
    return 0


def _wanted(policy: dict[str, Any]) -> str:
    """Whether a domain is to run, in words."""
    if policy["wanted"]:
        return "yes"
    return "no: it was asked to shut down" if policy.get("stopping") else "no: it was ended on purpose"


def _show(session: Session, args: Namespace) -> int:
    row = session.client.get(f"/v1/ha/{quote(args.domain, safe='')}")
    if session.json:
        session.print_json(row)
        return 0
    policy = row["policy"]
    pairs = {
        "domain": row["domain"],
        "policy": policy["policy"],
        "priority": str(policy["priority"]),
        "group": policy["group"] or "-",
        "delay": f"{policy['delay']:g} s before those of lower priority start",
        "wanted": _wanted(policy),
        "node": row["node"] or "-",
        "home": row["home"] or "-",
        "restarts": f"{row['tries']} of {policy['max_restarts']} in a row",
        "error": row["error"] or "-",
        "now": row.get("now") or "-",
    }
    print(*(f"{name:<9}: {value}" for name, value in pairs.items()), sep="\n")
    return 0


# ---- why, events
def _why(session: Session, args: Namespace) -> int:
    lines = session.client.get(f"/v1/why/{quote(args.name, safe='')}")["lines"]
    if session.json:
        session.print_json(lines)
    else:
        print(*lines, sep="\n")
    return 0


def _events(session: Session, args: Namespace) -> int:
    found = session.client.get("/v1/events", count=str(args.count))
    for event in found:
        _tell(session, event)
    if args.follow:
        for line in session.client.stream("/v1/events/follow"):
            if line["event"] == "event":
                _tell(session, line["value"])
    return 0


def _tell(session: Session, event: dict[str, Any]) -> None:
    if session.json:
        import json

        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
    print(f"{when}  {event['level']:<7}  {event['subject']}  {event['what']}: {event['text']}", flush=True)


# ---- the cluster
def _status(session: Session, args: Namespace) -> int:
    row = session.client.get("/v1/cluster")
    if session.json:
        session.print_json(row)
        return 0 if row["quorum"] else 1
    quorum = "yes" if row["quorum"] else "no: domains run on, nothing is decided or changed"
    quorum = "the store is not trusted: domains run on, nothing is decided" if row.get("restored") else quorum
    print(f"quorum : {quorum}\nleader : {row['leader'] or '-'}\narmed  : {row['disarmed'] or 'yes'}")
    cells = [
        (each["name"], each["state"], str(len(each["domains"])), each["intent"] or "-", each["reason"] or "-")
        for each in row["nodes"]
    ]
    print(*tables.plain(("Node", "State", "Domains", "Intent", "Reason"), cells), sep="\n")
    if row.get("restored"):
        raise Failed(row["restored"], hint="veery cluster adopt --plan shows what runs where; docs/recovery.md")
    if not row["quorum"]:
        raise Failed("the store has no quorum", hint="most voters must be up and reach each other: veery node list")
    return 0


def _disarm(session: Session, args: Namespace) -> int:
    session.client.post("/v1/disarm", {"by": getpass.getuser(), "reason": " ".join(args.reason)})
    print("disarmed: nothing is fenced, restarted or moved by the cluster until veery arm")
    return 0


def _arm(session: Session, args: Namespace) -> int:
    session.client.post("/v1/arm")
    print("armed")
    return 0


# ---- arguments
def _declare_nothing(parser: Parser) -> None:
    pass


def _whole(word: str) -> int:
    if not word.isdigit():
        raise Usage(f"a whole number is wanted, not {word!r}", "ha set")
    return int(word)


def _seconds(word: str) -> float:
    try:
        value = float(word.removesuffix("s"))
    except ValueError:
        value = -1.0
    if value < 0:
        raise Usage(f"seconds are wanted, not {word!r}", "ha set")
    return value


def _declare_set(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="its name")
    parser.add_argument("policy", metavar="POLICY", choices=POLICIES, help=f"one of {', '.join(POLICIES)}")
    parser.add_argument("--priority", metavar="N", type=_whole, help="of two that wait the higher starts first (0)")
    parser.add_argument("--group", metavar="G", help="its group ('': none): see veery group set")
    parser.add_argument("--max-restarts", metavar="N", type=_whole, help="tries in a row before it is given up (5)")
    parser.add_argument(
        "--delay", metavar="S", type=_seconds, help="seconds that those of lower priority wait after its start (0)"
    )


def _declare_domain(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="its name")


def _declare_why(parser: Parser) -> None:
    parser.add_argument("name", metavar="DOMAIN|NODE", help="the name of a domain or of a node")


def _declare_events(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on as they happen, until ^C")
    parser.add_argument("-n", "--count", metavar="N", type=_whole, default=50, help="so many of the last (50)")


def _declare_disarm(parser: Parser) -> None:
    parser.add_argument("reason", metavar="REASON", nargs="*", help="why, for the others to read")


VERBS: dict[str, Verb] = {
    "ha set": Verb(
        run=_set,
        declare=_declare_set,
        about="""
Says what the cluster does for a domain by itself. restart: it is moved away from sick nodes, and started again when it
or its node has died. migrate-only: it is moved away from sick nodes, and never started again. off: it is left alone.
What is not named stays as it was. Earlier tries to start it are forgotten. A domain whose disks are files of one node
is started again on that node only.""",
        examples="veery ha set web restart --priority 10 --delay 5\nveery ha set batch off",
        json=True,
    ),
    "ha list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="Lists what is asked for domains, where they are, and how often in a row they had to be started.",
        examples="veery ha list",
        json=True,
    ),
    "ha show": Verb(
        run=_show,
        declare=_declare_domain,
        about="Prints what is asked for one domain, and what came of it.",
        examples="veery ha show web",
        json=True,
    ),
    "why": Verb(
        run=_why,
        declare=_declare_why,
        about="""
Says why the cluster does, or does not, act on a domain or a node: the same reasons that its decisions are made for, and
that stand in the log.""",
        examples="veery why web\nveery why test1",
        json=True,
    ),
    "events": Verb(
        run=_events,
        declare=_declare_events,
        about="Prints what the cluster did and found by itself, oldest first. With --json, one object a line.",
        examples="veery events\nveery events -f --json",
        json=True,
    ),
    "cluster status": Verb(
        run=_status,
        declare=_declare_nothing,
        about="""
Prints whether the store has a quorum, which node leads, whether the cluster is armed, and the state of each node. It
answers within seconds also without a quorum; its exit status is 1 then.""",
        examples="veery cluster status",
        failure="the store has no quorum",
        json=True,
    ),
    "disarm": Verb(
        run=_disarm,
        declare=_declare_disarm,
        about="""
Has the cluster do nothing by itself until `veery arm`: for work on the network or the storage. Domains run on, orders
of users are carried out, a node that has lost the cluster still stops its domains by itself.""",
        examples="veery disarm the switch is replaced",
    ),
    "arm": Verb(
        run=_arm,
        declare=_declare_nothing,
        about="Lets the cluster act by itself again, on what it then finds.",
        examples="veery arm",
    ),
}
