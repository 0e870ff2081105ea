"""Routes of the brain: policies, status and reasons for users, and its orders to the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

from aiohttp import web

from veery.api.bodies import Disarm, DrainNode, End, ResumeNode, SetGroup, SetPolicy
from veery.api.errors import Malformed
from veery.api.route import bind
from veery.api.server import CALLER, Handler, Lines, answer, author, forward, order, words
from veery.api.table.ha import HA
from veery.errors import Refused, Unavailable, VeeryError
from veery.ha import groups, journal, orders
from veery.model.ha import Ticket
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
        return bind(HA, self, led=self._led)

    # ---- orders of the brain
    async def reading(self, _: web.Request) -> web.Response:
        """Return the reading of this node."""
        return answer(await self._recovery.reading())

    async def start(self, request: web.Request) -> web.Response:
        """Start a domain by ticket. The start continues when the caller has disconnected."""
        ticket = await order(request, Ticket)
        return answer(await asyncio.shield(asyncio.ensure_future(self._recovery.start(ticket))))

    async def end(self, request: web.Request) -> web.Response:
        """Stop one instance of a domain."""
        boot = (await order(request, End)).boot
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
        wish = await order(request, SetPolicy)
        record = await orders.set_policy(
            self._ha_service.store,
            request.match_info["domain"],
            wish.policy,
            priority=wish.priority,
            group=wish.group,
            max_restarts=wish.max_restarts,
            delay=wish.delay,
        )
        return answer(record)

    async def groups(self, _: web.Request) -> web.Response:
        """Return all groups."""
        return answer(await groups.every(self._ha_service.store))

    async def set_group(self, request: web.Request) -> web.Response:
        """Set the rule of a group."""
        wish, name = await order(request, SetGroup), request.match_info["group"]
        rule = await groups.assign(self._ha_service.store, name, kind=wish.kind, nodes=wish.nodes, strict=wish.strict)
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
        wish, name = await order(request, DrainNode), request.match_info["name"]
        if wish.plan:
            return answer(await self._ha_service.plan(name, forecast=True))
        work = self._ha_service.drain(name, by=author(request, wish.by), force=wish.force)
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def resume(self, request: web.Request) -> web.Response:
        """Return a drained node to service."""
        wish = await order(request, ResumeNode)
        work = self._ha_service.resume(request.match_info["name"], by=author(request, wish.by), home=wish.home)
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def disarm(self, request: web.Request) -> web.Response:
        """Disarm the brain: it does nothing from now on."""
        wish = await order(request, Disarm)
        await self._ha_service.disarm(by=author(request, wish.by), reason=words(wish.reason, REASON_MAX))
        return answer({})

    async def arm(self, _: web.Request) -> web.Response:
        """Arm the brain: it decides again."""
        await self._ha_service.arm()
        return answer({})

    async def events(self, request: web.Request) -> web.Response:
        """Return the last ?count=N events."""
        count = request.query.get("count", "50")
        if not count.isdigit():
            raise Malformed("the parameter 'count' is wrong: it is not a whole number", field="count")
        return answer(await journal.last(self._ha_service.records, int(count)))

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Stream each new event until the caller disconnects."""
        async with Lines(request) as lines:
            await lines.follow(journal.follow(self._ha_service.store))
        return lines.response

    # ---- inside
    def _led(self, handler: Any) -> Handler:
        """Run `handler` on the leader. Without a leader any brain answers, this node's first."""

        @functools.wraps(handler)
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
            raise Unavailable("no voter answers", hint="veery node list; veeryd must run on a majority of the voters")

        return led


async def _answered(handler: Any, request: web.Request) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    return response
