"""Maintenance: node drain, node resume."""

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
from veery.errors import Failed, Refused, VeeryError

LOOK = 0.2  # seconds between two looks at how far it has come
WAIT = 3600.0
SILENT = 60.0  # seconds without an answer of the cluster's after which a wait is given up
PLAN = 180.0


def node_path(node: str, what: str) -> str:
    """`/v1/nodes/NODE/WHAT`, quoted."""
    return f"/v1/nodes/{quote(node, safe='')}/{what}"


# ---- drain
def _drain(session: Session, args: Namespace) -> int:
    if args.plan:
        return _plan(session, args.name)
    body = {"by": getpass.getuser(), "force": args.force}
    plan = session.client.post(node_path(args.name, "drain"), body)
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
    plan = session.client.post(node_path(name, "drain"), {"plan": True}, deadline=PLAN)
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
    heard: float | None = None
    told = set()
    while time.monotonic() < ends:
        try:
            now = session.client.get(node_path(name, "drain"))
            heard = time.monotonic()
        except VeeryError as error:  # later than the first time: a new leader is being found, our veeryd is restarted
            if heard is None and isinstance(error, Refused):
                raise
            heard = time.monotonic() if heard is None else heard
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
    session.client.post(node_path(args.name, "resume"), {"by": getpass.getuser(), "home": args.home})
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


# ---- arguments
def positive(word: str) -> float:
    """Seconds, as they stand on a command line. Raises Usage."""
    try:
        value = float(word.removesuffix("s"))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise Usage(f"seconds are wanted, not {word!r}")
    return value


def _declare_wait(parser: Parser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return when it has begun")
    parser.add_argument("--wait", metavar="S", type=positive, default=WAIT, help=f"wait at most so long ({WAIT:g})")


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
}
