"""Routes for a store that was restored: what runs on a node, and adopting the store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import answer, body
from veery.errors import Refused
from veery.node.adoption import Adopter


class AdoptionRoutes:
    """They answer also while the store is doubted."""

    def __init__(self, adopter: Adopter) -> None:
        self._adopter = adopter

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [web.get("/v1/inventory", self.inventory), web.post("/v1/adopt", self.adopt)]

    async def inventory(self, _: web.Request) -> web.Response:
        """What runs here."""
        return answer(await self._adopter.inventory())

    async def adopt(self, request: web.Request) -> web.Response:
        """Plan it, or do it; it goes on when the caller has left."""
        data = await body(request)
        lost = data.get("lost", [])
        if not isinstance(lost, list) or len(lost) > 1000 or not all(isinstance(name, str) for name in lost):
            raise Refused("lost is a list of nodes", hint="docs/api.md")
        if data.get("plan"):
            _, made = await self._adopter.plan(lost)
            return answer({"changes": made.changes, "refusals": made.refusals, "incarnation": ""})
        work = asyncio.ensure_future(self._adopter.adopt(lost, by=str(data.get("by", ""))[:100]))
        made, new = await asyncio.shield(work)
        return answer({"changes": made.changes, "refusals": (), "incarnation": new})
