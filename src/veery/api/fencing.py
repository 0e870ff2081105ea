"""Routes of fences: the cluster's, a storage node's part in them, and what a fenced node says of itself."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.server import CALLER, answer, body
from veery.errors import Refused
from veery.node.fencing import Fencing
from veery.node.guard import Guard
from veery.node.storage_heartbeats import HeartbeatWatcher
from veery.node.witness import Witness


class FencingRoutes:
    """What the leader, operators and the nodes themselves ask."""

    def __init__(
        self, fencing: Fencing, standing: Witness, guard: Guard | None, watcher: HeartbeatWatcher | None
    ) -> None:
        """`guard` is None where no domains run, `watcher` where no volumes are."""
        self._fencing, self._standing, self._guard, self._watcher = fencing, standing, guard, watcher

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        one = "/v1/fences/{name}"
        return [
            web.get("/v1/fences", self.list),
            web.get(one, self.show),
            web.post(one, self.begin),
            web.delete(one, self.lift),
            web.post(f"{one}/confirm", self.confirm),
            web.get(f"{one}/test", self.test),
            web.post(f"{one}/cut", self.cut),
            web.get(f"{one}/cut", self.proof),
            web.post(f"{one}/admit", self.admit),
            web.get("/v1/clean", self.clean),
            web.get("/v1/standing/{initiator}", self.standing),
            web.get("/v1/guard", self.guard),
            web.get("/v1/heartbeats", self.heartbeats),
        ]

    async def list(self, _: web.Request) -> web.Response:
        """All that stand."""
        return answer(await self._fencing.list())

    async def show(self, request: web.Request) -> web.Response:
        """One."""
        return answer(await self._fencing.show(request.match_info["name"]))

    async def begin(self, request: web.Request) -> web.Response:
        """Keep a node from the disks."""
        data = await body(request)
        return answer(await self._fencing.begin(request.match_info["name"], by=_who(request, data)))

    async def confirm(self, request: web.Request) -> web.Response:
        """A person's word."""
        data = await body(request)
        return answer(await self._fencing.confirm(request.match_info["name"], by=_who(request, data)))

    async def test(self, request: web.Request) -> web.Response:
        """Whether each way would work."""
        return answer(await self._fencing.test(request.match_info["name"]))

    async def lift(self, request: web.Request) -> web.Response:
        """Let it in again."""
        return answer(await self._fencing.lift(request.match_info["name"]))

    async def cut(self, request: web.Request) -> web.Response:
        """On a storage node: shut the node out, with proof; it goes on when the caller has left."""
        work = self._fencing.cut(request.match_info["name"])
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def proof(self, request: web.Request) -> web.Response:
        """On a storage node: whether it is shut out."""
        return answer(await self._fencing.proof(request.match_info["name"]))

    async def admit(self, request: web.Request) -> web.Response:
        """On a storage node: let it in again."""
        data = await body(request, revision=int)
        work = self._fencing.admit(request.match_info["name"], data["revision"])
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def clean(self, _: web.Request) -> web.Response:
        """What runs here, and what of it must not."""
        return answer(await self._fencing.clean())

    async def standing(self, request: web.Request) -> web.Response:
        """Whether we know a leader of the store, and whether our targets let an initiator in. Needs no store."""
        return answer(await self._standing.word(request.match_info["initiator"]))

    async def guard(self, _: web.Request) -> web.Response:
        """What this node's guard has its domains do."""
        if self._guard is None:
            raise Refused("no guard is at work here", hint="only hypervisors have one, unless guard.end is 0")
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
        """On a storage node: how old each node's last heartbeat is. Needs no store."""
        if self._watcher is None:
            raise Refused("no heartbeats are written to this node", hint="ask a storage node: veery node list")
        return answer(self._watcher.told())


def _who(request: web.Request, data: dict[str, object]) -> str:
    """Who orders, for the record: the name that the order gives, and where it came in."""
    return f"{data.get('by') or 'root'}@{request[CALLER]}"
