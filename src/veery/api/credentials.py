"""Routes for the nodes' credentials at the targets, called by nodes only."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from veery.api.server import answer, body, convert, require_direct
from veery.node.credentials import Credentials


@dataclass(frozen=True, slots=True)
class Offer:
    """The body of POST /v1/initiators: the caller's own CHAP password."""

    password: str


class CredentialRoutes:
    """Routes of credentials. Voters and storage nodes answer them."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/initiators", self.accept),
            web.post("/v1/initiators/sealing", self.sealing),
        ]

    async def accept(self, request: web.Request) -> web.Response:
        """Seal the password of the calling node in the store."""
        caller = require_direct(request)
        offer = convert(await body(request), Offer)
        await self._credentials.accept(caller.node, offer.password)
        return answer({})

    async def sealing(self, request: web.Request) -> web.Response:
        """Return the key that opens the passwords to a voter or storage node."""
        return answer({"key": await self._credentials.sealing(require_direct(request).node)})
