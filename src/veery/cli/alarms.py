"""Alarms to operators: alarm list, alarm test."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Failed

TEST_DEADLINE_S = 60.0


def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/alarms")
    if session.json:
        session.print_json(rows)
        return 0
    if not rows:
        session.note("this node sends no alarms: configure a way in [alarms] of veery.toml")
        return 0
    _print(rows)
    return 0


def _test(session: Session, args: Namespace) -> int:
    rows = session.client.post("/v1/alarms/test", deadline=TEST_DEADLINE_S)
    if session.json:
        session.print_json(rows)
    else:
        _print(rows)
    if failed := [row["name"] for row in rows if row["error"]]:
        raise Failed(
            f"{', '.join(failed)} did not send the message",
            hint="correct [alarms] in veery.toml, restart veeryd, test again",
        )
    return 0


def _print(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at"])) if row["at"] else "-"
        cells.append((row["name"], when, row["error"] or ("sent" if row["at"] else "-")))
    print(*tables.plain(("Way", "Last", "Result"), cells), sep="\n")


def _declare_nothing(parser: Parser) -> None:
    pass


VERBS: dict[str, Verb] = {
    "alarm list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="""
Prints the ways in which a node sends alarms, and the result of the last alarm. The leader sends the alarms of the
cluster. Each node itself sends an alarm when it has lost the store. The settings are in [alarms] of veery.toml.""",
        examples="veery alarm list\nveery --node test1 alarm list",
        json=True,
    ),
    "alarm test": Verb(
        run=_test,
        declare=_declare_nothing,
        about="Sends one test message by each way that the node's settings name, and prints the results.",
        examples="veery alarm test\nveery --node test1 alarm test",
        failure="a way did not accept the message",
        json=True,
    ),
}
