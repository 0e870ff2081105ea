"""Every route of every table of a real daemon against requests of all kinds.

What a handler looks for is read from its row in the table and from its code. The fields of the body and the texts in
the code are keys and values to try, the types are the shapes of bodies. A new route is fuzzed without a word here."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fuzz_node import UUID, FuzzedNode
from fuzz_values import anything, numbers, shaped, spoilt, texts
from hypothesis import given, note
from hypothesis import strategies as st
from plenty import KEPT, plenty

from veery.api.table import ROUTES

GROWTH_MAX = 192 << 10  # KiB of resident memory that requests may add
SLACK = 12  # descriptors that a pool or a watcher may keep


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedNode]:
    made = FuzzedNode(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def called(function: Any, depth: int = 2) -> Iterator[Any]:
    """Code objects of a handler, of what is nested in it, and of the helpers of its module that it names."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return
    scope = {**getattr(function, "__globals__", {})}
    owner = getattr(function, "__self__", None)
    waiting = [code]
    while waiting:
        code = waiting.pop()
        yield code, scope
        waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        if depth:
            for name in code.co_names:
                found = scope.get(name) or getattr(owner, name, None)
                if callable(found) and getattr(found, "__module__", "").startswith("veery.api"):
                    yield from called(found, depth - 1)


def words_and_shapes(handler: Any) -> tuple[list[str], list[type]]:
    """The texts and the types in a handler's code."""
    words: set[str] = set()
    shapes: dict[str, type] = {}
    for code, scope in called(handler):
        for each in code.co_consts:
            several = each if isinstance(each, tuple | frozenset) else (each,)
            words |= {word for word in several if isinstance(word, str) and re.fullmatch(r"[\w.-]{1,30}", word)}
        for name in code.co_names:
            found = scope.get(name)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                shapes[name] = found
    return sorted(words), [shapes[name] for name in sorted(shapes)]


BODIES = {row.key: row.body for row in ROUTES if row.body is not None}


def nested(kind: Any) -> Iterator[type]:
    """A dataclass, and those in its fields."""
    if dataclasses.is_dataclass(kind):
        yield kind  # type: ignore[misc]
        for hint in typing.get_type_hints(kind).values():
            yield from nested(hint)
    for each in typing.get_args(kind):
        yield from nested(each)


def requests_of(
    route: web.RouteDef, node: FuzzedNode, files: list[str]
) -> st.SearchStrategy[tuple[str, str, bytes | None]]:
    """Requests for one route: method, path with its query, body."""
    words, shapes = words_and_shapes(route.handler)
    body = BODIES.get((route.method, route.path))
    shapes = [*dict.fromkeys([*shapes, *nested(body)])]
    words = sorted({*words, *(each.name for each in dataclasses.fields(body))} if body is not None else words)
    some = st.sampled_from([*words, *files]) | texts if words else st.sampled_from(files) | texts
    values = st.one_of(
        some, numbers, st.booleans(), anything, st.lists(some, max_size=3), *(shaped(kind, some) for kind in shapes)
    )
    keyed = st.dictionaries(st.sampled_from(words) if words else texts, values, max_size=6)
    if words:
        keyed = keyed | st.fixed_dictionaries(dict.fromkeys(words[:8], values))
    whole = shaped(body, some) if body is not None else st.just({})
    right = st.builds(lambda fit, more: {**more, **fit}, whole, keyed) | st.builds(
        lambda fit, more: {**fit, **more}, whole, keyed
    )
    bodies = st.one_of(
        spoilt(right),
        spoilt(right),
        *(spoilt(shaped(kind, some)) for kind in shapes),
        *(st.builds(lambda key, fit: {key: fit}, some, spoilt(shaped(kind, some))) for kind in shapes),
        anything,
        spoilt(st.just({"spec": node.web})),
    ).map(lambda value: json.dumps(value).encode())
    odd = st.sampled_from([None, b"", b"{", b"[" * 100_000, b'{"a":' * 20_000, b"\xff\xfe", b'{"a":1e999}', b"null"])
    query = st.dictionaries(some, some.map(str) | numbers.map(str), max_size=3).map(_query)

    there = st.sampled_from(["web", "data", "a", "b", UUID, "xvda"])

    @st.composite
    def request(draw: st.DrawFn) -> tuple[str, str, bytes | None]:
        path = re.sub(r"\{[^}]*\}", lambda _: _quoted(draw(there | there | some)), route.path)
        return route.method, path + draw(st.just("") | query), draw(bodies | bodies | bodies | odd | st.binary())

    return request()


