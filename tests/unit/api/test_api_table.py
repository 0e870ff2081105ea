"""The table of routes: veeryd serves exactly its rows, each handler reads the body that its row names, and the
documents that are made from it are current."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from veery.api import errors, openapi, pages
from veery.api.errors import Malformed
from veery.api.route import Form, Privilege, Route, bind
from veery.api.server import OPEN_ROUTES, checked
from veery.api.table import ROUTES
from veery.client import http
from veery.cluster.store import StoreUnavailable
from veery.daemon.routes import tables
from veery.errors import Failed, NotFound, OutcomeUnknown, Refused, VeeryError
from veery.model.codec import encode

DOCS = Path(__file__).parents[3] / "docs"
READ = re.compile(r"(?:order\(request|checked\(data|convert\(await body\(request\)), ([\w.]+)")


class Part:
    """Stands where the parts of a daemon are: the rooms only keep them."""

    def __getattr__(self, name: str) -> Any:
        return self


def served() -> list[web.RouteDef]:
    """What the daemon registers."""
    part: Any = Part()
    made = tables(part, part, part, store=part, safety=part, brain=part, doctor=part, tail=part)
    return [route for table in made for route in table]


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_daemon_serves_exactly_the_table() -> None:
    keys = [(route.method, route.path) for route in served()]
    assert len(keys) == len(set(keys))
    assert set(keys) == {route.key for route in ROUTES}
    assert len(ROUTES) == len({route.key for route in ROUTES}) == len({openapi.operation_id(each) for each in ROUTES})


def test_aiohttp_answers_the_same() -> None:
    """What the application's router knows: nothing but the table, and HEAD for each GET."""
    app = web.Application()
    app.add_routes(served())
    there = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    assert there == {route.key for route in ROUTES} | {("HEAD", each.path) for each in ROUTES if each.method == "GET"}


def test_a_row_without_a_handler_is_an_error() -> None:
    with pytest.raises(AttributeError):
        bind([Route("GET", "/v1/x", "nothing", Privilege.LOOK, "Return x.")], object())


def test_each_handler_reads_the_body_of_its_row() -> None:
    handlers = {(each.method, each.path): inspect.unwrap(each.handler) for each in served()}
    for route in ROUTES:
        read = {name.rpartition(".")[2] for name in READ.findall(inspect.getsource(handlers[route.key]))}
        assert read == ({route.body.__name__} if route.body is not None else set()), named(route)


def test_each_row_is_complete() -> None:
    for route in ROUTES:
        assert route.summary.endswith("."), named(route)
        assert isinstance(route.privilege, Privilege)
        assert route.body is None or route.method == "POST", named(route)
        assert bool(route.line) == (route.form is Form.LINES), named(route)
        for part in (route.note, *(each.meaning for each in route.query)):
            assert "\n" not in part


def test_what_strangers_may_call() -> None:
    assert {("GET", "/v1/ca"), ("POST", "/v1/join")} == OPEN_ROUTES


def test_a_question_changes_nothing() -> None:
    """Whoever may only look has no route that changes something."""
    for route in ROUTES:
        if route.privilege is Privilege.LOOK and route.method != "GET":
            assert route.path in ("/v1/domains/{ref}/plan", "/v1/events/follow")


