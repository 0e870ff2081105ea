"""Accepts connections of a listening socket up to its limits, and closes the others at once."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from veery.host.caps import Caps, Place
from veery.host.shortage import is_shortage

log = logging.getLogger(__name__)

PAUSE_S = 0.1  # after a failed accept
LOG_INTERVAL_S = 10.0

Whose = Callable[[socket.socket, str], tuple[str, bool]]
Serve = Callable[[socket.socket, str, Place], Coroutine[Any, Any, None]]


class Acceptor:
    """One listening socket. The caller runs `run` as a task."""

    def __init__(self, name: str, listener: socket.socket, caps: Caps, *, whose: Whose, serve: Serve) -> None:
        """`whose` returns a connection's origin and whether that is a member. `serve` owns the connection and its
        place."""
        self._name, self._listener, self._caps = name, listener, caps
        self._whose, self._serve = whose, serve
        self._rejected, self._logged = 0, float("-inf")

    async def run(self) -> None:
        """Accept until cancelled; each connection's `serve` is a task of this one."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except (OSError, MemoryError) as error:  # no file descriptors or memory, or the caller has gone
                    self._warn(f"accept: {error}")
                    await asyncio.sleep(PAUSE_S)
                    continue
                try:
                    where, known = self._whose(connection, address[0] if isinstance(address, tuple) else "")
                    place = self._caps.enter(where, known=known)
                except (OSError, MemoryError):
                    place, where = None, "a caller that has gone"
                if place is None:
                    connection.close()
                    self._rejected += 1
                    self._warn(f"{self._rejected} connections rejected, the last from {where}: too many are open")
                    continue
                tasks.create_task(self._served(connection, where, place))

    async def _served(self, connection: socket.socket, where: str, place: Place) -> None:
        """Serve one connection; its errors must not end the others or the listener."""
        try:
            await self._serve(connection, where, place)
        except Exception as error:
            if is_shortage(error):
                self._warn(f"{where}: {error or type(error).__name__}")
            else:
                log.exception("%s: %s: unexpected", self._name, where)
            place.leave()
            connection.close()

    def _warn(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            log.warning("%s: %s", self._name, what)
