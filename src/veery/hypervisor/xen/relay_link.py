"""The node's end of its connection to a relay: JSON lines over a unix socket. Closing it ends the relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veery.errors import Failed


class RelayLink:
    """Listens for one relay. Use: `open`, `answer`, then `tell` and `hear`; `close` ends the relay."""

    def __init__(self, path: Path) -> None:
        """`path` is the socket's, at most 107 bytes."""
        self.path = path
        self._listener: socket.socket | None = None
        self._link: socket.socket | None = None
        self._data = b""
        self._waited_for: set[socket.socket | None] = set()

    def open(self) -> None:
        """Listen. Raises Failed."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(self.path))
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise Failed(f"{self.path}: {error.strerror or error}") from error
        self._listener = listener

    async def answer(self) -> None:
        """Wait for the relay."""
        assert self._listener is not None
        with self._kept(self._listener) as listener:
            link, _ = await asyncio.get_running_loop().sock_accept(listener)
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.geteuid():
            link.close()
            raise Failed(f"{self.path}: a process of another user connected")
        if self._listener is None:
            link.close()
            raise Failed(f"{self.path}: closed before the relay connected")
        self._link = link
        self._listener.close()
        self._listener = None

    async def tell(self, order: dict[str, Any], *handles: int) -> None:
        """Send an order, and descriptors along with it. Raises Failed when the relay is gone."""
        if self._link is None:
            raise Failed("the relay is not connected")
        data = json.dumps(order).encode() + b"\n"
        try:
            if handles:  # a new socket takes a whole line at once
                socket.send_fds(self._link, [data], list(handles))
            else:
                await asyncio.get_running_loop().sock_sendall(self._link, data)
        except OSError as error:
            raise Failed("the relay is gone") from error

    async def hear(self) -> dict[str, Any] | None:
        """Return the relay's next report; None when it has ended."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._data:
            if self._link is None:
                return None
            try:
                with self._kept(self._link) as link:
                    data = await loop.sock_recv(link, 1 << 16)
            except OSError:
                return None
            if not data:
                return None
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        news: dict[str, Any] = json.loads(line)
        return news

    def close(self) -> None:
        """Close the connection. An `answer` or `hear` that waits ends."""
        listener, link = self._listener, self._link
        self._listener = self._link = None
        if listener in self._waited_for:  # shutdown(2) ends no accept(2) of a unix socket
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
                caller.connect_ex(str(self.path))
        elif listener is not None:
            listener.close()
        if link is not None and link in self._waited_for:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        elif link is not None:
            link.close()
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _kept(self, link: socket.socket) -> Iterator[socket.socket]:
        """Keep `link` open while the loop waits for it. Otherwise the loop would keep waiting for a closed descriptor,
        and the next file that gets its number, a program's output, would never be read."""
        self._waited_for.add(link)
        try:
            yield link
        finally:
            self._waited_for.discard(link)
            if link not in (self._listener, self._link):
                link.close()
