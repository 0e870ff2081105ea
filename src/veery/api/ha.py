"""Routes of the brain: what is asked of it and why it does what it does; and the orders that it gives to nodes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import web

from veery.api.server import CALLER, Handler, Lines, answer, body, convert, forward
from veery.errors import Failed, Refused, VeeryError
from veery.ha import groups, journal, orders
from veery.model.ha import GroupKind, Policy, Ticket
from veery.node.ha_service import HaService
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.recovery import Recovery


class HaRoutes:
    """What operators and the leader ask. Questions to the brain are sent on to the node that leads."""

    def __init__(self, ha_service: HaService, recovery: Recovery, *, peers: Peers, node_cache: NodeCache) -> None:
        self._ha_service, self._recovery = ha_service, recovery
        self._peers, self._node_cache = peers, node_cache

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        node = "/v1/nodes/{name}"
        return [
            web.get("/v1/reading", self.reading),
            web.post("/v1/tickets", self.start),
            web.post("/v1/domains/{ref}/end", self.end),
            web.get("/v1/ha", self.list),
            web.get("/v1/ha/{domain}", self.show),
            web.post("/v1/ha/{domain}", self.set),
            web.get("/v1/groups", self.groups),
            web.post("/v1/groups/{group}", self.set_group),
            web.delete("/v1/groups/{group}", self.delete_group),
            web.get("/v1/cluster", self._led(self.status)),
            web.get("/v1/why/{name}", self._led(self.why)),
            web.get(f"{node}/drain", self._led(self.progress)),
            web.post(f"{node}/drain", self._led(self.drain)),
            web.post(f"{node}/resume", self._led(self.resume)),
            web.post("/v1/disarm", self.disarm),
            web.post("/v1/arm", self.arm),
            web.get("/v1/events", self.events),
            web.post("/v1/events/follow", self.follow),
        ]

    # ---- orders of the brain
    async def reading(self, _: web.Request) -> web.Response:
        """This node."""
        return answer(await self._recovery.reading())

    async def start(self, request: web.Request) -> web.Response:
        """Start a domain by ticket; it goes on when the caller has left."""
        ticket = convert(await body(request), Ticket)
        return answer(await asyncio.shield(asyncio.ensure_future(self._recovery.start(ticket))))

    async def end(self, request: web.Request) -> web.Response:
        """End one run of a domain."""
        boot = (await body(request, boot=str))["boot"]
        await asyncio.shield(asyncio.ensure_future(self._recovery.end(request.match_info["ref"], boot)))
        return answer({})

    # ---- what is asked for
    async def list(self, _: web.Request) -> web.Response:
        """All policies."""
        return answer(await self._ha_service.policies())

    async def show(self, request: web.Request) -> web.Response:
        """One."""
        return answer(await self._ha_service.policy(request.match_info["domain"]))

    async def set(self, request: web.Request) -> web.Response:
        """Ask for something."""
        data = await body(request, policy=str)
        if data["policy"] not in tuple(Policy):
            raise Refused(f"no policy {data['policy']!r}", hint=f"one of {', '.join(Policy)}")
        record = await orders.set_policy(
            self._ha_service.store,
            request.match_info["domain"],
            Policy(data["policy"]),
            priority=_number(data, "priority", int),
            group=_text(data, "group"),
            max_restarts=_number(data, "max_restarts", int),
            delay=_number(data, "delay", float),
        )
        return answer(record)

    async def groups(self, _: web.Request) -> web.Response:
        """All groups."""
        return answer(await groups.every(self._ha_service.store))

    async def set_group(self, request: web.Request) -> web.Response:
        """Set a group's rule."""
        data = await body(request)
        kind, nodes, strict = _text(data, "kind"), data.get("nodes"), data.get("strict")
        if kind is not None and kind not in tuple(GroupKind):
            raise Refused(f"no kind of group {kind!r}", hint=f"one of {', '.join(GroupKind)}")
        if nodes is not None and not (isinstance(nodes, list) and all(isinstance(each, str) for each in nodes)):
            raise Refused(f"nodes is a list of names, not {nodes!r}", hint="see docs/api.md")
        if strict is not None and not isinstance(strict, bool):
            raise Refused(f"strict is true or false, not {strict!r}", hint="see docs/api.md")
        name = request.match_info["group"]
        rule = await groups.assign(
            self._ha_service.store, name, kind=GroupKind(kind) if kind else None, nodes=nodes, strict=strict
        )
        return answer(rule)

    async def delete_group(self, request: web.Request) -> web.Response:
        """Take a group's rule away."""
        await groups.delete(self._ha_service.store, request.match_info["group"])
        return answer({})

    # ---- the brain
    async def status(self, _: web.Request) -> web.Response:
        """The cluster."""
        return answer(await self._ha_service.status())

    async def why(self, request: web.Request) -> web.Response:
        """A node or a domain, in sentences."""
        return answer({"lines": self._ha_service.why(request.match_info["name"])})

    async def progress(self, request: web.Request) -> web.Response:
        """A drain or resume under way."""
        return answer(await self._ha_service.progress(request.match_info["name"]))

    async def drain(self, request: web.Request) -> web.Response:
        """Empty a node, or (plan) tell what that would come to."""
        data, name = await body(request), request.match_info["name"]
        if data.get("plan"):
            return answer(await self._ha_service.plan(name, forecast=True))
        work = self._ha_service.drain(name, by=_who(request, data), force=bool(data.get("force")))
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def resume(self, request: web.Request) -> web.Response:
        """Put a node to use again."""
        data = await body(request)
        work = self._ha_service.resume(request.match_info["name"], by=_who(request, data), home=bool(data.get("home")))
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def disarm(self, request: web.Request) -> web.Response:
        """Let the brain do nothing."""
        data = await body(request)
        await self._ha_service.disarm(by=_who(request, data), reason=str(data.get("reason") or ""))
        return answer({})

    async def arm(self, _: web.Request) -> web.Response:
        """Let it decide again."""
        await self._ha_service.arm()
        return answer({})

    async def events(self, request: web.Request) -> web.Response:
        """The last ?count=N."""
        count = request.query.get("count", "50")
        if not count.isdigit():
            raise Refused(f"count is a whole number, not {count!r}", hint="see docs/api.md")
        return answer(await journal.last(self._ha_service.records, int(count)))

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Each as it happens, until the caller leaves."""
        async with Lines(request) as lines:
            await lines.follow(journal.follow(self._ha_service.store))
        return lines.response

    # ---- inside
    def _led(self, handler: Any) -> Handler:
        """`handler` on the node that leads. Where nobody leads any brain answers, this node's before others'."""

        async def led(request: web.Request) -> web.StreamResponse:
            sight = self._ha_service
            if sight.leads() or not request[CALLER].local:
                return await _answered(handler, request)
            try:
                leader = await sight.leader()
            except VeeryError:
                leader = ""
            if leader and leader != sight.node:
                try:
                    return await forward(request, self._peers, leader)
                except Refused:
                    pass  # it has just died, and no other has taken its place yet
            if sight.brain is not None:
                return await _answered(handler, request)
            for name in self._node_cache.voters():
                with contextlib.suppress(Refused):
                    return await forward(request, self._peers, name)
            raise Failed("no voter answers", hint="veery node list; veeryd must run on most voters")

        return led


async def _answered(handler: Any, request: web.Request) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    return response


def _who(request: web.Request, data: dict[str, Any]) -> str:
    return f"{data.get('by') or 'root'}@{request[CALLER]}"


def _text(data: dict[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{key} is a text, not {value!r}", hint="see docs/api.md")
    return value


def _number(data: dict[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise Refused(f"{key} is a number, not {value!r}", hint="see docs/api.md")
    return kind(value)
