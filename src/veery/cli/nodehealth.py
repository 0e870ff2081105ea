"""Health of nodes: node health, node well."""

from __future__ import annotations

import getpass
import time
from argparse import Namespace
from typing import Any

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.maintenance import node_path
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Failed, Refused
from veery.model.units import format_seconds

MOVE_TITLES = ("When", "Domain", "From", "To", "Gap", "Time", "Result", "Paused", "Took", "Why")
NO_SIGNS = "no sensor reports a problem"


def _health(session: Session, args: Namespace) -> int:
    if args.record:
        return _moves(session, args.name)
    if not args.name:
        return _all(session)
    found = _one(session, args.name)
    if session.json:
        session.print_json(found)
        return 0
    record = found["record"]
    print(f"{found['node']}: {record['verdict']}, since {_ago(record['since'])}")
    if args.history:
        for change in found["history"]:
            print(f"{_when(change['at'])}  {change['verdict']:<10}  {change['text']}")
        return 0
    if record["signs"]:
        cells = [_sign(each) for each in record["signs"]]
        print(*tables.plain(("Sensor", "Part", "Level", "Value", "Asks for", "Since", "Meaning"), cells), sep="\n")
    if found["sensors"]:
        print(
            *tables.plain(("Sensor", "Level", "Read", "Every"), [_sensor(each) for each in found["sensors"]]), sep="\n"
        )
    return 0


def _all(session: Session) -> int:
    records = session.client.get("/v1/verdicts")
    if session.json:
        session.print_json(records)
        return 0
    cells = []
    for node in session.client.get("/v1/nodes"):
        name = node["node"]["name"]
        record = records.get(name)
        if record is None:
            cells.append((name, "unknown", "-", "its veeryd has not reported yet"))
        else:
            cells.append((name, record["verdict"], _ago(record["since"]), _gravest(record)))
    print(*tables.plain(("Name", "Verdict", "Since", "Why"), cells), sep="\n")
    return 0


def _moves(session: Session, name: str) -> int:
    """Print the moves that the verdict on node `name`, or on any node, caused."""
    moves = [each for each in session.client.get("/v1/verdicts/moves") if name in ("", each["source"])]
    if session.json:
        session.print_json(moves)
        return 0
    if not moves:
        print("no verdict has caused a move")
        return 0
    print(*tables.plain(MOVE_TITLES, [_move(each) for each in moves]), sep="\n")
    return 0


def _move(move: dict[str, Any]) -> tuple[str, ...]:
    promised, outcome = move["promised"], move["outcome"]
    forecast = _milliseconds(promised["gap_ms"]), _milliseconds(promised["total_ms"])
    truth = outcome["result"], _milliseconds(outcome["paused_ms"]), _milliseconds(outcome["total_ms"])
    said = [move["reason"]]
    said += [f"no forecast: {promised['why']}"] if promised["why"] else []
    said += [outcome["error"]] if outcome["error"] else []
    return _when(move["at"]), move["domain"], move["source"], move["target"], *forecast, *truth, "; ".join(said)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _one(session: Session, name: str) -> dict[str, Any]:
    """Return the health of a node from its veeryd, or from the store if veeryd does not answer. Raises Refused."""
    try:
        found: dict[str, Any] = session.client.get(node_path(name, "health"))
        return found
    except (Refused, Failed) as error:
        record = session.client.get("/v1/verdicts").get(name)
        if record is None:
            raise
        session.note(f"veery: {error.message}; this is its last report")
        return {"node": name, "record": record, "sensors": [], "history": [], "modes": {}}


def _gravest(record: dict[str, Any]) -> str:
    if not record["signs"]:
        return NO_SIGNS
    sign = record["signs"][0]
    would = "" if sign["asks"] == sign["would"] else f" (reported only; otherwise {sign['would']})"
    return f"{sign['sensor']} {sign['part']}: {sign['sentence']}{would}"


def _sign(sign: dict[str, Any]) -> tuple[str, ...]:
    read = (sign["sensor"], sign["part"], sign["level"], sign["value"] or "-")
    return *read, _asks(sign), _ago(sign["since"]), sign["sentence"]


def _asks(sign: dict[str, Any]) -> str:
    if sign["asks"] == sign["would"]:
        return "-" if sign["asks"] == "well" else str(sign["asks"])
    return f"({sign['would']})"


def _sensor(state: dict[str, Any]) -> tuple[str, str, str, str]:
    age = "never" if state["age_s"] is None else f"{format_seconds(state['age_s'])} ago"
    return state["sensor"], state["level"], f"{age}, late" if state["late"] else age, format_seconds(state["pace_s"])


def _ago(epoch: float) -> str:
    return f"{format_seconds(max(time.time() - epoch, 0.0))} ago" if epoch else "-"


def _when(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def _well(session: Session, args: Namespace) -> int:
    record = session.client.post(node_path(args.name, "well"), {"sensor": args.sensor, "by": getpass.getuser()})
    if session.json:
        session.print_json(record)
    elif record["verdict"] == "well":
        print(f"{args.name} is well")
    else:
        print(f"{args.name}: {record['verdict']}: {_gravest(record)}")
    return 0


def _declare_health(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", nargs="?", default="", help="the node's name (default: all nodes)")
    parser.add_argument("--history", action="store_true", help="print the changes of its verdict, the newest last")
    parser.add_argument(
        "--record",
        action="store_true",
        help="print the moves that a verdict caused, the newest last: the forecast (gap, time) and the result",
    )


def _declare_well(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name")
    parser.add_argument("sensor", metavar="SENSOR", nargs="?", default="", help="only this sensor, such as smart")


VERBS: dict[str, Verb] = {
    "node health": Verb(
        run=_health,
        declare=_declare_health,
        about="""
Prints the health of the nodes by their sensors. The verdict on a node is well, quarantine (the node keeps its domains,
and the cluster gives it no others) or evacuate (the cluster moves its domains away). With NODE it prints each sign that
is not ok, the action that the sign asks for, and when each sensor was read. An action in brackets is one that the mode
of the sensor in veery.toml does not allow.

--record prints the last 200 moves that a verdict caused, or those out of NODE. Gap and time are the forecast before the
move: the gap that a client sees, and the time from the order to the end. Paused and took are what came true: how long
the domain was paused (a client may see more), and how long the move took.""",
        examples="veery node health\nveery node health test1\nveery node health test1 --history\n"
        "veery node health --record",
        json=True,
    ),
    "node well": Verb(
        run=_well,
        declare=_declare_well,
        about="""
Declares a node healthy, or the present reading of one of its sensors harmless. The present findings count again only
when they change. The cluster gives the node domains again. `veery node resume --home` moves back the domains that left
it.""",
        examples="veery node well test1\nveery node well test1 smart  # the disk was replaced",
        json=True,
    ),
}