# ---- bodies
@pytest.mark.parametrize("route", [each for each in ROUTES if each.body is not None], ids=named)
def test_a_missing_field_is_named(route: Route) -> None:
    needed = [
        each.name
        for each in dataclasses.fields(route.body)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    if not needed:
        assert checked({}, route.body) == checked(dict.fromkeys(_fields(route.body)), route.body) == route.body()
        return
    for data in ({}, dict.fromkeys(_fields(route.body))):  # a null counts as missing
        with pytest.raises(Malformed) as caught:
            checked(data, route.body)
        assert (caught.value.status, caught.value.field) == (400, needed[0])


@pytest.mark.parametrize("route", [each for each in ROUTES if each.body is not None], ids=named)
def test_a_wrong_field_is_named(route: Route) -> None:
    for name in _fields(route.body):
        with pytest.raises(Malformed) as caught:
            checked({**_good(route.body), name: [[1]]}, route.body)  # fits no field
        assert re.split(r"[.\[]", caught.value.field)[0] == name
        assert caught.value.field in caught.value.message


def _fields(body: Any) -> list[str]:
    return [each.name for each in dataclasses.fields(body)]


def _good(body: Any) -> dict[str, Any]:
    """A body that has what it needs."""
    kinds = {"str": "x", "int": 1, "bool": True, "float": 1.0, "list[str]": ["x"], "list[int]": [1]}
    kinds |= {"Policy": "off", "DomainSpec": {"name": "x"}, "DiskSpec": {"vdev": "xvda"}, "VifSpec": {}}
    node = {"name": "a", "address": "10.0.0.1", "roles": []}
    volume = {"name": "x", "size": 1, "node": "a", "backing": "file", "path": "/x", "iqn": "i", "tid": 1, "portal": "p"}
    kinds |= {"Node": node, "Volume": volume, "tuple[str, ...]": ["x"], "Backing": "file"}
    return {
        each.name: kinds[str(each.type)]
        for each in dataclasses.fields(body)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }


def test_unknown_fields_are_ignored() -> None:
    for route in ROUTES:
        if route.body is not None:
            assert checked({**_good(route.body), "newer": 1}, route.body) == checked(_good(route.body), route.body)


def test_the_choices_are_in_the_hint() -> None:
    by_path = {route.path: route.body for route in ROUTES if route.body is not None}
    for path, name, hint in (
        ("/v1/ha/{domain}", "policy", "one of restart, migrate-only, off"),
        ("/v1/groups/{group}", "kind", "one of apart, together"),
        ("/v1/domains/{ref}/save", "leave", "one of destroyed, running, paused"),
    ):
        body = by_path[path]
        with pytest.raises(Malformed) as caught:
            checked({**_good(body), name: "sideways"}, body)
        assert (caught.value.field, caught.value.hint) == (name, hint)


def test_a_field_inside_is_named_by_its_path() -> None:
    create = next(route.body for route in ROUTES if route.key == ("POST", "/v1/domains"))
    with pytest.raises(Malformed) as caught:
        checked({"spec": {"name": "x", "disks": [{"vdev": "xvda"}, {"vdev": 1}]}}, create)
    assert caught.value.field == "spec.disks[1].vdev"
    with pytest.raises(Malformed) as caught:
        checked({"spec": {"name": "x", "disks": [{}]}}, create)
    assert caught.value.field == "spec.disks[0].vdev"


# ---- errors
@pytest.mark.parametrize("error", [Refused("no", hint="look"), Failed("broke"), OutcomeUnknown("lost")])
def test_older_versions_read_an_error(error: VeeryError) -> None:
    """The members that versions before the problem details read are the same as ever."""
    response = errors.problem(error)
    assert isinstance(response.body, bytes)
    told = json.loads(response.body)
    assert told["error"] == {"kind": error.kind, "message": error.message, "hint": told["hint"]}
    assert told["hint"]
    again = http._refusal(response.status, response.body)
    assert (type(again), again.message, again.hint) == (type(error), error.message, told["hint"])
    assert msgspec.json.decode(response.body, type=errors.Problem).detail == error.message
    assert (response.content_type, told["status"]) == ("application/problem+json", response.status)
    assert json.loads(encode(errors.error_body(error))) == {"error": told["error"]}  # in a stream


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (Refused("x"), 409, "refused"),
        (NotFound("x"), 404, "not-found"),
        (Malformed("x", 413), 413, "malformed"),
        (Failed("x"), 500, "failed"),
        (StoreUnavailable("x"), 503, "unavailable"),
        (OutcomeUnknown("x"), 504, "unknown"),
    ],
)
def test_statuses(error: VeeryError, status: int, word: str) -> None:
    told = errors.error_body(error, errors.status_of(error))
    assert (told["status"], told["type"]) == (status, f"urn:veery:problem:{word}")
    assert told["title"] == errors.TITLES[word]
    assert status in errors.REASONS


def test_impossible_values_have_their_own_status() -> None:
    with pytest.raises(Malformed) as caught, errors.possible():
        raise Refused("name is too long", hint="make it shorter")
    assert (caught.value.status, caught.value.message, caught.value.hint) == (
        422,
        "name is too long",
        "make it shorter",
    )


# ---- documents
def test_the_openapi_document_is_current() -> None:
    assert (DOCS / "openapi.json").read_text() == openapi.text(), "run: make api"


def test_the_page_is_current() -> None:
    assert (DOCS / "api.md").read_text() == pages.page(), "run: make api"


def test_the_openapi_document_is_whole() -> None:
    document = openapi.document()
    schemas, responses = document["components"]["schemas"], document["components"]["responses"]
    for kind, name in re.findall(r'"\$ref": "#/components/(\w+)/([^"]+)"', json.dumps(document)):
        assert name in {"schemas": schemas, "responses": responses}[kind]
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        given = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert given == set(re.findall(r"{(\w+)}", route.path))
        assert operation["x-privilege"] == route.privilege.word
        assert {"409", "500", "504"} < set(operation["responses"])