def _quoted(text: str) -> str:
    return urllib.parse.quote(text.encode("utf-8", "surrogatepass")[:4000], safe="") or "x"


def _query(values: dict[str, str]) -> str:
    pairs = (f"{_quoted(key)}={_quoted(value)}" for key, value in values.items())
    return "?" + "&".join(pairs)


def _memory() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def test_every_route_takes_any_request(node: FuzzedNode) -> None:
    files = _files(node)
    assert len(node.routes) > 80
    by_route = {f"{route.method} {route.path}": requests_of(route, node, files) for route in node.routes}
    assert all(isinstance(route.handler, Callable) for route in node.routes)  # type: ignore[arg-type]
    node.renew()
    before, memory, count = node.descriptors(), _memory(), 0

    @plenty(800)
    @given(st.sampled_from(sorted(by_route)).flatmap(by_route.__getitem__), VIA)
    def tried(request: tuple[str, str, bytes | None], via: str) -> None:
        nonlocal count
        note(f"{request[0]} {request[1][:200]} {(request[2] or b'')[:400]!r}")
        count += 1
        if not count % 20:
            node.renew()
        node.ask(*request, {"X-Veery-Node": via} if via else {}).judge()

    tried()
    assert node.descriptors(before + SLACK) <= before + SLACK
    assert _memory() - memory < GROWTH_MAX


def _files(node: FuzzedNode) -> list[str]:
    """Paths that a handler may be told to read or write."""
    (node.folder / "files" / "text").write_text("x\n")
    return [
        *(
            str(node.folder / "files" / name)
            for name in ("text", "kernel", "new", "a\nb", "a\x00b", "no/folder", "x" * 300)
        ),
        *(str(node.folder / "files"), "/dev/null", "/proc/self/none", "/dev/null/x", "/\x00", "/dev/full", "b", "web"),
    ]


VIA = st.sampled_from([*[""] * 9, "a", "b", "x"])  # the node that is to answer
LINES = st.sampled_from(
    [
        *(
            b"GET /v1/domains HTTP/1.1\r\n",
            b"POST /v1/domains HTTP/1.1\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"PUT * HTTP/9.9\r\n",
        ),
        *(b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999\r\n"),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"Upgrade: websocket\r\n",
            b"Expect: 100-continue\r\n",
        ),
        *(
            b"Content-Encoding: gzip\r\n",
            b"Content-Encoding: br\r\n",
            b"X-Veery-Node: b\r\n",
            b"X-Veery-By: \x1b[1m\r\n",
        ),
        *(b"Content-Type: multipart/form-data; boundary=\r\n", b"Sec-WebSocket-Key: x\r\n", b": x\r\n", b"A" * 9000),
        *(
            b"\r\n",
            b"\r\n\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffffff\r\n",
            b"{}",
            b"\x1f\x8b\x08",
            b"\x00",
        ),
        *(b"GET /v1/domains/web/console HTTP/1.1\r\n", b"GET /%ff%00 HTTP/1.1\r\n", b"GET http://[::1/ HTTP/1.1\r\n"),
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        + b"A" * 22
        + b"==\r\n",
    ]
)


def test_any_bytes_get_an_answer_or_an_end(node: FuzzedNode) -> None:
    before = node.descriptors()

    @plenty(250)
    @given(st.lists(LINES | st.binary(max_size=20), min_size=1, max_size=8).map(b"".join))
    def tried(data: bytes) -> None:
        answer = node.say(data)
        assert not answer.tracebacks, answer.tracebacks[0]
        assert answer.status != 500

    tried()
    assert node.descriptors(before + SLACK) <= before + SLACK


@pytest.mark.parametrize("path", sorted(KEPT.glob("api-*.json")), ids=lambda path: path.stem)
def test_requests_that_were_once_mishandled(node: FuzzedNode, path: Path) -> None:
    kept = json.loads(path.read_text())
    for each in kept:
        data = each["body"].encode("utf-8", "surrogatepass") if each["body"] is not None else None
        node.ask(each["method"], each["path"], data).judge()
