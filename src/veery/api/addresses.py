"""Routes that change a member of the cluster: its address and its storage role; and a check of ports from this node."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import answer, body
from veery.errors import Refused
from veery.node import reach
from veery.node.addresschange import AddressChange
from veery.node.peers import Peers
from veery.node.storagerole import StorageRole

READDRESS_DEADLINE_S = 290.0  # for the change of another node
ROLE_DEADLINE_S = 50.0


class AddressRoutes:
    """Routes of addresses and roles. The node in the path runs an order, even if the caller disconnects."""

    def __init__(self, node: str, change: AddressChange, storage: StorageRole, *, peers: Peers) -> None:
        """`node` is the name of this node."""
        self._node, self._change, self._storage, self._peers = node, change, storage, peers

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/nodes/{name}/readdress", self.readdress),
            web.post("/v1/nodes/{name}/storage", self.storage),
            web.post("/v1/reach", self.reach),
        ]

    async def readdress(self, request: web.Request) -> web.Response:
        """Plan or carry out a change of a node's address."""
        name, data = request.match_info["name"], await body(request, address=str)
        if name != self._node:
            path = f"/v1/nodes/{name}/readdress"
            return answer(await self._peers.call(name, "POST", path, data, deadline=READDRESS_DEADLINE_S))
        if data.get("plan"):
            return answer(await self._change.plan(data["address"]))
        return answer(await asyncio.shield(asyncio.ensure_future(self._change.change(data["address"]))))

    async def storage(self, request: web.Request) -> web.Response:
        """Give a node the storage role, or take it away."""
        name, data = request.match_info["name"], await body(request, on=bool)
        if name != self._node:
            return answer(
                await self._peers.call(name, "POST", f"/v1/nodes/{name}/storage", data, deadline=ROLE_DEADLINE_S)
            )
        work = self._storage.on() if data["on"] else self._storage.off()
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def reach(self, request: web.Request) -> web.Response:
        """Return the ports of an address that this node cannot reach."""
        data = await body(request, address=str, ports=list)
        if not all(isinstance(port, int) for port in data["ports"]):
            raise Refused("ports must be a list of numbers", hint="docs/api.md")
        return answer({"missing": await reach.missing(data["address"], data["ports"])})
