"""selftest kvm --move: move a domain to another node and back, and report the figures without names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from veery.cli.session import Session
from veery.client.http import domain_path
from veery.errors import Failed, OutcomeUnknown, VeeryError

PLANNED = ("possible", "blockers", "back", "cautions", "forecast", "memory", "link", "overhead")
MOVED = (
    *("state", "phase", "reason", "total_ms", "downtime_ms", "bytes", "rounds", "dirty_rate", "phases", "policy"),
    *("packed", "disk_bytes", "cipher", "caution", "story", "samples"),
)
"""The fields of a plan and of a report that the answer contains."""
HEX = r"[0-9a-fA-F]{1,4}"
PRIVATE = (
    (re.compile(r"\biqn\.[\w.:-]+"), "IQN"),
    (re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b"), "MAC"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "ADDRESS"),
    (re.compile(rf"(?<![\w:])(?:(?:{HEX}:){{7}}{HEX}|(?:{HEX}:)*:(?:{HEX}:)*{HEX})(?![\w:])"), "ADDRESS"),
)
"""Patterns of other texts that identify machines, and their replacements."""


def there_and_back(session: Session, domain: str, node: str) -> dict[str, Any]:
    """Move `domain` from this node to `node` and back, each time after a plan. Returns {"good", "memory", "vcpus",
    "moves": [...]}. Stops after a failed move. Raises Refused if there is no such domain."""
    from veery.model.move import MoveSettings

    here = session.client.get("/v1/host")["node"]["name"]
    reading = session.reading(domain)
    names = {reading.name: "DOMAIN", reading.uuid: "DOMAIN", here: "HERE", node: "THERE"}
    moves: list[dict[str, Any]] = []
    for way, start, target in (("there", session, node), ("back", replace(session, node=node, _client=None), here)):
        session.note(f"move {way}")
        row: dict[str, Any] = {"way": way, "good": False}
        moves.append(row)
        order = {"target": target, "settings": asdict(MoveSettings())}
        try:
            row["plan"] = _of(start.client.post(domain_path(reading.uuid, "plan"), order), PLANNED)
            report = _moved(start, reading.uuid, order)
            row |= _of(report, MOVED)
            row["good"] = report["state"] == "done"
        except VeeryError as error:
            row |= {"error": error.message, "hint": error.hint}
        if not row["good"]:
            break
    answer = {"good": len(moves) == 2 and moves[-1]["good"], "memory": reading.memory, "vcpus": reading.vcpus}
    return {**answer, "moves": without(moves, names)}


def _moved(session: Session, uuid: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Order a move and return its report. Raises veeryd's VeeryError."""
    for event in session.client.stream(domain_path(uuid, "migrate"), order):
        if event["event"] == "done":
            report: dict[str, Any] = event["result"]
            return report
    raise OutcomeUnknown("veeryd did not report the end of the move", hint="veery moves shows its state")


def _of(answer: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: answer[key] for key in keys if key in answer}


def without(value: Any, names: Mapping[str, str]) -> Any:
    """Return `value` without names and addresses: in every text, replace each word of `names` by its value, and the
    matches of PRIVATE."""
    if isinstance(value, str):
        for pattern, word in PRIVATE:
            value = pattern.sub(word, value)
        for name in sorted(names, key=len, reverse=True):
            value = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", names[name], value)
        return value
    if isinstance(value, Mapping):
        return {key: without(each, names) for key, each in value.items()}
    return [without(each, names) for each in value] if isinstance(value, (list, tuple)) else value


def failure(answer: Mapping[str, Any]) -> Failed | None:
    """Return the error of an `answer` of `there_and_back`; None if the answer is good."""
    if answer["good"]:
        return None
    row = answer["moves"][-1]
    words = row.get("error") or row.get("reason") or f"it ended {row.get('state', 'early')}"
    away = "veery list --cluster shows where it runs" if row["way"] == "back" else row.get("hint", "")
    return Failed(f"the move {row['way']} failed: {words}", hint=away)
