"""One row of the API's table: a method and a path, its handler, and everything that a caller must know about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from aiohttp import web


class Privilege(Enum):
    """What a caller needs for a route, each with the rule in one sentence. Today root, the group `api.group` and the
    nodes have all of them."""

    OPEN = "open", "Anybody, also without a certificate: the first steps of a new node."
    LOOK = "look", "Read the state of the cluster; nothing changes."
    USE_DOMAINS = "use domains", "Start, stop and pause existing domains, and use their consoles."
    OPERATE_DOMAINS = "operate domains", "Create, change, move and delete domains and volumes."
    OPERATE_NODES = (
        "operate nodes",
        "Drain and resume nodes, restart their parts, arm the brain, and use files of a node.",
    )
    ADMINISTER = "administer", "Change the members, keys, addresses, votes and fences of the cluster."
    PEER = "peer", "Only the nodes of the cluster call it, for each other."

    def __init__(self, word: str, rule: str) -> None:
        self.word, self.rule = word, rule


class Form(StrEnum):
    """The form of an answer, or of a request's body."""

    JSON = "application/json"
    """One JSON value."""
    LINES = "application/x-ndjson"
    """Lines of JSON until the work ends: progress, then the result or an error."""
    BYTES = "application/octet-stream"
    """Raw bytes."""
    SOCKET = "websocket"
    """A WebSocket with binary messages in both directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One parameter of a path's query. `value`: the one that it has, "" for any. `answer`: the type of the answer with
    this parameter, None if it is the same."""

    name: str
    meaning: str
    value: str = ""
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `handler`: the name of the method in the class of its room. `summary` and `note`: what it does, and
    what else a caller must know. `body` and `answer`: types for msgspec; None is an empty object. `takes` and `form`
    are the forms of body and answer: with LINES `answer` is the result in the last line, and `line` describes the
    others. `refused`: when it answers 409, beyond the obvious. `led`: the node that leads the cluster answers."""

    method: str
    path: str
    handler: str
    privilege: Privilege
    summary: str
    body: Any = None
    answer: Any = None
    query: tuple[Query, ...] = ()
    takes: Form = Form.JSON
    form: Form = Form.JSON
    line: str = ""
    note: str = ""
    refused: str = ""
    led: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """The method and the path, which together name the route."""
        return self.method, self.path

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the path's parts in braces."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


def bind(routes: Iterable[Route], room: object, led: Callable[[Any], Any] | None = None) -> list[web.RouteDef]:
    """Return what aiohttp serves for `routes`: each handler is the method of `room` with that name. `led` wraps the
    handlers of routes that the leader answers. Raises AttributeError for a row without a handler."""
    made = []
    for route in routes:
        handler = getattr(room, route.handler)
        if route.led:
            assert led is not None, f"{route.path} needs a leader"
            handler = led(handler)
        made.append(web.route(route.method, route.path, handler))  # for GET, aiohttp answers HEAD too
    return made
