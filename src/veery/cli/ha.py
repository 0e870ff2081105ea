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


# ---- policies
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
    """Return whether the cluster should keep a domain running, as text."""
    if policy["wanted"]:
        return "yes"
    return "no: a user asked it to shut down" if policy.get("stopping") else "no: a user stopped it"


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
        "delay": f"{policy['delay']:g} s before domains of lower priority start",
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
    quorum = "yes" if row["quorum"] else "no: domains keep running, but the cluster decides and changes nothing"
    quorum = (
        "the store is not trusted: domains keep running, but the cluster decides nothing"
        if row.get("restored")
        else quorum
    )
    print(f"quorum : {quorum}\nleader : {row['leader'] or '-'}\narmed  : {row['disarmed'] or 'yes'}")
    cells = [
        (each["name"], each["state"], str(len(each["domains"])), each["intent"] or "-", each["reason"] or "-")
        for each in row["nodes"]
    ]
    print(*tables.plain(("Node", "State", "Domains", "Intent", "Reason"), cells), sep="\n")
    if row.get("restored"):
        raise Failed(row["restored"], hint="veery cluster adopt --plan shows what runs where; docs/recovery.md")
    if not row["quorum"]:
        raise Failed(
            "the store has no quorum", hint="a majority of the voters must run and reach each other: veery node list"
        )
    return 0


def _disarm(session: Session, args: Namespace) -> int:
    session.client.post("/v1/disarm", {"by": getpass.getuser(), "reason": " ".join(args.reason)})
    print("disarmed: the cluster fences, restarts and moves nothing until veery arm")
    return 0


def _arm(session: Session, args: Namespace) -> int:
    session.client.post("/v1/arm")
    print("armed")
    return 0


# ---- arguments
def _declare_nothing(parser: Parser) -> None:
    pass


def _integer(word: str) -> int:
    if not word.isdigit():
        raise Usage(f"{word!r} is not a whole number", "ha set")
    return int(word)


def _seconds(word: str) -> float:
    try:
        value = float(word.removesuffix("s"))
    except ValueError:
        value = -1.0
    if value < 0:
        raise Usage(f"{word!r} is not a number of seconds", "ha set")
    return value


def _declare_set(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="its name")
    parser.add_argument("policy", metavar="POLICY", choices=POLICIES, help=f"one of {', '.join(POLICIES)}")
    parser.add_argument("--priority", metavar="N", type=_integer, help="domains of higher priority start first (0)")
    parser.add_argument("--group", metavar="G", help="group of the domain ('': no group); see veery group set")
    parser.add_argument(
        "--max-restarts", metavar="N", type=_integer, help="starts in a row before the cluster gives up (5)"
    )
    parser.add_argument(
        "--delay", metavar="S", type=_seconds, help="seconds that domains of lower priority wait after its start (0)"
    )


def _declare_domain(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="its name")


def _declare_why(parser: Parser) -> None:
    parser.add_argument("name", metavar="DOMAIN|NODE", help="the name of a domain or of a node")


def _declare_events(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new events, until Ctrl-C")
    parser.add_argument("-n", "--count", metavar="N", type=_integer, default=50, help="number of past events (50)")


def _declare_disarm(parser: Parser) -> None:
    parser.add_argument("reason", metavar="REASON", nargs="*", help="the reason, for other operators to read")


VERBS: dict[str, Verb] = {
    "ha set": Verb(
        run=_set,
        declare=_declare_set,
        about="""
Sets what the cluster does for a domain automatically. The policies are:

  restart       move the domain away from sick nodes, and restart it if it or
                its node has died
  migrate-only  move the domain away from sick nodes, and never restart it
  off           do nothing

Options that are not given keep their values. The command resets the count of restarts. The cluster restarts a domain
whose disks are files of one node on that node only.""",
        examples="veery ha set web restart --priority 10 --delay 5\nveery ha set batch off",
        json=True,
    ),
    "ha list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="Lists the policies of domains, their nodes, and how often in a row the cluster has restarted them.",
        examples="veery ha list",
        json=True,
    ),
    "ha show": Verb(
        run=_show,
        declare=_declare_domain,
        about="Prints the policy of one domain and its current state.",
        examples="veery ha show web",
        json=True,
    ),
    "why": Verb(
        run=_why,
        declare=_declare_why,
        about="""
Explains why the cluster acts or does not act on a domain or a node. These are the reasons of its decisions, which the
log has too.""",
        examples="veery why web\nveery why test1",
        json=True,
    ),
    "events": Verb(
        run=_events,
        declare=_declare_events,
        about="Prints what the cluster found and did automatically, oldest first. With --json, one object per line.",
        examples="veery events\nveery events -f --json",
        json=True,
    ),
    "cluster status": Verb(
        run=_status,
        declare=_declare_nothing,
        about="""
Prints whether the store has a quorum, which node is the leader, whether the cluster is armed, and the state of each
node. Without a quorum it answers within seconds too, with exit status 1.""",
        examples="veery cluster status",
        failure="the store has no quorum",
        json=True,
    ),
    "disarm": Verb(
        run=_disarm,
        declare=_declare_disarm,
        about="""
Turns all automatic actions of the cluster off until `veery arm`, for work on the network or the storage. Domains keep
running, and the cluster carries out the orders of users. A node that has lost the cluster still stops its domains.""",
        examples="veery disarm the switch is replaced",
    ),
    "arm": Verb(
        run=_arm,
        declare=_declare_nothing,
        about="Turns automatic actions of the cluster on again. The cluster then acts on the state that it finds.",
        examples="veery arm",
    ),
}
