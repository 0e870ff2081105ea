"""Routes of what a node is in the cluster: its address, whether ports are reached from here, its role as a storage
node."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import answer, body
from veery.errors import Refused
from veery.node import reach
from veery.node.addresschange import AddressChange
from veery.node.peers import Peers
from veery.node.storagerole import StorageRole

CHANGE_S = 290.0  # for another node's change
ROLE_S = 50.0


class AddressRoutes:
    """An order goes on when the caller has left; it is carried out on the node that it is about."""

    def __init__(self, node: str, change: AddressChange, storage: StorageRole, *, peers: Peers) -> None:
        """`node` is this one's name."""
        self._node, self._change, self._storage, self._peers = node, change, storage, peers

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.post("/v1/nodes/{name}/readdress", self.readdress),
            web.post("/v1/nodes/{name}/storage", self.storage),
            web.post("/v1/reach", self.reach),
        ]

    async def readdress(self, request: web.Request) -> web.Response:
        """Plan a change of a node's address, or do it."""
        name, data = request.match_info["name"], await body(request, address=str)
        if name != self._node:
            path = f"/v1/nodes/{name}/readdress"
            return answer(await self._peers.call(name, "POST", path, data, deadline=CHANGE_S))
        if data.get("plan"):
            return answer(await self._change.plan(data["address"]))
        return answer(await asyncio.shield(asyncio.ensure_future(self._change.change(data["address"]))))

    async def storage(self, request: web.Request) -> web.Response:
        """Make a node a storage node, or none any more."""
        name, data = request.match_info["name"], await body(request, on=bool)
        if name != self._node:
            return answer(await self._peers.call(name, "POST", f"/v1/nodes/{name}/storage", data, deadline=ROLE_S))
        work = self._storage.on() if data["on"] else self._storage.off()
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def reach(self, request: web.Request) -> web.Response:
        """Which ports of an address are not reached from here."""
        data = await body(request, address=str, ports=list)
        if not all(isinstance(port, int) for port in data["ports"]):
            raise Refused("ports is a list of numbers", hint="docs/api.md")
        return answer({"missing": await reach.missing(data["address"], data["ports"])})
