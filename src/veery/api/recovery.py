"""Routes of a store that is recovered, and of votes in it. All but the votes need no store."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import answer, body, convert, require_direct
from veery.config.check import check_path
from veery.errors import Refused
from veery.host import tls
from veery.model.recovery import Aside
from veery.node.peers import Peers
from veery.node.stillness import Stillness
from veery.node.storerecovery import Recoverer, judge_aside
from veery.node.votes import Votes

VOTE_S = 110.0  # for another node's vote


class RecoveryRoutes:
    """Orders go on when the caller has left."""

    def __init__(self, node: str, recoverer: Recoverer, votes: Votes, stillness: Stillness, *, peers: Peers) -> None:
        """`node` is this one's name."""
        self._node, self._peers = node, peers
        self._recoverer, self._votes, self._stillness = recoverer, votes, stillness

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.post("/v1/vote", self.vote),
            web.post("/v1/nodes/{name}/vote", self.vote_of),
            web.get("/v1/recovery", self.word),
            web.post("/v1/recovery", self.recover),
            web.post("/v1/recovery/still", self.still),
            web.post("/v1/recovery/aside", self.aside),
        ]

    async def vote(self, request: web.Request) -> web.Response:
        """Give this node a vote, or have it give its vote up."""
        data = await body(request, on=bool)
        work = self._votes.on() if data["on"] else self._votes.off()
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def vote_of(self, request: web.Request) -> web.Response:
        """The same of another node, which carries it out."""
        name = request.match_info["name"]
        if name == self._node:
            return await self.vote(request)
        return answer(await self._peers.call(name, "POST", "/v1/vote", await body(request), deadline=VOTE_S))

    async def word(self, _: web.Request) -> web.Response:
        """What this node knows of the store."""
        return answer(await self._recoverer.word())

    async def recover(self, request: web.Request) -> web.Response:
        """Plan a recovery of the store on this node, or do it."""
        data = await body(request)
        lost, file = data.get("lost", []), data.get("file", "")
        if not isinstance(lost, list) or len(lost) > 1000 or not all(isinstance(name, str) for name in lost):
            raise Refused("lost is a list of nodes", hint="docs/api.md")
        if not isinstance(file, str):
            raise Refused("file is a path", hint="docs/api.md")
        if file:
            check_path("the copy", file)
        if data.get("plan"):
            return answer(await self._recoverer.plan(file, lost))
        return answer(await asyncio.shield(asyncio.ensure_future(self._recoverer.recover(file, lost))))

    async def still(self, request: web.Request) -> web.Response:
        """Stand still for a while: the node that calls recovers the store."""
        self._stillness.order(require_direct(request).node)
        return answer({})

    async def aside(self, request: web.Request) -> web.Response:
        """Give up our member of a store that is replaced, and ask the one on the node that calls."""
        caller = require_direct(request).node
        order = convert(await body(request), Aside)
        shown = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        still = self._stillness.holds_for(caller)
        if why := judge_aside(order, caller, tls.peer_addresses(shown), still=still):
            raise Refused(f"{self._node} does not stand aside: {why}", hint="veery cluster recover --plan")
        await asyncio.shield(asyncio.ensure_future(self._votes.aside(order)))
        return answer({})
