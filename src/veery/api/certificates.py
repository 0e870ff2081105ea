"""Routes for certificates: the renewal of a node's certificate, and a change of the cluster's CA."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from veery.api.route import bind
from veery.api.server import answer, order, require_direct
from veery.api.table.nodes import CERTIFICATES
from veery.cluster.renewal import RenewRequest
from veery.host.tls import Shown
from veery.node.certificates import Certificates


class CertificateRoutes:
    """Routes for operators' orders, and for requests between nodes."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(CERTIFICATES, self)

    async def renew(self, request: web.Request) -> web.Response:
        """Renew the certificate of a node now."""
        return answer(await _to_the_end(self._certificates.renew(request.match_info["name"])))

    async def status(self, _: web.Request) -> web.Response:
        """Return the progress of a change of CA."""
        return answer(await self._certificates.status())

    async def new_ca(self, _: web.Request) -> web.Response:
        """Take the next step to a new CA."""
        return answer(await _to_the_end(self._certificates.new_ca()))

    async def cancel(self, _: web.Request) -> web.Response:
        """Go back to the old CA."""
        return answer(await _to_the_end(self._certificates.cancel()))

    async def drop(self, _: web.Request) -> web.Response:
        """Trust the new CA alone."""
        return answer(await _to_the_end(self._certificates.drop()))

    async def sign(self, request: web.Request) -> web.Response:
        """Sign the next certificate of the calling node."""
        caller = require_direct(request)
        wish = await order(request, RenewRequest)
        return answer(await _to_the_end(self._certificates.sign(Shown(caller.node, caller.serial), wish)))

    async def sealing(self, request: web.Request) -> web.Response:
        """Return the sealing key to a voter."""
        return answer({"key": await self._certificates.sealing(require_direct(request).node)})


async def _to_the_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` to its end, even if the caller disconnects."""
    return await asyncio.shield(asyncio.ensure_future(work))
