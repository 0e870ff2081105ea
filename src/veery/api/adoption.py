"""Routes for a restored store: the inventory of a node, and the adoption of the store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.bodies import Adopt
from veery.api.route import bind
from veery.api.server import AUTHOR_MAX, answer, order, words
from veery.api.table.recovery import ADOPTION
from veery.node.adoption import Adopter


class AdoptionRoutes:
    """Routes of the adoption. They also answer while the store is not trusted."""

    def __init__(self, adopter: Adopter) -> None:
        self._adopter = adopter

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(ADOPTION, self)

    async def inventory(self, _: web.Request) -> web.Response:
        """Return the inventory of this node."""
        return answer(await self._adopter.inventory())

    async def adopt(self, request: web.Request) -> web.Response:
        """Plan or carry out the adoption. It continues when the caller has disconnected."""
        wish = await order(request, Adopt)
        if wish.plan:
            _, made = await self._adopter.plan(wish.lost)
            return answer({"changes": made.changes, "refusals": made.refusals, "incarnation": ""})
        work = asyncio.ensure_future(self._adopter.adopt(wish.lost, by=words(wish.by, AUTHOR_MAX)))
        made, new = await asyncio.shield(work)
        return answer({"changes": made.changes, "refusals": (), "incarnation": new})
