"""The page docs/api.md, generated from the table of routes. `python -m veery.api.pages > docs/api.md` writes it."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from enum import Enum
from typing import Any, Literal

from veery.api import errors
from veery.api.route import Form, Privilege, Route
from veery.api.table import ROOMS

HEAD = """# The HTTP API

`python -m veery.api.pages > docs/api.md` generates this page from the table of routes, `src/veery/api/table`. A test
checks that the page is current. [openapi.json](openapi.json) has every type in full; a node answers it at
`GET /v1/openapi.json`.

`veeryd` serves the API on two listeners. One is the unix socket `RUN/api.sock`. veeryd checks the peer credentials
there: user root and members of the group `api.group` may use it. The other is TLS TCP port 8001. There the caller needs
a certificate of the cluster's own CA, with the name and serial number of a node. Without one, only the routes with the
privilege *open* answer. Requests and answers are JSON. A null in a request's body counts as a missing field. veeryd
ignores unknown fields in a body, and an answer of a newer version can have more fields.

With the header `X-Veery-Node: NAME`, veeryd forwards the request to that node.

## Errors

An error is a problem of RFC 9457, `application/problem+json`: `type`, `title`, `status` and `detail`. It also has
`kind` and `hint` (the next step). A malformed request has `field` too, the path of the wrong field. Older versions read
the member `error` with `kind`, `message` and `hint`. The routes with the privilege *open* answer with this member
alone. There are three kinds: *refused* (nothing has changed), *failed*, and *unknown* (the answer was lost: look before
you try again).

| status | kind | meaning |
|---|---|---|
@STATUSES@

Limits: a JSON body has at most 4 MiB and 60 s. A stranger's body has at most 64 KiB and 10 s; its handshake and its
header have 10 s each. The port accepts 1024 connections in all. From addresses that are not a node's it accepts 128 in
all and 16 each. veeryd closes a connection after 75 s without a request.

## Long work

Long work answers with `application/x-ndjson` (*lines* below): lines `{"event": "progress", ...}`, and last
`{"event": "done", "result": ...}` or `{"event": "error", "error": {...}}`. The work continues when the caller
disconnects.
"""
PRIVILEGES = """## Privileges

Each route has the privilege that its caller needs. Root, the members of `api.group` and the nodes have all of them.
"""
ROUTES = """## Routes

`{ref}` is a domain: a name, a domid of that node, or a UUID. `{name}` is the name of a node or of a volume. The column
*body → answer* names types; the last section has those of this API, and openapi.json has all.
"""
BODIES = "## Types\n"


def page() -> str:
    """Return the text of docs/api.md."""
    statuses = "\n".join(f"| {status} | {_kind(status)} | {why} |" for status, why in errors.REASONS.items())
    parts = [
        HEAD.replace("@STATUSES@", statuses),
        PRIVILEGES,
        *(f"- **{each.word}**: {each.rule}" for each in Privilege),
        "",
        ROUTES,
    ]
    for title, room in ROOMS.items():
        parts += [f"### {title}\n", "| route | privilege | what it does | body → answer |", "|---|---|---|---|"]
        parts += [_row(route) for route in room]
        parts.append("")
    parts += [BODIES, *(_described(each) for each in _own_types())]
    return "\n".join(parts) + "\n"


def _kind(status: int) -> str:
    return {500: "failed", 503: "failed", 504: "unknown"}.get(status, "refused")


def _row(route: Route) -> str:
    told = [route.summary, route.note]
    told += [
        f"`?{each.name}={each.value or each.name.upper()}`: {each.meaning}{_other(each.answer)}."
        for each in route.query
    ]
    told.append(f"Lines: {route.line}." if route.line else "")
    told.append(f"Refused if {route.refused}." if route.refused else "")
    told.append("The leader answers." if route.led else "")
    sentences = " ".join(each for each in told if each)
    return f"| `{route.method} {route.path}` | {route.privilege.word} | {_cell(sentences)} | {_cell(_types(route))} |"


def _other(answer: Any) -> str:
    return f" → {named(answer)}" if answer is not None else ""


def _types(route: Route) -> str:
    body = "bytes" if route.takes is Form.BYTES else named(route.body) if route.body is not None else ""
    answer = named(route.answer) if route.answer is not None else "{}"
    match route.form:
        case Form.LINES:
            answer = f"lines, {answer}"
        case Form.BYTES:
            answer = "bytes"
        case Form.SOCKET:
            answer = "WebSocket"
    return f"{body} → {answer}" if body else answer


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def named(kind: Any) -> str:
    """Return a type in words: `list of Volume`."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return named(inside[0])
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in inside)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if each is types.NoneType else named(each) for each in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"[{', '.join(named(each) for each in inside)}]"
    if origin in (tuple, list):
        return f"list of {named(inside[0])}"
    if origin is not None:
        return f"map of names to {named(inside[1])}"
    return {int: "integer", float: "number", str: "text", bool: "bool", object: "value", Any: "value"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _own_types() -> list[Any]:
    """Return the types of this package that the routes use, by name."""
    found: dict[str, Any] = {}
    for room in ROOMS.values():
        for route in room:
            for kind in (route.body, route.answer, *(each.answer for each in route.query)):
                _collect(kind, found)
    return [found[name] for name in sorted(found)]


def _collect(kind: Any, found: dict[str, Any]) -> None:
    for each in typing.get_args(kind):
        _collect(each, found)
    if dataclasses.is_dataclass(kind) and kind.__module__.startswith("veery.api."):
        if kind.__name__ in found:  # type: ignore[union-attr]
            return
        found[kind.__name__] = kind  # type: ignore[union-attr]
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            _collect(hint, found)


def _described(kind: Any) -> str:
    """Return the name, the meaning and the fields of a type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = "; ".join(f"`{each.name}` {named(hints[each.name])}{_default(each)}" for each in dataclasses.fields(kind))
    return f"- **{kind.__name__}**: {' '.join(str(kind.__doc__).split())} Fields: {fields}."


def _default(field: Any) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else " (optional)"
    if isinstance(value, Enum):
        value = value.value
    return f" (default {json.dumps(value)})" if isinstance(value, str | int | float) else " (optional)"


if __name__ == "__main__":
    sys.stdout.write(page())
