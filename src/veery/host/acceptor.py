"""Takes connections of a listening socket in, as far as its bounds allow; the others are closed at once."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from veery.host.caps import Caps, Place
from veery.host.shortage import is_shortage

log = logging.getLogger(__name__)

PAUSE_S = 0.1
SAY_EVERY_S = 10.0

Whose = Callable[[socket.socket, str], tuple[str, bool]]
Serve = Callable[[socket.socket, str, Place], Coroutine[Any, Any, None]]


class Acceptor:
    """One listening socket. `run` is somebody's task."""

    def __init__(self, name: str, listener: socket.socket, caps: Caps, *, whose: Whose, serve: Serve) -> None:
        """`whose` tells where a connection comes from and whether that is one of ours; `serve` owns the connection and
        its place."""
        self._name, self._listener, self._caps = name, listener, caps
        self._whose, self._serve = whose, serve
        self._turned_away, self._said = 0, float("-inf")

    async def run(self) -> None:
        """For ever; each connection's `serve` is a task of ours."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except (OSError, MemoryError) as error:  # out of file descriptors or memory, or the caller left at once
                    self._say(f"accept: {error}")
                    await asyncio.sleep(PAUSE_S)
                    continue
                try:
                    where, known = self._whose(connection, address[0] if isinstance(address, tuple) else "")
                    place = self._caps.enter(where, known=known)
                except (OSError, MemoryError):
                    place, where = None, "a caller that left at once"
                if place is None:
                    connection.close()
                    self._turned_away += 1
                    self._say(f"{self._turned_away} connections turned away, the last of {where}: too many are open")
                    continue
                tasks.create_task(self._served(connection, where, place))

    async def _served(self, connection: socket.socket, where: str, place: Place) -> None:
        """One connection must never end the others, nor the listener."""
        try:
            await self._serve(connection, where, place)
        except Exception as error:
            if is_shortage(error):
                self._say(f"{where}: {error or type(error).__name__}")
            else:
                log.exception("%s: %s: unexpected", self._name, where)
            place.leave()
            connection.close()

    def _say(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            log.warning("%s: %s", self._name, what)
