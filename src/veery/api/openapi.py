"""The table of routes as OpenAPI 3.1. `python -m veery.api.openapi > docs/openapi.json` writes it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from veery import __version__
from veery.api import errors
from veery.api.route import Form, Privilege, Route
from veery.api.table import ROOMS

REF = "#/components/schemas/{name}"
INFO = {
    "title": "veery",
    "description": "The API of veeryd. It listens on the unix socket api.sock, and on TLS port 8001 for the nodes of "
    "the cluster. With the header X-Veery-Node: NAME, veeryd forwards a request to that node. An answer may have "
    "fields that this document does not know: newer versions add some. x-privilege is what the caller needs.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
NOTHING = {"type": "object"}
NODE = {
    "name": "X-Veery-Node",
    "in": "header",
    "required": False,
    "description": "the node that answers; without it, the node that is asked",
    "schema": {"type": "string"},
}


def document(rooms: dict[str, tuple[Route, ...]] = ROOMS) -> dict[str, Any]:
    """Return the OpenAPI document of `rooms`."""
    routes = [route for room in rooms.values() for route in room]
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for title, room in rooms.items():
        for route in room:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, title, schemas)
    return {
        "openapi": "3.1.0",
        "info": {**INFO, "version": __version__},
        "servers": [{"url": "/", "description": "the unix socket, or https://NODE:8001"}],
        "tags": [{"name": title} for title in rooms],
        "x-privileges": {each.word: each.rule for each in Privilege},
        "paths": paths,
        "components": {"schemas": components, "responses": {str(each): _problem(each) for each in errors.REASONS}},
    }


@functools.cache
def text() -> str:
    """Return the document of this version as JSON, for people too."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def operation_id(route: Route) -> str:
    """Return the unique name of a route, for example `post_domains_ref_pause`."""
    parts = route.path.removeprefix("/v1/").replace("{", "").replace("}", "").replace("-", "_").replace(".", "_")
    return f"{route.method.lower()}_{parts.replace('/', '_')}"


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schema of each type of `routes`, and the components that they refer to."""
    types: list[Any] = [errors.Problem, errors.PlainProblem]
    for route in routes:
        types += [each for each in (route.body, route.answer, *(one.answer for one in route.query)) if each is not None]
    found, components = msgspec.json.schema_components(types, ref_template=REF)
    return dict(zip(types, found, strict=True)), dict(sorted(components.items()))


def _operation(route: Route, title: str, schemas: dict[Any, Any]) -> dict[str, Any]:
    sentences = [route.summary, route.note, "The node that leads the cluster answers." if route.led else ""]
    made: dict[str, Any] = {
        "operationId": operation_id(route),
        "tags": [title],
        "summary": route.summary,
        "description": " ".join(each for each in sentences if each),
        "x-privilege": route.privilege.word,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in route.parameters
            ),
            *(
                {"name": each.name, "in": "query", "description": each.meaning, "schema": _text(each.value)}
                for each in route.query
            ),
            NODE,
        ],
    }
    if route.takes is Form.BYTES:
        made["requestBody"] = {"required": True, "content": {Form.BYTES: {}}}
    elif route.method == "POST":
        schema = schemas[route.body] if route.body is not None else NOTHING
        made["requestBody"] = {"required": _needed(route.body), "content": {Form.JSON: {"schema": schema}}}
    made["responses"] = {**_answer(route, schemas), **_problems(route)}
    return made


def _needed(body: Any) -> bool:
    """Return whether a request without a body is malformed."""
    if body is None:
        return False
    return any(field.required for field in msgspec.inspect.type_info(body).fields)  # type: ignore[attr-defined]


def _answer(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    if route.form is Form.SOCKET:
        return {"101": {"description": "a WebSocket with binary messages in both directions"}}
    if route.form is Form.BYTES:
        return {"200": {"description": "the bytes", "content": {Form.BYTES: {}}}}
    answers = [schemas[route.answer] if route.answer is not None else NOTHING]
    answers += [schemas[each.answer] for each in route.query if each.answer is not None]
    schema = answers[0] if len(answers) == 1 else {"anyOf": answers}
    if route.form is Form.LINES:
        return {
            "200": {
                "description": f'Lines of JSON, each an object with `event`: {route.line}. The last line is {{"event": '
                f'"done", "result": ...}} or {{"event": "error", "error": ...}}.',
                "content": {Form.LINES: {"schema": {"type": "string"}}},
                "x-result": schema,
            }
        }
    return {"200": {"description": "done", "content": {Form.JSON: {"schema": schema}}}}


def _problems(route: Route) -> dict[str, Any]:
    """Return the error answers of a route by their status."""
    if route.privilege is Privilege.OPEN:
        return {str(each): _problem(each, plain=True) for each in errors.REASONS if each != 403}
    told: dict[str, Any] = {str(each): {"$ref": f"#/components/responses/{each}"} for each in errors.REASONS}
    if route.refused:
        told["409"] = _problem(409, f", for example because {route.refused}")
    return told


def _problem(status: int, example: str = "", *, plain: bool = False) -> dict[str, Any]:
    schema = {"$ref": REF.format(name=(errors.PlainProblem if plain else errors.Problem).__name__)}
    content = {Form.JSON if plain else errors.CONTENT_TYPE: {"schema": schema}}
    return {"description": f"{errors.REASONS[status]}{example}", "content": content}


def _text(value: str) -> dict[str, str]:
    return {"type": "string", "const": value} if value else {"type": "string"}


if __name__ == "__main__":
    sys.stdout.write(text())
