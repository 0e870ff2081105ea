"""The route that describes the API itself."""

from __future__ import annotations

from typing import Any

from veery.api.route import Privilege, Route

ABOUT = (
    Route(
        "GET",
        "/v1/openapi.json",
        "openapi",
        Privilege.LOOK,
        "Return the description of this API, in OpenAPI 3.1.",
        answer=dict[str, Any],
    ),
)
