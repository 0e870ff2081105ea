"""Routes for the recovery of the store, and for votes in it. Only the votes need the store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.bodies import Recover, Switch
from veery.api.errors import possible
from veery.api.route import bind
from veery.api.server import answer, body, checked, order, require_direct
from veery.api.table.recovery import RECOVERY
from veery.config.check import check_path
from veery.errors import Refused
from veery.host import tls
from veery.model.recovery import Aside
from veery.node.peers import Peers
from veery.node.stillness import Stillness
from veery.node.storerecovery import Recoverer, judge_aside
from veery.node.votes import Votes

VOTE_DEADLINE_S = 110.0  # for the vote of another node


class RecoveryRoutes:
    """Routes of recovery and votes. Orders continue when the caller has disconnected."""

    def __init__(self, node: str, recoverer: Recoverer, votes: Votes, stillness: Stillness, *, peers: Peers) -> None:
        """`node` is the name of this node."""
        self._node, self._peers = node, peers
        self._recoverer, self._votes, self._stillness = recoverer, votes, stillness

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(RECOVERY, self)

    async def vote(self, request: web.Request) -> web.Response:
        """Give this node a vote, or take its vote away."""
        wish = await order(request, Switch)
        work = self._votes.on() if wish.on else self._votes.off()
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def vote_of(self, request: web.Request) -> web.Response:
        """Give another node a vote, or take its vote away. That node carries out the order."""
        name = request.match_info["name"]
        if name == self._node:
            return await self.vote(request)
        data = await body(request)
        checked(data, Switch)
        return answer(await self._peers.call(name, "POST", "/v1/vote", data, deadline=VOTE_DEADLINE_S))

    async def word(self, _: web.Request) -> web.Response:
        """Return what this node knows of the store."""
        return answer(await self._recoverer.word())

    async def recover(self, request: web.Request) -> web.Response:
        """Plan or carry out a recovery of the store on this node."""
        wish = await order(request, Recover)
        if wish.file:
            with possible():
                check_path("the copy", wish.file)
        if wish.plan:
            return answer(await self._recoverer.plan(wish.file, wish.lost))
        return answer(await asyncio.shield(asyncio.ensure_future(self._recoverer.recover(wish.file, wish.lost))))

    async def still(self, request: web.Request) -> web.Response:
        """Keep this node still for a while, because the calling node recovers the store."""
        self._stillness.order(require_direct(request).node)
        return answer({})

    async def aside(self, request: web.Request) -> web.Response:
        """Give up this node's etcd member of a replaced store, and use the store on the calling node."""
        caller = require_direct(request).node
        wish = await order(request, Aside)
        shown = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        still = self._stillness.holds_for(caller)
        if why := judge_aside(wish, caller, tls.peer_addresses(shown), still=still):
            raise Refused(f"{self._node} does not stand aside: {why}", hint="veery cluster recover --plan")
        await asyncio.shield(asyncio.ensure_future(self._votes.aside(wish)))
        return answer({})
