"""Routes that change a member of the cluster: its address and its storage role; and a check of ports from this node."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.bodies import Reach, Readdress, Switch
from veery.api.route import bind
from veery.api.server import answer, body, checked, order
from veery.api.table.nodes import ADDRESSES
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
        return bind(ADDRESSES, self)

    async def readdress(self, request: web.Request) -> web.Response:
        """Plan or carry out a change of a node's address."""
        name, data = request.match_info["name"], await body(request)
        wish = checked(data, Readdress)
        if name != self._node:
            path = f"/v1/nodes/{name}/readdress"
            return answer(await self._peers.call(name, "POST", path, data, deadline=READDRESS_DEADLINE_S))
        if wish.plan:
            return answer(await self._change.plan(wish.address))
        return answer(await asyncio.shield(asyncio.ensure_future(self._change.change(wish.address))))

    async def storage(self, request: web.Request) -> web.Response:
        """Give a node the storage role, or take it away."""
        name, data = request.match_info["name"], await body(request)
        wish = checked(data, Switch)
        if name != self._node:
            return answer(
                await self._peers.call(name, "POST", f"/v1/nodes/{name}/storage", data, deadline=ROLE_DEADLINE_S)
            )
        work = self._storage.on() if wish.on else self._storage.off()
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def reach(self, request: web.Request) -> web.Response:
        """Return the ports of an address that this node cannot reach."""
        wish = await order(request, Reach)
        return answer({"missing": await reach.missing(wish.address, wish.ports)})
