"""cluster roll: node after node is drained, worked on, waited for, and put to use again."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from veery.cli.catalogue import Verb
from veery.cli.maintenance import WAIT, drained, node_path, positive, resumed
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Failed, Refused, VeeryError

LOOK = 0.25  # seconds between two looks
STEADY = 4  # good looks one after the other, before all counts as well
PASSING = ("present", "arriving", "away", "silent", "returning", "admitting")  # what becomes well by itself
NEEDED = ("daemon", "store")  # findings of the doctor's with which no node can be spared

Place = tuple[str, str]  # (node, what), of a finding


def _roll(session: Session, args: Namespace) -> int:
    nodes = _chosen(session, args.nodes)
    known = _may_begin(session)
    for number, name in enumerate(nodes, 1):
        session.note(f"{name} ({number} of {len(nodes)})")
        try:
            _one(session, name, args, known)
        except VeeryError as error:
            rest = ", ".join(nodes[number:])
            hint = [error.hint, f"not begun: {rest}" if rest else "", "veery cluster status"]
            raise Failed(f"{name}: {error.message}", hint="; ".join(filter(None, hint))) from error
    print(f"{len(nodes)} nodes done")
    return 0


def _chosen(session: Session, names: Sequence[str]) -> list[str]:
    """The nodes in their order: as they were named, or all, the one that we speak through last. Raises Refused."""
    known = [row["node"]["name"] for row in session.client.get("/v1/nodes")]
    for name in names:
        if name not in known:
            raise Refused(f"no node {name!r}", hint=f"the nodes are {', '.join(sorted(known))}")
    own = session.client.get("/v1/host")["node"]["name"]
    return list(dict.fromkeys(names)) or sorted(known, key=lambda name: (name == own, name))


def _may_begin(session: Session) -> frozenset[Place]:
    """What the doctor finds bad before anything was done: it is no reason to stop later. Raises Refused where a node
    is held back on purpose, or none can be spared."""
    for row in session.client.get("/v1/cluster")["nodes"]:
        if row["state"] not in PASSING:
            raise Refused(f"{row['name']} is {row['state']}", hint=f"veery why {row['name']}; then again")
    bad = _bad(session)
    for (node, what), told in bad.items():
        if what in NEEDED:
            raise Refused(f"{node}: {what}: {told}", hint="no other node can be spared meanwhile; veery doctor")
        session.note(f"veery: {node}: {what}: {told} (already before)")
    return frozenset(bad)


def _one(session: Session, name: str, args: Namespace, known: Collection[Place]) -> None:
    """Drain, run, wait until all is well again, resume."""
    _well(session, args.wait, known)
    with _told_what_is_left(session, name):
        session.client.post(node_path(name, "drain"), {"by": getpass.getuser(), "force": args.force})
        drained(session, name, args.wait)
        began = _began(session, name)
        _command(name, args)
        if args.reboot:
            _anew(session, name, began, args.wait)
        _well(session, args.wait, known, but=name)
        session.client.post(node_path(name, "resume"), {"by": getpass.getuser(), "home": True})
    resumed(session, name, args.wait)


@contextmanager
def _told_what_is_left(session: Session, name: str) -> Iterator[None]:
    """Where it goes wrong the node stays drained: say so."""

    def left() -> str:
        try:
            intent = session.client.get(node_path(name, "drain"))["intent"]
        except VeeryError:
            return f"{name} may still be drained: veery node show {name}"
        drain = (intent or {}).get("kind") == "drain"
        return f"{name} is left drained: veery node resume {name} --home" if drain else ""

    try:
        yield
    except VeeryError as error:
        error.hint = "; ".join(filter(None, (left(), error.hint)))
        raise
    except KeyboardInterrupt:
        session.note(left())
        raise


def _command(name: str, args: Namespace) -> None:
    """Run what is to be done for node `name`. Raises Failed."""
    env = {key: value for key, value in os.environ.items() if key != "VEERY_NODE"}
    try:
        ended = subprocess.run(args.run, shell=True, check=False, timeout=args.wait, env={**env, "NODE": name})
    except subprocess.TimeoutExpired as error:
        raise Failed(f"the command has not ended after {args.wait:g} s, and was killed") from error
    if ended.returncode:
        raise Failed(f"the command ended with {ended.returncode}")


# ---- waiting
def _began(session: Session, name: str) -> float:
    """When its daemon began, 0 while it is absent; epoch."""
    for row in session.client.get("/v1/nodes"):
        if row["node"]["name"] == name and row["presence"]:
            return float(row["presence"]["started"])
    return 0.0


def _anew(session: Session, name: str, began: float, wait: float) -> None:
    """Return once the daemon of node `name` is another than the one that began at `began`. Raises Failed."""
    ends = time.monotonic() + wait
    while time.monotonic() < ends:
        try:
            if _began(session, name) not in (0.0, began):
                return
        except VeeryError:
            pass  # the cluster may be without it, or be ours
        time.sleep(LOOK)
    raise Failed(f"it has not come back anew after {wait:g} s", hint="did the command restart it?")


def _well(session: Session, wait: float, known: Collection[Place], *, but: str = "") -> None:
    """Return once every node is well, with node `but` in maintenance, and the doctor finds nothing bad that is not
    `known`: above all, every voter is back before the next one goes. Raises Failed."""
    ends, said, good = time.monotonic() + wait, "", 0
    while time.monotonic() < ends:
        what = _ailing(session, but)
        good = 0 if what else good + 1
        if good >= STEADY:
            what = _found(session, known)
            if not what:
                return
            good = 0
        if what and what != said:
            session.note(f"waits: {what}")
        said = what or said
        time.sleep(LOOK)
    raise Failed(f"not well after {wait:g} s: {said}")


def _ailing(session: Session, but: str) -> str:
    try:
        row = session.client.get("/v1/cluster")
    except VeeryError as error:
        return error.message
    if not row["quorum"]:
        return "the store has no quorum"
    wanted = {each["name"]: "maintenance" if each["name"] == but else "present" for each in row["nodes"]}
    return ", ".join(
        f"{each['name']} is {each['state']}" for each in row["nodes"] if each["state"] != wanted[each["name"]]
    )


def _found(session: Session, known: Collection[Place]) -> str:
    try:
        bad = _bad(session)
    except VeeryError as error:
        return error.message
    return ", ".join(f"{node}: {what}: {told}" for (node, what), told in bad.items() if (node, what) not in known)


def _bad(session: Session) -> dict[Place, str]:
    """What the doctor finds bad."""
    rows = session.client.get("/v1/doctor")
    return {(row["node"], row["what"]): row["told"] for row in rows if row["level"] == "bad"}


# ---- arguments
def _declare(parser: Parser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="these nodes, in this order; all if left away")
    parser.add_argument("--run", metavar="CMD", required=True, help="a shell command, with the node's name in $NODE")
    parser.add_argument(
        "--reboot", action="store_true", help="CMD reboots the node, or restarts its veeryd: wait until it is back anew"
    )
    parser.add_argument("--force", action="store_true", help="as for veery node drain")
    parser.add_argument(
        "--wait", metavar="S", type=positive, default=WAIT, help=f"wait at most so long for each step ({WAIT:g})"
    )


VERBS: dict[str, Verb] = {
    "cluster roll": Verb(
        run=_roll,
        declare=_declare,
        about="""
Drains one node after the other, runs a command for it (an update, a reboot), waits until all is well again, every
voter and storage path included, and resumes it, domains and all. It stops at the first trouble with that node left
drained, and says which were not begun. The command runs here, with the node's name in $NODE. With --reboot it may end
before the node goes down. Of all nodes the one that this command speaks through comes last; to reboot that one, speak
through another.""",
        examples="""
veery cluster roll --run 'ssh $NODE apt-get -y upgrade'
veery cluster roll --reboot --run 'ssh $NODE systemctl reboot' test1 test2""",
    ),
}
