"""Routes for a restored store: the inventory of a node, and the adoption of the store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import AUTHOR_MAX, answer, body, words
from veery.errors import Refused
from veery.node.adoption import Adopter


class AdoptionRoutes:
    """Routes of the adoption. They also answer while the store is not trusted."""

    def __init__(self, adopter: Adopter) -> None:
        self._adopter = adopter

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/v1/inventory", self.inventory), web.post("/v1/adopt", self.adopt)]

    async def inventory(self, _: web.Request) -> web.Response:
        """Return the inventory of this node."""
        return answer(await self._adopter.inventory())

    async def adopt(self, request: web.Request) -> web.Response:
        """Plan or carry out the adoption. It continues when the caller has disconnected."""
        data = await body(request)
        lost = data.get("lost", [])
        if not isinstance(lost, list) or len(lost) > 1000 or not all(isinstance(name, str) for name in lost):
            raise Refused("lost must be a list of node names", hint="docs/api.md")
        if data.get("plan"):
            _, made = await self._adopter.plan(lost)
            return answer({"changes": made.changes, "refusals": made.refusals, "incarnation": ""})
        work = asyncio.ensure_future(self._adopter.adopt(lost, by=words(data, "by", AUTHOR_MAX)))
        made, new = await asyncio.shield(work)
        return answer({"changes": made.changes, "refusals": (), "incarnation": new})
