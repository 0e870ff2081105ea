"""Routes for the health of nodes: the findings of their sensors, and an operator's word that a node is well."""

from __future__ import annotations

from aiohttp import web

from veery.api.bodies import Well
from veery.api.route import bind
from veery.api.server import CALLER, answer, author, forward, order
from veery.api.table.nodes import HEALTH
from veery.cluster.keys import HEALTHS
from veery.cluster.store import Store
from veery.errors import Refused
from veery.ha import moverecord
from veery.node.health import Health
from veery.node.peers import Peers


class HealthRoutes:
    """Routes for the health of this node and of others, and for all verdicts in the store."""

    def __init__(self, node: str, health: Health, store: Store, *, peers: Peers) -> None:
        self._node, self._health, self._store, self._peers = node, health, store, peers

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(HEALTH, self)

    async def verdicts(self, _: web.Request) -> web.Response:
        """Return the health record of each node from the store."""
        return answer(await HEALTHS.readable(self._store))

    async def moves(self, _: web.Request) -> web.Response:
        """Return the moves that verdicts caused, each with its forecast and its end."""
        return answer(await moverecord.records(self._store))

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Return the present health of one node, from its own veeryd."""
        if (name := request.match_info["name"]) != self._node:
            return await self._forwarded(request, name)
        return answer(self._health.told())

    async def well(self, request: web.Request) -> web.StreamResponse:
        """Declare a node, or the reading of one of its sensors, well."""
        if (name := request.match_info["name"]) != self._node:
            return await self._forwarded(request, name)
        wish = await order(request, Well)
        return answer(self._health.well(wish.sensor, author(request, wish.by)))

    async def _forwarded(self, request: web.Request, name: str) -> web.StreamResponse:
        if not request[CALLER].local:  # the forwarding node took this node for `name`
            raise Refused(f"this is {self._node}, not {name!a}", hint="veery node list")
        return await forward(request, self._peers, name)
