"""Routes of the store's upkeep."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import answer, body
from veery.node.storeupkeep import StoreUpkeep


class UpkeepRoutes:
    """What operators order; it goes on when the caller has left."""

    def __init__(self, upkeep: StoreUpkeep) -> None:
        self._upkeep = upkeep

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [web.post("/v1/store/defragment", self.defragment), web.post("/v1/etcd/restart", self.restart)]

    async def defragment(self, _: web.Request) -> web.Response:
        """Make room in every voter's file, one after the other."""
        return answer(await asyncio.shield(asyncio.ensure_future(self._upkeep.defragment())))

    async def restart(self, request: web.Request) -> web.Response:
        """Start this node's etcd anew."""
        data = await body(request)
        await asyncio.shield(asyncio.ensure_future(self._upkeep.restart(force=bool(data.get("force")))))
        return answer({})
