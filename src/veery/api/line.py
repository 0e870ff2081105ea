"""One connection to the API: its caller, and how long it may be idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from veery.api.errors import Malformed, problem
from veery.cluster.admission import Admission
from veery.host.caps import Place
from veery.host.tls import Shown, shown

log = logging.getLogger(__name__)

STRANGER_S = 10.0
"""Time in which a stranger must send the complete header of a request."""
IDLE_S = 75.0
"""Idle limit of a known caller. Its clients keep connections open for a while."""
STRANGER_READ_S = 2.0
"""Time in which a stranger can read its answer."""
SERVER = "veery"


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `local`: admitted by the unix socket. Else `node` is the node of its certificate, with
    the serial number `serial` (hex); both are "" for a stranger."""

    node: str = ""
    local: bool = False
    serial: str = ""

    @property
    def known(self) -> bool:
        """True if the caller may give orders."""
        return self.local or bool(self.node)

    def __str__(self) -> str:
        return "local" if self.local else self.node or "a stranger"


class Line(web.RequestHandler):
    """One connection. The future `gone` is done once the caller has disconnected."""

    def __init__(self, server: web.Server, address: str, place: Place, admission: Admission) -> None:
        """Start the connection of a caller at `address`."""
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
        """Mark the caller as admitted by the unix socket."""
        self._place.vouch()
        self.caller = Caller(local=True)

    async def identify(self) -> Caller:
        """Return the caller, by the present records of the cluster."""
        if not self.caller.known and self._shown is not None and await self._admission.lets_in(self._shown):
            self._admit(self._shown)
        return self.caller

    def begun(self) -> None:
        """Note that the header of a request is complete."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ended(self) -> None:
        """Note that the request is answered."""
        self._wait(IDLE_S if self.caller.known else STRANGER_READ_S)

    def _wait(self, within: float) -> None:
        self.begun()
        if not self.gone.done():
            self._timer = self._clock.call_later(within, self.cut)

    def cut(self) -> None:
        """Abort the connection, whatever it is doing."""
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
        """Answer data that is not HTTP, and log one line."""
        log.info("%s sends invalid HTTP: %s", self.address, message or exc or status)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has started already")
        response = problem(Malformed("not a valid HTTP request"), status)
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def _admit(self, certificate: Shown) -> None:
        self._place.vouch()
        self.caller = Caller(node=certificate.name, serial=certificate.serial)
        self._ending.enter_context(self._admission.standing(certificate, self.cut))
