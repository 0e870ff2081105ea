"""The answers to requests that fail: problem details of RFC 9457, with the members of veery beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web

from veery.errors import Refused, VeeryError
from veery.model.codec import encode

CONTENT_TYPE = "application/problem+json"
TYPE = "urn:veery:problem:{word}"  # an identifier: there is no page to fetch
STATUS = {"refused": 409, "failed": 500, "unknown": 504, "not-found": 404, "no-route": 404, "unavailable": 503}
"""The status of each reason, and of each kind for errors without a reason."""
TITLES = {
    "refused": "The order was checked and did not start.",
    "failed": "The order started and did not succeed.",
    "unknown": "The order was sent, and its answer was lost.",
    "not-found": "What the order names does not exist.",
    "no-route": "This version has no such route.",
    "unavailable": "Something that the order needs does not answer.",
    "malformed": "The request is not as the API describes it.",
}
HINTS = {  # for errors without a hint of their own
    "refused": "nothing was changed; veery dmesg on that node may show more",
    "failed": "see veery dmesg and veeryd's log on that node",
    "unknown": "the order may or may not be done: look with veery list before you try again",
}
REASONS = {
    400: "the request is malformed; `field` names the field",
    403: "the caller is not known",
    404: "the object does not exist, or this version has no such route",
    408: "the body came too slowly",
    409: "the state does not allow it; nothing has changed",
    413: "the body is too long",
    422: "the request is well formed, and a value in it is not possible",
    500: "`detail` says what is left",
    503: "the store, or another part that the order needs, does not answer",
    504: "the answer was lost: look before you try again",
}


class Malformed(Refused):
    """An invalid request: HTTP `status` 400, 408, 413 or 422. `field`: the path of the wrong field, "" if there is
    none."""

    reason = "malformed"

    def __init__(self, message: str, status: int = 400, *, field: str = "", hint: str = "see docs/api.md") -> None:
        super().__init__(message, hint=hint)
        self.status, self.field = status, field


class NoRoute(Refused):
    """The API has no such method and path."""

    reason = "no-route"


@contextlib.contextmanager
def possible() -> Iterator[None]:
    """Give the status 422 to a refusal in this block: a check refuses a value of the body."""
    try:
        yield
    except Refused as error:
        raise Malformed(error.message, 422, hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """The error as older versions of veery read it."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request failed (RFC 9457). `kind`: "refused" (nothing has changed), "failed" or "unknown". `detail`: the
    reason in one sentence. `hint`: the next step. `field`: the wrong field of a malformed request. `error` has the
    same kind, detail and hint for older versions."""

    type: str
    title: str
    status: int
    detail: str
    kind: str
    hint: str
    error: Error
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainProblem:
    """Why a request failed, on the routes that a new node calls."""

    error: Error


def error_body(error: VeeryError, status: int = 0) -> dict[str, Any]:
    """Return the JSON object of an error, without the `status` 0: in a line of a stream."""
    hint = error.hint or HINTS.get(error.kind, "")
    told: dict[str, Any] = {"error": {"kind": error.kind, "message": error.message, "hint": hint}}
    if not status:
        return told
    word = error.reason or error.kind
    told |= {"type": TYPE.format(word=word), "title": TITLES.get(word, TITLES.get(error.kind, "The order failed."))}
    told |= {"status": status, "detail": error.message, "kind": error.kind, "hint": hint}
    if isinstance(error, Malformed) and error.field:
        told["field"] = error.field
    return told


def status_of(error: VeeryError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, Malformed):
        return error.status
    return STATUS.get(error.reason, STATUS.get(error.kind, HTTPStatus.INTERNAL_SERVER_ERROR))


def problem(error: VeeryError, status: int = 0, *, plain: bool = False) -> web.Response:
    """Return the response of an error, with its own status or `status`. `plain`: with the member `error` alone. An
    older version that joins the cluster reads nothing else."""
    status = status or status_of(error)
    told = error_body(error, 0 if plain else status)
    return web.Response(body=encode(told), status=status, content_type="application/json" if plain else CONTENT_TYPE)


REASON_MAX, FIELD_MAX = 300, 200  # characters of what a body causes in messages and logs
_MISSING = re.compile(r"missing required field `([^`]*)`")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")


def misfit(message: str, wanted: Any) -> Malformed:
    """Return the error for a body that does not fit the type `wanted`; `message` is msgspec's."""
    where, missing = _WHERE.search(message), _MISSING.search(message)
    parts = [where[1] if where else "", missing[1] if missing else ""]
    field = ".".join(each for each in parts if each)
    reason = "it is missing" if missing else _WHERE.sub("", message)[:REASON_MAX]
    field = field[:FIELD_MAX]
    choices = _choices(wanted, field)
    return Malformed(
        f"the field {field!r} is wrong: {reason}" if field else f"the body is wrong: {reason}",
        field=field,
        hint=f"one of {', '.join(choices)}" if choices else "see docs/api.md",
    )


def _choices(wanted: Any, field: str) -> tuple[str, ...]:
    """Return the values that `field` can have, if they are few words."""
    hint = typing.get_type_hints(wanted).get(field) if dataclasses.is_dataclass(wanted) else None
    for each in (hint, *typing.get_args(hint)):
        if isinstance(each, type) and issubclass(each, Enum):
            return tuple(str(one.value) for one in each)
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else ()
