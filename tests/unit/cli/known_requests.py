"""Checks that the requests of commands are in the API's table of routes."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, urlsplit

from veery.api.route import Form
from veery.api.server import checked
from veery.api.table import ROUTES

PATTERNS = [(route, re.compile(re.sub(r"{\w+}", "[^/]*", route.path))) for route in ROUTES]


def check_request(method: str, path: str, body: bytes) -> None:
    """Fail unless the table has the route, its query and its body."""
    split = urlsplit(path)
    found = [route for route, pattern in PATTERNS if route.method == method and pattern.fullmatch(split.path)]
    assert found, f"no route {method} {path}"
    route = found[0]
    assert {name for name, _ in parse_qsl(split.query)} <= {each.name for each in route.query}, path
    if route.body is not None:
        data = json.loads(body or b"{}")
        checked(data, route.body)
        assert set(data) <= set(route.body.__dataclass_fields__), (path, data)
    elif route.takes is Form.JSON:
        assert json.loads(body or b"{}") == {}, path
