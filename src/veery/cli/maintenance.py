"""Maintenance of nodes: node drain, node resume."""

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

LOOK_INTERVAL_S = 0.2  # between two queries of the progress
WAIT_S = 3600.0  # default of --wait
SILENCE_LIMIT_S = 60.0  # without an answer of the cluster for so long, give up a wait
PLAN_DEADLINE_S = 180.0


def node_path(node: str, what: str) -> str:
    """Return `/v1/nodes/NODE/WHAT` with NODE quoted."""
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
        session.note(f"{args.name} is being drained; veery cluster status shows the progress")
        return 0
    begun = time.monotonic()
    seen = drained(session, args.name, args.wait)
    if session.json:
        session.print_json({"node": args.name, "seconds": round(time.monotonic() - begun, 1), "moved": seen})
    else:
        print(f"{args.name} is empty: {len(seen)} domains moved in {time.monotonic() - begun:.1f} s")
    return 0


def _plan(session: Session, name: str) -> int:
    plan = session.client.post(node_path(name, "drain"), {"plan": True}, deadline=PLAN_DEADLINE_S)
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
    """Wait for the end of the drain of node `name`. Returns the domains that left. Raises Failed after `wait` seconds,
    Refused if the drain was cancelled."""
    left: list[str] = []
    before: list[str] = []
    for now in _followed(session, name, wait):
        if (now["intent"] or {}).get("kind") != "drain":
            raise Refused(f"the drain of {name} was cancelled", hint=f"veery why {name}")
        for domain in before:
            if domain not in now["domains"]:
                left.append(domain)
                session.note(f"{domain} has left {name}")
        before = now["domains"]
        if now["state"] == "maintenance":
            return left
    raise Failed(
        f"{name} is not empty after {wait:g} s", hint=f"the drain continues; veery why {name} shows what it waits for"
    )


def _followed(session: Session, name: str, wait: float) -> Any:
    """Yield the drain state of node `name` repeatedly for `wait` seconds. Note each stuck domain once."""
    ends = time.monotonic() + wait
    answered: float | None = None
    told = set()
    while time.monotonic() < ends:
        try:
            now = session.client.get(node_path(name, "drain"))
            answered = time.monotonic()
        except VeeryError as error:  # after the first answer: the cluster elects a leader, or our veeryd restarts
            if answered is None and isinstance(error, Refused):
                raise
            answered = time.monotonic() if answered is None else answered
            if time.monotonic() - answered > SILENCE_LIMIT_S:
                raise
            time.sleep(LOOK_INTERVAL_S)
            continue
        for domain, word in now["words"].items():
            if word["stuck"] and (domain, word["reason"]) not in told:
                told.add((domain, word["reason"]))
                session.note(f"veery: {domain}: {word['reason']}")
        yield now
        time.sleep(LOOK_INTERVAL_S)


# ---- resume
def _resume(session: Session, args: Namespace) -> int:
    session.client.post(node_path(args.name, "resume"), {"by": getpass.getuser(), "home": args.home})
    if args.home and not args.no_wait:
        came = resumed(session, args.name, args.wait)
        print(f"{args.name} is in service again; {len(came)} domains moved back")
    else:
        print(f"{args.name} is in service again")
    return 0


def resumed(session: Session, name: str, wait: float) -> list[str]:
    """Wait until the domains are back on node `name`. Returns those that came. Raises Failed after `wait` seconds."""
    came: list[str] = []
    for now in _followed(session, name, wait):
        coming = [domain for domain in now["coming"] if domain not in now["domains"]]
        came = list(dict.fromkeys([*came, *coming]))
        if now["intent"] is None:
            return came
    raise Failed(f"not all domains are back on {name} after {wait:g} s", hint=f"the moves continue; veery why {name}")


# ---- arguments
def positive(word: str) -> float:
    """Return the seconds that `word` of a command line stands for. Raises Usage."""
    try:
        value = float(word.removesuffix("s"))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise Usage(f"{word!r} is not a positive number of seconds")
    return value


def _declare_wait(parser: Parser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the order is accepted")
    parser.add_argument(
        "--wait", metavar="S", type=positive, default=WAIT_S, help=f"wait at most S seconds ({WAIT_S:g})"
    )


def _declare_drain(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name, as veery node list shows it")
    parser.add_argument("--plan", action="store_true", help="change nothing; print the moves, and the obstacles")
    parser.add_argument(
        "--force", action="store_true", help="drain even if the cluster could not survive the loss of another node"
    )
    _declare_wait(parser)


def _declare_resume(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name")
    parser.add_argument("--home", action="store_true", help="move the domains back that the drain moved away")
    _declare_wait(parser)


VERBS: dict[str, Verb] = {
    "node drain": Verb(
        run=_drain,
        declare=_declare_drain,
        about="""
Empties a node for maintenance. The cluster moves its domains away, as many at once as `ha.out` and `ha.into` in the
settings allow. The node gets no domains until `veery node resume`. The order is in the store, so the drain continues if
this command, the node or the leader is interrupted. veery refuses the drain, with every reason, if the other nodes
cannot take the domains or if it would break a group's rule.""",
        examples="veery node drain test1 --plan\nveery node drain test1",
        failure="with --plan: there is an obstacle",
        json=True,
    ),
    "node resume": Verb(
        run=_resume,
        declare=_declare_resume,
        about="""
Returns a drained node to service. With --home the domains that left in the drain move back. Without --home they stay
where they are. A node that is held back because it was fenced too often also returns to service.""",
        examples="veery node resume test1 --home",
    ),
}
