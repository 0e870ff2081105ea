"""The room of the route that describes the API itself."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api import openapi
from veery.api.route import bind
from veery.api.table.about import ABOUT


class AboutRoutes:
    """The description is made at the first request: it takes some 0.2 s."""

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(ABOUT, self)

    async def openapi(self, _: web.Request) -> web.Response:
        """Return the description of the API."""
        return web.Response(body=await asyncio.to_thread(openapi.text), content_type="application/json")
