"""Routes of the brain: policies, status and reasons for users, and its orders to the nodes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import web

from veery.api.server import CALLER, Handler, Lines, answer, author, body, convert, forward, words
from veery.errors import Failed, Refused, VeeryError
from veery.ha import groups, journal, orders
from veery.model.ha import GroupKind, Policy, Ticket
from veery.node.ha_service import HaService
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.recovery import Recovery

REASON_MAX = 500  # characters of the reason in an order


class HaRoutes:
    """Routes for operators and the leader. Questions to the brain are forwarded to the node that leads."""

    def __init__(self, ha_service: HaService, recovery: Recovery, *, peers: Peers, node_cache: NodeCache) -> None:
        self._ha_service, self._recovery = ha_service, recovery
        self._peers, self._node_cache = peers, node_cache

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
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
        """Return the reading of this node."""
        return answer(await self._recovery.reading())

    async def start(self, request: web.Request) -> web.Response:
        """Start a domain by ticket. The start continues when the caller has disconnected."""
        ticket = convert(await body(request), Ticket)
        return answer(await asyncio.shield(asyncio.ensure_future(self._recovery.start(ticket))))

    async def end(self, request: web.Request) -> web.Response:
        """Stop one instance of a domain."""
        boot = (await body(request, boot=str))["boot"]
        await asyncio.shield(asyncio.ensure_future(self._recovery.end(request.match_info["ref"], boot)))
        return answer({})

    # ---- policies
    async def list(self, _: web.Request) -> web.Response:
        """Return all policies."""
        return answer(await self._ha_service.policies())

    async def show(self, request: web.Request) -> web.Response:
        """Return the policy of one domain."""
        return answer(await self._ha_service.policy(request.match_info["domain"]))

    async def set(self, request: web.Request) -> web.Response:
        """Set the policy of a domain."""
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
        """Return all groups."""
        return answer(await groups.every(self._ha_service.store))

    async def set_group(self, request: web.Request) -> web.Response:
        """Set the rule of a group."""
        data = await body(request)
        kind, nodes, strict = _text(data, "kind"), data.get("nodes"), data.get("strict")
        if kind is not None and kind not in tuple(GroupKind):
            raise Refused(f"no group kind {kind!r}", hint=f"one of {', '.join(GroupKind)}")
        if nodes is not None and not (isinstance(nodes, list) and all(isinstance(each, str) for each in nodes)):
            raise Refused(f"nodes must be a list of names, not {nodes!r}", hint="see docs/api.md")
        if strict is not None and not isinstance(strict, bool):
            raise Refused(f"strict must be true or false, not {strict!r}", hint="see docs/api.md")
        name = request.match_info["group"]
        rule = await groups.assign(
            self._ha_service.store, name, kind=GroupKind(kind) if kind else None, nodes=nodes, strict=strict
        )
        return answer(rule)

    async def delete_group(self, request: web.Request) -> web.Response:
        """Delete the rule of a group."""
        await groups.delete(self._ha_service.store, request.match_info["group"])
        return answer({})

    # ---- the brain
    async def status(self, _: web.Request) -> web.Response:
        """Return the status of the cluster."""
        return answer(await self._ha_service.status())

    async def why(self, request: web.Request) -> web.Response:
        """Return the brain's reasons about a node or a domain, in sentences."""
        return answer({"lines": self._ha_service.why(request.match_info["name"])})

    async def progress(self, request: web.Request) -> web.Response:
        """Return the progress of a drain or resume."""
        return answer(await self._ha_service.progress(request.match_info["name"]))

    async def drain(self, request: web.Request) -> web.Response:
        """Drain a node, or return the plan of a drain."""
        data, name = await body(request), request.match_info["name"]
        if data.get("plan"):
            return answer(await self._ha_service.plan(name, forecast=True))
        work = self._ha_service.drain(name, by=author(request, data), force=bool(data.get("force")))
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def resume(self, request: web.Request) -> web.Response:
        """Return a drained node to service."""
        data = await body(request)
        work = self._ha_service.resume(
            request.match_info["name"], by=author(request, data), home=bool(data.get("home"))
        )
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def disarm(self, request: web.Request) -> web.Response:
        """Disarm the brain: it does nothing from now on."""
        data = await body(request)
        await self._ha_service.disarm(by=author(request, data), reason=words(data, "reason", REASON_MAX))
        return answer({})

    async def arm(self, _: web.Request) -> web.Response:
        """Arm the brain: it decides again."""
        await self._ha_service.arm()
        return answer({})

    async def events(self, request: web.Request) -> web.Response:
        """Return the last ?count=N events."""
        count = request.query.get("count", "50")
        if not count.isdigit():
            raise Refused(f"count must be a whole number, not {count!r}", hint="see docs/api.md")
        return answer(await journal.last(self._ha_service.records, int(count)))

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Stream each new event until the caller disconnects."""
        async with Lines(request) as lines:
            await lines.follow(journal.follow(self._ha_service.store))
        return lines.response

    # ---- inside
    def _led(self, handler: Any) -> Handler:
        """Run `handler` on the leader. Without a leader any brain answers, this node's first."""

        async def led(request: web.Request) -> web.StreamResponse:
            service = self._ha_service
            if service.leads() or not request[CALLER].local:
                return await _answered(handler, request)
            try:
                leader = await service.leader()
            except VeeryError:
                leader = ""
            if leader and leader != service.node:
                try:
                    return await forward(request, self._peers, leader)
                except Refused:
                    pass  # the leader has just died, and no other node has taken over yet
            if service.brain is not None:
                return await _answered(handler, request)
            for name in self._node_cache.voters():
                with contextlib.suppress(Refused):
                    return await forward(request, self._peers, name)
            raise Failed("no voter answers", hint="veery node list; veeryd must run on a majority of the voters")

        return led


async def _answered(handler: Any, request: web.Request) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    return response


def _text(data: dict[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{key} must be a string, not {value!r}", hint="see docs/api.md")
    return value


def _number(data: dict[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise Refused(f"{key} must be a number, not {value!r}", hint="see docs/api.md")
    return kind(value)
