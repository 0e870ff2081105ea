"""Routes for the nodes' credentials at the targets, called by nodes only."""

from __future__ import annotations

from aiohttp import web

from veery.api.bodies import Password
from veery.api.route import bind
from veery.api.server import answer, order, require_direct
from veery.api.table.nodes import CREDENTIALS
from veery.node.credentials import Credentials


class CredentialRoutes:
    """Routes of credentials. Voters and storage nodes answer them."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(CREDENTIALS, self)

    async def accept(self, request: web.Request) -> web.Response:
        """Seal the password of the calling node in the store."""
        caller = require_direct(request)
        offer = await order(request, Password)
        await self._credentials.accept(caller.node, offer.password)
        return answer({})

    async def sealing(self, request: web.Request) -> web.Response:
        """Return the key that opens the passwords to a voter or storage node."""
        return answer({"key": await self._credentials.sealing(require_direct(request).node)})
