"""cluster roll: drain each node in turn, run a command for it, wait until it is healthy, and resume it."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from veery.cli.catalogue import Verb
from veery.cli.maintenance import WAIT_S, drained, node_path, positive, resumed
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Failed, Refused, VeeryError

LOOK_INTERVAL_S = 0.25  # between two queries
STEADY_COUNT = 4  # good answers in a row that prove the cluster healthy
TRANSIENT = ("arriving", "away", "silent", "returning", "admitting")  # states that end without an operator
IN_PLACE = ("present", "outdated")  # an outdated node waits for its turn in a roll that upgrades
VITAL = ("daemon", "store")  # with such a finding of the doctor, no other node may go down

Place = tuple[str, str]  # (node, what) of a finding


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
    """Return the nodes in order: as named, or all, with the node that the command talks to last. Raises Refused."""
    known = [row["node"]["name"] for row in session.client.get("/v1/nodes")]
    for name in names:
        if name not in known:
            raise Refused(f"no node {name!r}", hint=f"the nodes are {', '.join(sorted(known))}")
    own = session.client.get("/v1/host")["node"]["name"]
    return list(dict.fromkeys(names)) or sorted(known, key=lambda name: (name == own, name))


def _may_begin(session: Session) -> frozenset[Place]:
    """Return what the doctor finds bad before the roll begins; it is no reason to stop later. Raises Refused if a node
    is drained, fenced or quarantined, or if a finding forbids to take another node down."""
    for row in session.client.get("/v1/cluster")["nodes"]:
        if row["state"] not in (*TRANSIENT, *IN_PLACE):
            raise Refused(
                f"{row['name']} is {row['state']}", hint=f"veery why {row['name']}; then start the roll again"
            )
    bad = _bad(session)
    for (node, what), text in bad.items():
        if what in VITAL:
            raise Refused(
                f"{node}: {what}: {text}", hint="no other node may go down until this is repaired; veery doctor"
            )
        session.note(f"veery: {node}: {what}: {text} (already before the roll)")
    return frozenset(bad)


def _one(session: Session, name: str, args: Namespace, known: Collection[Place]) -> None:
    """Drain node `name`, run the command, wait until the cluster is healthy again, and resume the node."""
    _await_health(session, args.wait, known)
    with _hint_if_left_drained(session, name):
        session.client.post(node_path(name, "drain"), {"by": getpass.getuser(), "force": args.force})
        drained(session, name, args.wait)
        began = _began(session, name)
        _command(name, args)
        if args.reboot:
            _await_restart(session, name, began, args.wait)
        _await_health(session, args.wait, known, but=name)
        session.client.post(node_path(name, "resume"), {"by": getpass.getuser(), "home": True})
    resumed(session, name, args.wait)


@contextmanager
def _hint_if_left_drained(session: Session, name: str) -> Iterator[None]:
    """On an error, add a hint that the node is still drained."""

    def left() -> str:
        try:
            intent = session.client.get(node_path(name, "drain"))["intent"]
        except VeeryError:
            return f"{name} may still be drained: veery node show {name}"
        drain = (intent or {}).get("kind") == "drain"
        return f"{name} is still drained: veery node resume {name} --home" if drain else ""

    try:
        yield
    except VeeryError as error:
        error.hint = "; ".join(filter(None, (left(), error.hint)))
        raise
    except KeyboardInterrupt:
        session.note(left())
        raise


def _command(name: str, args: Namespace) -> None:
    """Run the command of the operator for node `name`. Raises Failed."""
    env = {key: value for key, value in os.environ.items() if key != "VEERY_NODE"}
    try:
        ended = subprocess.run(args.run, shell=True, check=False, timeout=args.wait, env={**env, "NODE": name})
    except subprocess.TimeoutExpired as error:
        raise Failed(f"the command did not end within {args.wait:g} s, and was killed") from error
    if ended.returncode:
        raise Failed(f"the command ended with exit status {ended.returncode}")


# ---- waiting
def _began(session: Session, name: str) -> float:
    """Return the start time (epoch) of the node's veeryd; 0 while it is absent."""
    for row in session.client.get("/v1/nodes"):
        if row["node"]["name"] == name and row["presence"]:
            return float(row["presence"]["started"])
    return 0.0


