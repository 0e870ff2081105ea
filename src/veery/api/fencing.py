"""Routes for fences: the cluster's orders, a storage node's part, and the report of a fenced node."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.bodies import AdmitNode, Signed
from veery.api.route import bind
from veery.api.server import answer, author, order
from veery.api.table.recovery import FENCES
from veery.errors import Refused
from veery.node.fencing import Fencing
from veery.node.guard import Guard
from veery.node.storage_heartbeats import HeartbeatWatcher
from veery.node.witness import Witness


class FencingRoutes:
    """Routes for the leader, operators and nodes."""

    def __init__(
        self, fencing: Fencing, standing: Witness, guard: Guard | None, watcher: HeartbeatWatcher | None
    ) -> None:
        """`guard` is None on a node without domains, `watcher` on a node without volumes."""
        self._fencing, self._standing, self._guard, self._watcher = fencing, standing, guard, watcher

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(FENCES, self)

    async def list(self, _: web.Request) -> web.Response:
        """Return all fences."""
        return answer(await self._fencing.list())

    async def show(self, request: web.Request) -> web.Response:
        """Return the fence of one node."""
        return answer(await self._fencing.show(request.match_info["name"]))

    async def begin(self, request: web.Request) -> web.Response:
        """Fence a node: keep it from the disks."""
        wish = await order(request, Signed)
        return answer(await self._fencing.begin(request.match_info["name"], by=author(request, wish.by)))

    async def confirm(self, request: web.Request) -> web.Response:
        """Record an operator's confirmation that a node is off."""
        wish = await order(request, Signed)
        return answer(await self._fencing.confirm(request.match_info["name"], by=author(request, wish.by)))

    async def test(self, request: web.Request) -> web.Response:
        """Return for each fence method whether it would work."""
        return answer(await self._fencing.test(request.match_info["name"]))

    async def lift(self, request: web.Request) -> web.Response:
        """Lift the fence of a node."""
        return answer(await self._fencing.lift(request.match_info["name"]))

    async def cut(self, request: web.Request) -> web.Response:
        """On a storage node: shut out a node, with proof, even if the caller disconnects."""
        work = self._fencing.cut(request.match_info["name"])
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def proof(self, request: web.Request) -> web.Response:
        """On a storage node: return whether a node is shut out."""
        return answer(await self._fencing.proof(request.match_info["name"]))

    async def admit(self, request: web.Request) -> web.Response:
        """On a storage node: admit a node again."""
        wish = await order(request, AdmitNode)
        work = self._fencing.admit(request.match_info["name"], wish.revision)
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def clean(self, _: web.Request) -> web.Response:
        """Return the domains that run here, and the stale copies among them."""
        return answer(await self._fencing.clean())

    async def standing(self, request: web.Request) -> web.Response:
        """Return whether this etcd knows a leader, and whether the targets admit an initiator. Needs no store."""
        return answer(await self._standing.word(request.match_info["initiator"]))

    async def guard(self, _: web.Request) -> web.Response:
        """Return the present ruling of this node's guard."""
        if self._guard is None:
            raise Refused("this node has no guard", hint="only hypervisors have one, unless guard.end is 0")
        ruling = self._guard.ruling
        return answer(
            {
                "stance": ruling.stance,
                "reason": ruling.reason,
                "held": self._guard.held(),
                "stopped": self._guard.stopped,
            }
        )

    async def heartbeats(self, _: web.Request) -> web.Response:
        """On a storage node: return the age of each heartbeat. Needs no store."""
        if self._watcher is None:
            raise Refused("this node receives no heartbeats", hint="ask a storage node: veery node list")
        return answer(self._watcher.told())
