"""Routes for the upkeep of the store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.bodies import Force
from veery.api.route import bind
from veery.api.server import answer, order
from veery.api.table.nodes import UPKEEP
from veery.node.storeupkeep import StoreUpkeep


class UpkeepRoutes:
    """Routes for operators' orders. The work continues when the caller has disconnected."""

    def __init__(self, upkeep: StoreUpkeep) -> None:
        self._upkeep = upkeep

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(UPKEEP, self)

    async def defragment(self, _: web.Request) -> web.Response:
        """Defragment the file of every voter, one after the other."""
        return answer(await asyncio.shield(asyncio.ensure_future(self._upkeep.defragment())))

    async def restart(self, request: web.Request) -> web.Response:
        """Restart the etcd of this node."""
        wish = await order(request, Force)
        await asyncio.shield(asyncio.ensure_future(self._upkeep.restart(force=wish.force)))
        return answer({})