def _await_restart(session: Session, name: str, began: float, wait: float) -> None:
    """Wait until node `name` has another veeryd than the one that started at `began`. Raises Failed."""
    ends = time.monotonic() + wait
    while time.monotonic() < ends:
        try:
            if _began(session, name) not in (0.0, began):
                return
        except VeeryError:
            pass  # the cluster may lack its leader, or this is the node that we talk to
        time.sleep(LOOK_INTERVAL_S)
    raise Failed(f"its veeryd has not restarted within {wait:g} s", hint="did the command restart it?")


def _await_health(session: Session, wait: float, known: Collection[Place], *, but: str = "") -> None:
    """Wait until every node is present or outdated, node `but` is in maintenance, and the doctor finds nothing bad that
    is not `known`. So every voter is back before the next one goes down. Raises Failed."""
    ends, said, good = time.monotonic() + wait, "", 0
    while time.monotonic() < ends:
        what = _ailing(session, but)
        good = 0 if what else good + 1
        if good >= STEADY_COUNT:
            what = _found(session, known)
            if not what:
                return
            good = 0
        if what and what != said:
            session.note(f"waiting: {what}")
        said = what or said
        time.sleep(LOOK_INTERVAL_S)
    raise Failed(f"the cluster is not healthy after {wait:g} s: {said}")


def _ailing(session: Session, but: str) -> str:
    try:
        row = session.client.get("/v1/cluster")
    except VeeryError as error:
        return error.message
    if not row["quorum"]:
        return "the store has no quorum"
    wanted = {each["name"]: ("maintenance",) if each["name"] == but else IN_PLACE for each in row["nodes"]}
    return ", ".join(
        f"{each['name']} is {each['state']}" for each in row["nodes"] if each["state"] not in wanted[each["name"]]
    )


def _found(session: Session, known: Collection[Place]) -> str:
    try:
        bad = _bad(session)
    except VeeryError as error:
        return error.message
    return ", ".join(f"{node}: {what}: {text}" for (node, what), text in bad.items() if (node, what) not in known)


def _bad(session: Session) -> dict[Place, str]:
    """Return the bad findings of the doctor."""
    rows = session.client.get("/v1/doctor")
    return {(row["node"], row["what"]): row["told"] for row in rows if row["level"] == "bad"}


# ---- arguments
def _declare(parser: Parser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="*", help="the nodes, in this order (default: all nodes)")
    parser.add_argument("--run", metavar="CMD", required=True, help="shell command, with the node's name in $NODE")
    parser.add_argument(
        "--reboot", action="store_true", help="CMD reboots the node or restarts its veeryd: wait for the restart"
    )
    parser.add_argument("--force", action="store_true", help="as in veery node drain")
    parser.add_argument(
        "--wait", metavar="S", type=positive, default=WAIT_S, help=f"limit of each step in seconds ({WAIT_S:g})"
    )


VERBS: dict[str, Verb] = {
    "cluster roll": Verb(
        run=_roll,
        declare=_declare,
        about="""
Drains one node after the other, runs a command for it (an update, a reboot), waits until the cluster is healthy again,
and resumes the node with its domains. Healthy includes every voter and every storage path. At the first failure the
roll stops, leaves this node drained, and names the nodes that it did not begin.

The command runs on this machine, with the node's name in $NODE. With --reboot the command may end before the node goes
down. Without named nodes, the node that veery talks to comes last. To reboot that node too, use --node with another
one.""",
        examples="""
veery cluster roll --run 'ssh $NODE apt-get -y upgrade'
veery cluster roll --reboot --run 'ssh $NODE systemctl reboot' test1 test2""",
    ),
}
