"""One connection to the API: who is at its other end, and how long it may be idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from veery.cluster.admission import Admission
from veery.host.caps import Place
from veery.host.tls import Shown, shown
from veery.model.codec import encode

log = logging.getLogger(__name__)

STRANGER_S = 10.0
"""For so long a stranger may be without a request: its header must have come whole."""
IDLE_S = 75.0
"""The same for those we know, whose clients keep connections for a while."""
PARTING_S = 2.0
"""For so long a stranger that was answered may read on."""
SERVER = "veery"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `local` for one that the unix socket let in, else `node` by its certificate, whose `serial` number
    (hex) it is; "" for a stranger."""

    node: str = ""
    local: bool = False
    serial: str = ""

    @property
    def known(self) -> bool:
        """Whether it may order anything."""
        return self.local or bool(self.node)

    def __str__(self) -> str:
        return "local" if self.local else self.node or "a stranger"


class Line(web.RequestHandler):
    """One connection. `gone` is done once the caller has left."""

    def __init__(self, server: web.Server, address: str, place: Place, admission: Admission) -> None:
        """`address` is where it comes from."""
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, keepalive_timeout=IDLE_S)
        self.address, self.caller = address, Caller()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._place, self._admission, self._clock = place, admission, loop
        self._shown: Shown | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending = contextlib.ExitStack()
        self._ending.callback(place.leave)

    def welcome(self) -> None:
        """The caller is one whom the unix socket lets in."""
        self._place.vouch()
        self.caller = Caller(local=True)

    async def identify(self) -> Caller:
        """Who calls, as the cluster has it now."""
        if not self.caller.known and self._shown is not None and await self._admission.lets_in(self._shown):
            self._admit(self._shown)
        return self.caller

    def begun(self) -> None:
        """A request has come whole, up to its body."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ended(self) -> None:
        """It is answered."""
        self._wait(IDLE_S if self.caller.known else PARTING_S)

    def _wait(self, within: float) -> None:
        self.begun()
        if not self.gone.done():
            self._timer = self._clock.call_later(within, self.cut)

    def cut(self) -> None:
        """Break the connection off, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    # ---- as web.RequestHandler
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._shown = shown(transport.get_extra_info("ssl_object"))
        if self._shown is not None and self._admission.admits(self._shown):
            self._admit(self._shown)
        self._wait(IDLE_S if self.caller.known else STRANGER_S)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if not self.gone.done():
            self.gone.set_result(None)
        self.begun()
        self._ending.close()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and say so in one line."""
        log.info("%s sends no proper HTTP: %s", self.address, message or exc or status)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        told = {"kind": "refused", "message": "not a proper HTTP request", "hint": "see docs/api.md"}
        response = web.Response(body=encode({"error": told}), status=status, content_type="application/json")
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def _admit(self, certificate: Shown) -> None:
        self._place.vouch()
        self.caller = Caller(node=certificate.name, serial=certificate.serial)
        self._ending.enter_context(self._admission.standing(certificate, self.cut))
