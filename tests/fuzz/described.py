"""Judges answers by the table of routes: each has the type of its row and no field besides, each error is a problem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from veery.api.errors import Error, Problem
from veery.api.route import Form, Privilege, Route
from veery.api.table import ROUTES
from veery.model.codec import plain

PATTERNS = [(route, re.compile(re.sub(r"{\w+}", "[^/]+", route.path))) for route in ROUTES]


def row(method: str, path: str) -> Route | None:
    """The row that a request meets, None if there is none."""
    bare = path.partition("?")[0]
    return next((route for route, pattern in PATTERNS if route.method == method and pattern.fullmatch(bare)), None)


def misfits(route: Route | None, status: int, body: bytes) -> Iterator[str]:
    """What is wrong with a complete answer, or with the complete lines of one."""
    if status >= 400:
        if route is not None and route.privilege is Privilege.OPEN:
            msgspec.json.decode(body, type=dict[str, dict[str, str]])  # as an older version does that joins
            return
        problem = msgspec.json.decode(body, type=Problem)
        wrong = [*_extra(msgspec.json.decode(body), plain(problem), "$")]
        if problem.status != status or problem.kind != problem.error.kind or problem.detail != problem.error.message:
            wrong.append("the members of the problem differ")
        yield from wrong
    elif status == 200 and route is not None and route.form is Form.JSON:
        raw = msgspec.json.decode(body)
        types = [route.answer, *(each.answer for each in route.query if each.answer is not None)]
        found = [[*_unlike(raw, each)] for each in types]
        yield from min(found, key=len)
    elif status == 200 and route is not None and route.form is Form.LINES:
        for line in body.rpartition(b"\n")[0].splitlines():
            yield from _line(msgspec.json.decode(line), route)


def _line(line: Any, route: Route) -> Iterator[str]:
    """What is wrong with one line of a stream."""
    match line.get("event"):
        case "done":
            yield from _unlike(line["result"], route.answer)
        case "event":
            yield from _unlike(line["value"], route.answer)
        case "error":
            yield from _unlike(line["error"], Error)
        case "begin" | "progress" | "alive":
            pass
        case other:
            yield f"no event {other!r}"


def _unlike(raw: Any, wanted: Any) -> Iterator[str]:
    if wanted is None:
        yield from [] if raw == {} else [f"it is not empty: {raw!r:.200}"]
        return
    try:
        yield from _extra(raw, plain(msgspec.convert(raw, wanted)), "$")
    except msgspec.ValidationError as error:
        yield str(error)


def _extra(raw: Any, known: Any, where: str) -> Iterator[str]:
    if isinstance(raw, dict):
        for key, value in raw.items():
            if key not in known:
                yield f"the type has no {where}.{key}"
            else:
                yield from _extra(value, known[key], f"{where}.{key}")
    elif isinstance(raw, list):
        for one, other in zip(raw, known, strict=True):
            yield from _extra(one, other, f"{where}[]")
