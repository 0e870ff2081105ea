"""Routes of the nodes' credentials at the targets: what nodes ask of each other."""

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
    """Answered on voters and storage nodes."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.post("/v1/initiators", self.accept),
            web.post("/v1/initiators/sealing", self.sealing),
        ]

    async def accept(self, request: web.Request) -> web.Response:
        """Of a node, for itself: seal its password in the store."""
        caller = require_direct(request)
        offer = convert(await body(request), Offer)
        await self._credentials.accept(caller.node, offer.password)
        return answer({})

    async def sealing(self, request: web.Request) -> web.Response:
        """For another voter or storage node: the key that opens the passwords."""
        return answer({"key": await self._credentials.sealing(require_direct(request).node)})
