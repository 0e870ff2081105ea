"""Routes for this node, its cluster, and joining the cluster."""

from __future__ import annotations

import asyncio

from aiohttp import web

from veery.api.route import bind
from veery.api.server import CALLER, answer, order
from veery.api.table.nodes import CLUSTER
from veery.cluster.join import JoinRequest
from veery.host.log import Tail, harmless
from veery.node.cpu_baseline import CpuBaseline
from veery.node.doctor import Doctor
from veery.node.machine import Machine
from veery.node.membership import Membership


class ClusterRoutes:
    """Routes for users' queries and orders on nodes."""

    def __init__(
        self, membership: Membership, machine: Machine, processors: CpuBaseline, tail: Tail, doctor: Doctor
    ) -> None:
        self._membership, self._machine, self._processors, self._tail = membership, machine, processors, tail
        self._doctor = doctor

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(CLUSTER, self)

    async def host(self, _: web.Request) -> web.Response:
        """Return the facts of this machine."""
        host, domains = await asyncio.gather(self._machine.host(), self._machine.driver.list())
        return answer({"node": self._machine.node, "host": host, "domains": len(domains)})

    async def log(self, _: web.Request) -> web.Response:
        """Return the log of the hypervisor, then that of veeryd."""
        return answer({"text": harmless(await self._machine.driver.log()) + self._tail.text()})

    async def cpu(self, _: web.Request) -> web.Response:
        """Return the CPU models that new domains get."""
        return answer(await self._processors.show())

    async def health(self, _: web.Request) -> web.Response:
        """Return the findings of this node about itself."""
        return answer(await self._doctor.health())

    async def doctor(self, request: web.Request) -> web.Response:
        """Return the findings on one node, or on all nodes and between them."""
        return answer(await self._doctor.examine(request.query.get("node", "")))

    async def nodes(self, _: web.Request) -> web.Response:
        """Return all nodes."""
        return answer(await self._machine.nodes())

    async def leave(self, request: web.Request) -> web.Response:
        """Remove a node: its vote, then its records. ?forget=1 removes a node that is gone for good."""
        name, query = request.match_info["name"], request.query
        if query.get("forget"):
            volumes, everything = bool(query.get("volumes")), bool(query.get("everything"))
            work = self._membership.forget(name, volumes=volumes, everything=everything)
            return answer(await asyncio.shield(asyncio.ensure_future(work)))
        await asyncio.shield(asyncio.ensure_future(self._membership.leave(name)))
        return answer({})

    async def token(self, request: web.Request) -> web.Response:
        """Create a token for one new node."""
        return answer({"token": await self._membership.token(request[CALLER].node)})

    async def tokens(self, _: web.Request) -> web.Response:
        """Return the unused tokens."""
        return answer(await self._membership.tokens())

    async def revoke_token(self, request: web.Request) -> web.Response:
        """Revoke a token."""
        await self._membership.revoke_token(request.match_info["id"])
        return answer({})

    async def ca(self, _: web.Request) -> web.Response:
        """Return the certificate of the CA. Open to strangers."""
        return answer(self._membership.ca())

    async def join(self, request: web.Request) -> web.Response:
        """Admit a new node that has a token. Open to strangers."""
        wish = await order(request, JoinRequest)
        return answer(await self._membership.admit(wish, relay=request[CALLER].node))
