"""Maintenance: node drain, node resume, cluster roll."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from argparse import Namespace
from typing import Any
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError

LOOK = 0.5  # seconds between two looks at how far it has come
WAIT = 3600.0
SILENT = 60.0  # seconds without an answer of the cluster's after which a wait is given up
PLAN = 180.0


def _path(node: str, what: str) -> str:
    return f"/v1/nodes/{quote(node, safe='')}/{what}"


# ---- drain
def _drain(session: Session, args: Namespace) -> int:
    if args.plan:
        return _plan(session, args.name)
    body = {"by": getpass.getuser(), "force": args.force}
    plan = session.client.post(_path(args.name, "drain"), body)
    for warning in (*plan["risks"], *plan["warnings"]):
        session.note(f"veery: {warning}")
    if args.no_wait:
        session.note(f"{args.name} is being drained: veery cluster status")
        return 0
    begun = time.monotonic()
    seen = drained(session, args.name, args.wait)
    if session.json:
        session.print_json({"node": args.name, "seconds": round(time.monotonic() - begun, 1), "moved": seen})
    else:
        print(f"{args.name} is empty: {len(seen)} domains moved in {time.monotonic() - begun:.1f} s")
    return 0


def _plan(session: Session, name: str) -> int:
    plan = session.client.post(_path(name, "drain"), {"plan": True}, deadline=PLAN)
    bad = bool(plan["blockers"] or plan["risks"])
    if session.json:
        session.print_json(plan)
        return 1 if bad else 0
    rows = [
        (move["domain"], move["target"], _ms(move["gap_ms"]), _ms(move["total_ms"]), move["why"] or "-")
        for move in plan["moves"]
    ]
    if rows:
        print(*tables.plain(("Domain", "To", "Pause", "Time", "Remark"), rows), sep="\n")
    if not plan["blockers"]:
        at_once = f", {plan['side_by_side']} at once" if plan["side_by_side"] > 1 else ""
        print(f"{len(rows)} domains, about {plan['total_ms'] / 1e3:.1f} s{at_once}")
    for kind in ("blockers", "risks", "warnings"):
        for line in plan[kind]:
            print(f"{kind.rstrip('s')}: {line}")
    return 1 if bad else 0


def _ms(value: float) -> str:
    return "-" if not value else f"{value:.0f} ms" if value < 1e4 else f"{value / 1e3:.0f} s"


def drained(session: Session, name: str, wait: float) -> list[str]:
    """Follow the drain of node `name` to its end; the domains that left. Raises Failed where it does not come to one,
    Refused where it was called off."""
    left: list[str] = []
    before: list[str] = []
    for now in _followed(session, name, wait):
        if (now["intent"] or {}).get("kind") != "drain":
            raise Refused(f"the drain of {name} was called off", hint=f"veery why {name}")
        for domain in before:
            if domain not in now["domains"]:
                left.append(domain)
                session.note(f"{domain} has left {name}")
        before = now["domains"]
        if now["state"] == "maintenance":
            return left
    raise Failed(f"{name} is not empty after {wait:g} s", hint=f"it goes on; veery why {name} tells what it waits for")


def _followed(session: Session, name: str, wait: float) -> Any:
    """How node `name` stands, again and again, and what is stuck there told once; until `wait` seconds have passed."""
    ends = time.monotonic() + wait
    heard, told = time.monotonic(), set()
    while time.monotonic() < ends:
        try:
            now = session.client.get(_path(name, "drain"))
            heard = time.monotonic()
        except (Failed, OutcomeUnknown):  # a new leader is being found
            if time.monotonic() - heard > SILENT:
                raise
            time.sleep(LOOK)
            continue
        for domain, word in now["words"].items():
            if word["stuck"] and (domain, word["reason"]) not in told:
                told.add((domain, word["reason"]))
                session.note(f"veery: {domain}: {word['reason']}")
        yield now
        time.sleep(LOOK)


# ---- resume
def _resume(session: Session, args: Namespace) -> int:
    session.client.post(_path(args.name, "resume"), {"by": getpass.getuser(), "home": args.home})
    if args.home and not args.no_wait:
        came = resumed(session, args.name, args.wait)
        print(f"{args.name} is in use again; {len(came)} domains came home")
    else:
        print(f"{args.name} is in use again")
    return 0


def resumed(session: Session, name: str, wait: float) -> list[str]:
    """Follow the domains home to node `name`; those that came. Raises Failed where they do not."""
    came: list[str] = []
    for now in _followed(session, name, wait):
        coming = [domain for domain in now["coming"] if domain not in now["domains"]]
        came = list(dict.fromkeys([*came, *coming]))
        if now["intent"] is None:
            return came
    raise Failed(f"not all of {name}'s domains are home after {wait:g} s", hint=f"it goes on; veery why {name}")


# ---- roll
def _roll(session: Session, args: Namespace) -> int:
    nodes = args.nodes or [row["node"]["name"] for row in session.client.get("/v1/nodes")]
    known = {row["node"]["name"] for row in session.client.get("/v1/nodes")}
    if strange := [name for name in nodes if name not in known]:
        raise Refused(f"no node {strange[0]!r}", hint=f"the nodes are {', '.join(sorted(known))}")
    for number, name in enumerate(nodes, 1):
        session.note(f"{name} ({number} of {len(nodes)})")
        try:
            _one(session, name, args)
        except VeeryError as error:
            rest = ", ".join(nodes[number:]) or "none"
            hint = f"{error.hint}; " if error.hint else ""
            raise Failed(
                f"{name}: {error.message}", hint=f"{hint}not begun: {rest}; look at veery cluster status"
            ) from error
    print(f"{len(nodes)} nodes done")
    return 0


def _one(session: Session, name: str, args: Namespace) -> None:
    """Drain, run, wait until it is well again, resume."""
    _well(session, args.wait, but="")
    session.client.post(_path(name, "drain"), {"by": getpass.getuser(), "force": args.force})
    drained(session, name, args.wait)
    ended = subprocess.run(
        args.run, shell=True, check=False, timeout=args.wait, env={**os.environ, "NODE": name, "VEERY_NODE": ""}
    )
    if ended.returncode:
        raise Failed(
            f"the command ended with {ended.returncode}", hint=f"{name} is still drained: veery node resume {name}"
        )
    _well(session, args.wait, but=name)
    session.client.post(_path(name, "resume"), {"by": getpass.getuser(), "home": True})
    resumed(session, name, args.wait)


def _well(session: Session, wait: float, *, but: str) -> None:
    """Return once every node is well, and node `but` is back in maintenance. Raises Failed."""
    ends, what = time.monotonic() + wait, "the cluster does not answer"
    good = 0
    while time.monotonic() < ends:
        try:
            row = session.client.get("/v1/cluster")
            ill = [
                f"{each['name']} is {each['state']}"
                for each in row["nodes"]
                if each["state"] != ("maintenance" if each["name"] == but else "present")
            ]
            what = "no quorum" if not row["quorum"] else ", ".join(ill)
        except VeeryError as error:
            what = error.message
        good = 0 if what else good + 1
        if good > 3:
            return
        time.sleep(LOOK)
    raise Failed(f"not well after {wait:g} s: {what}", hint="veery cluster status")


# ---- arguments
def _positive(word: str) -> float:
    try:
        value = float(word.removesuffix("s"))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise Usage(f"seconds are wanted, not {word!r}")
    return value


def _declare_wait(parser: Parser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return when it has begun")
    parser.add_argument("--wait", metavar="S", type=_positive, default=WAIT, help=f"wait at most so long ({WAIT:g})")


def _declare_drain(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="its name, as veery node list shows it")
    parser.add_argument(
        "--plan", action="store_true", help="only say what it would come to, and what stands against it"
    )
    parser.add_argument(
        "--force", action="store_true", help="also where the loss of one more node could not be carried"
    )
    _declare_wait(parser)


def _declare_resume(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="its name")
    parser.add_argument("--home", action="store_true", help="bring home what had to leave it")
    _declare_wait(parser)


def _declare_roll(parser: Parser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="these nodes, in this order; all if left away")
    parser.add_argument("--run", metavar="CMD", required=True, help="a shell command, with the node's name in $NODE")
    parser.add_argument("--force", action="store_true", help="as for veery node drain")
    parser.add_argument(
        "--wait", metavar="S", type=_positive, default=WAIT, help=f"wait at most so long for each step ({WAIT:g})"
    )


VERBS: dict[str, Verb] = {
    "node drain": Verb(
        run=_drain,
        declare=_declare_drain,
        about="""
Empties a node for maintenance: its domains are moved away, as many at once as `ha.out` and `ha.into` in the settings
allow, and none comes in until `veery node resume`. The order stands in the store: it goes on when this command, the
node or the leader is interrupted. It is refused, with every reason, where the rest cannot carry the domains or a rule
would be broken.""",
        examples="veery node drain test1 --plan\nveery node drain test1",
        failure="with --plan: something stands against it",
        json=True,
    ),
    "node resume": Verb(
        run=_resume,
        declare=_declare_resume,
        about="""
Puts a drained node to use again. With --home the domains that had to leave it come back; without, they stay where they
are for good. A node that is held back because it was fenced too often is taken as well again.""",
        examples="veery node resume test1 --home",
    ),
    "cluster roll": Verb(
        run=_roll,
        declare=_declare_roll,
        about="""
Drains one node after the other, runs a command for it (an update, a reboot), waits until it is well again, and resumes
it, domains and all. It stops at the first trouble, and says which nodes were not begun. The command runs here, with
the node's name in $NODE; it is to end when the node may be waited for.""",
        examples="veery cluster roll --run 'ssh $NODE apt-get -y upgrade'",
    ),
}
