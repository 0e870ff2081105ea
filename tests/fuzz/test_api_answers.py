"""The answers of a whole daemon, against the table of routes: their types, and the status of each error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_node import FuzzedNode

from veery.api.route import Form
from veery.api.table import ROUTES


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedNode]:
    made = FuzzedNode(tmp_path_factory.mktemp("answers"))
    yield made
    made.close()


def test_every_answer_has_the_type_of_its_row(node: FuzzedNode) -> None:
    node.renew()
    named = {"ref": "web", "name": "a", "group": "g", "domain": "web", "initiator": "x", "move": "x", "id": "x"}
    good = []
    for route in ROUTES:
        if route.method == "GET" and route.form is Form.JSON:
            names = {**named, "name": "data"} if route.path.startswith("/v1/volumes") else named
            path = route.path.format(**names)
            for query in ("", *(f"?{each.name}={each.value or 'a'}" for each in route.query)):
                answer = node.ask("GET", path + query, None)
                answer.judge()
                if answer.status == 200:
                    good.append(route.path + query)
    assert len(good) > 30


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "word"),
    [
        ("GET", "/v1/domains/nowhere", None, 404, "not-found"),
        ("GET", "/v1/volumes/nowhere", None, 404, "not-found"),
        ("POST", "/v1/fences/nowhere", None, 404, "not-found"),
        ("DELETE", "/v1/tokens/nowhere", None, 404, "not-found"),
        ("GET", "/v1/moves/nowhere", None, 404, "not-found"),
        ("DELETE", "/v1/domains/web/disks/xvdz", None, 404, "not-found"),
        ("GET", "/v1/nowhere", None, 404, "no-route"),
        ("PUT", "/v1/domains", None, 405, "no-route"),
        ("POST", "/v1/domains/web/rename", b"{}", 400, "malformed"),
        ("GET", "/v1/events?count=x", None, 400, "malformed"),
        ("GET", "/v1/volumes/data/content?offset=x", None, 400, "malformed"),
        ("POST", "/v1/volumes", b'{"name":"x","size":1,"backing":"tape","node":"a"}', 400, "malformed"),
        ("POST", "/v1/domains", b'{"spec":{"name":"a b"}}', 422, "malformed"),
        ("DELETE", "/v1/domains/web", None, 409, "refused"),
    ],
)
def test_statuses(node: FuzzedNode, method: str, path: str, data: bytes | None, status: int, word: str) -> None:
    node.renew()
    answer = node.ask(method, path, data)
    answer.judge()
    told = json.loads(answer.body)
    assert (answer.status, told["type"]) == (status, f"urn:veery:problem:{word}"), told


ORDERS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/domains/web/pause", None),
    ("POST", "/v1/domains/web/unpause", {}),
    ("POST", "/v1/domains/web/memory", {"mebibytes": 32}),
    ("POST", "/v1/domains/web/rename", {"name": "web2"}),
    ("POST", "/v1/domains/web2/rename", {"name": "web"}),
    ("POST", "/v1/domains/web/disks", {"disk": {"vdev": "xvdb", "target": "FILES/text", "readwrite": False}}),
    ("DELETE", "/v1/domains/web/disks/xvdb", None),
    ("POST", "/v1/domains/web/plan", {"target": "b"}),
    ("POST", "/v1/domains/web/migrate", {"target": "b", "settings": {}}),
    ("POST", "/v1/evacuate", {"domains": ["web"], "targets": ["b"]}),
    ("POST", "/v1/ha/web", {"policy": "off", "priority": 3, "group": "g"}),
    ("POST", "/v1/groups/g", {"kind": "apart", "nodes": ["a"], "strict": False}),
    ("POST", "/v1/ha/web", {"policy": "off", "group": ""}),
    ("DELETE", "/v1/groups/g", None),
    ("POST", "/v1/disarm", {"by": "x", "reason": "y"}),
    ("POST", "/v1/arm", None),
    ("POST", "/v1/tokens", None),
    ("POST", "/v1/nodes/a/well", {"by": "x"}),
    ("POST", "/v1/fences/b", {"by": "x"}),
    ("GET", "/v1/fences/b", None),
    ("POST", "/v1/fences/b/confirm", {}),
    ("POST", "/v1/reach", {"address": "127.0.0.1", "ports": [1]}),
    ("POST", "/v1/adopt", {"plan": True, "lost": ["b"]}),
    ("POST", "/v1/recovery", {"plan": True}),
    ("POST", "/v1/volumes/data/settle", {}),
    ("POST", "/v1/volumes/data/resized", {"size": 1 << 21}),
    ("GET", "/v1/volumes/data/extents", None),
    ("POST", "/v1/events/follow", None),
]


def test_the_answer_of_an_order_has_the_type_of_its_row(tmp_path: Path) -> None:
    node = FuzzedNode(tmp_path)
    files = tmp_path / "files"
    (files / "text").write_text("x\n")
    try:
        node.renew()
        for method, path, order in ORDERS:
            data = json.dumps(order).replace("FILES", str(files)).encode() if order is not None else None
            answer = node.ask(method, path, data)
            answer.judge()
            assert answer.status == 200, (path, answer.body[:500])
    finally:
        node.close()
