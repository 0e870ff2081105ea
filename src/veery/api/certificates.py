"""Routes of certificates: a node's renewal, and a change of the cluster's CA."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from veery.api.server import answer, body, convert, require_direct
from veery.cluster.renewal import RenewRequest
from veery.host.tls import Shown
from veery.node.certificates import Certificates


class CertificateRoutes:
    """What operators order, and what nodes ask of each other."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.post("/v1/nodes/{name}/renew", self.renew),
            web.get("/v1/ca/status", self.status),
            web.post("/v1/ca/renew", self.new_ca),
            web.post("/v1/ca/cancel", self.cancel),
            web.post("/v1/ca/drop", self.drop),
            web.post("/v1/certificates", self.sign),
            web.post("/v1/sealing", self.sealing),
        ]

    async def renew(self, request: web.Request) -> web.Response:
        """Renew a node's certificate now."""
        return answer(await _whole(self._certificates.renew(request.match_info["name"])))

    async def status(self, _: web.Request) -> web.Response:
        """How far a change of CA has come."""
        return answer(await self._certificates.status())

    async def new_ca(self, _: web.Request) -> web.Response:
        """Take the next step to a new CA."""
        return answer(await _whole(self._certificates.new_ca()))

    async def cancel(self, _: web.Request) -> web.Response:
        """Go back to the old CA."""
        return answer(await _whole(self._certificates.cancel()))

    async def drop(self, _: web.Request) -> web.Response:
        """Trust the new CA alone."""
        return answer(await _whole(self._certificates.drop()))

    async def sign(self, request: web.Request) -> web.Response:
        """For another node: sign its next certificate."""
        caller = require_direct(request)
        wish = convert(await body(request), RenewRequest)
        return answer(await _whole(self._certificates.sign(Shown(caller.node, caller.serial), wish)))

    async def sealing(self, request: web.Request) -> web.Response:
        """For another voter: the sealing key."""
        return answer({"key": await self._certificates.sealing(require_direct(request).node)})


async def _whole(work: Coroutine[Any, Any, Any]) -> Any:
    """What is begun is ended, also when the caller has left."""
    return await asyncio.shield(asyncio.ensure_future(work))
