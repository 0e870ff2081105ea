"""The path of local disks between two hypervisors: a unix socket here, the relocation port's streams, a unix socket
there.

The bytes are the hypervisors' own, encrypted by them where the move is; this module only carries them. So one port is
enough, with the same gate: a stream is let in by the token that the target gave for this move."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from veery.errors import VeeryError
from veery.host import tasks

log = logging.getLogger(__name__)

PIECE = 512 << 10
CONNECT_DEADLINE_S = 5.0

Connect = Callable[[], Awaitable[socket.socket]]


class Pump:
    """Carries connections. Each is a task of this pump and ends with `close`."""

    def __init__(self, connect: Connect, stall: float) -> None:
        """`connect` makes the far side of each connection; a peer that acknowledges nothing for `stall` seconds is
        lost."""
        self._connect, self._stall = connect, stall
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """How many connections are being carried."""
        return len(self._tasks)

    def carry(self, near: socket.socket) -> None:
        """Carry a connection, in a task of its own."""
        task = asyncio.create_task(self._carry(near), name="pump")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Break all connections."""
        await tasks.stop(*self._tasks)

    async def _carry(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as closing:
            closing.enter_context(near)
            try:
                far = closing.enter_context(await self._connect())
                for each in (near, far):
                    each.setblocking(False)
                    _detect_loss(each, self._stall)
                there = asyncio.create_task(_pour(near, far))
                back = asyncio.create_task(_pour(far, near))
                try:
                    await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await tasks.stop(there, back)
            except (OSError, VeeryError) as error:
                log.warning("disks: a stream did not open: %s", error)


async def _pour(source: socket.socket, sink: socket.socket) -> None:
    """Copy everything from `source` to `sink`, until either side ends."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(PIECE))
    with contextlib.suppress(OSError):
        while count := await loop.sock_recv_into(source, buffer):
            await loop.sock_sendall(sink, buffer[:count])


def _detect_loss(stream: socket.socket, stall: float) -> None:
    """Have the kernel detect a TCP peer that vanished without closing the connection (tcp(7))."""
    if stream.family == socket.AF_UNIX:
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        stream.setsockopt(socket.IPPROTO_TCP, option, value)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall * 1000))


@contextlib.asynccontextmanager
async def outlet(connect: Connect, pid: int, stall: float) -> AsyncIterator[str]:
    """Yield the name of an abstract unix socket (unix(7)) whose connections are carried to what `connect` returns. Only
    process `pid` may use it (0: any process of veeryd's user)."""
    name = f"veery-disks-{secrets.token_hex(8)}"
    loop = asyncio.get_running_loop()
    pump = Pump(connect, stall)

    async def accept(listener: socket.socket) -> None:
        while True:
            near, _ = await loop.sock_accept(listener)
            if _permitted(near, pid):
                pump.carry(near)
            else:
                near.close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(f"\0{name}")
        listener.listen(16)
        accepting = asyncio.create_task(accept(listener), name=name)
        try:
            yield name
        finally:
            await tasks.stop(accepting)
            await pump.close()


def inlet(path: Path, stall: float) -> Pump:
    """Return the pump that carries arriving streams to the unix socket at `path`."""

    async def connect() -> socket.socket:
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                await asyncio.get_running_loop().sock_connect(far, str(path))
        except BaseException:
            far.close()
            raise
        return far

    return Pump(connect, stall)


def _permitted(near: socket.socket, pid: int) -> bool:
    credentials = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    caller, user, _ = struct.unpack("3i", credentials)
    return bool(caller == pid if pid else user == os.geteuid())
