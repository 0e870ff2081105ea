"""A domain's console over the API's WebSocket: a raw terminal, or a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from veery.client.address import Address
from veery.client.http import NODE_HEADER, domain_path, wait_for_restart
from veery.errors import Failed, Refused, from_kind

LEAVE = b"\x1d"  # Ctrl-], as xm's and xl's console, and telnet
_CONNECT = 20.0  # seconds for the connection and the first answer
_QUIET = 1.0  # seconds without output, after the end of a piped input, at which we leave
_LONGEST = 10.0  # seconds after the end of a piped input at which we leave anyhow


def attach(address: Address, domain: str, *, leave: bytes = LEAVE) -> str:
    """Join this process's stdin and stdout to `domain`'s console until the user types `leave`, until the domain
    goes, or, with a stdin that is no terminal, until its end and a second of silence.

    Returns "" when the user left, else why the console ended, in the daemon's words. Raises Refused and Failed."""
    wait_for_restart(address.socket)
    with _raw_terminal():
        return asyncio.run(_attach(address, domain, leave))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _attach(address: Address, domain: str, leave: bytes) -> str:
    headers = {NODE_HEADER: address.node} if address.node else {}
    connector = aiohttp.UnixConnector(path=_short(address.socket))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        try:
            async with asyncio.timeout(_CONNECT):
                socket = await session.ws_connect(
                    f"http://localhost{domain_path(domain, 'console')}", headers=headers, heartbeat=20.0
                )
        except aiohttp.WSServerHandshakeError as error:
            raise await _refusal(session, domain, headers, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Refused(f"no veeryd answers at {address.socket}", hint=address.start) from error
        async with socket:
            return await _Joined(socket, leave).run()


async def _refusal(
    session: aiohttp.ClientSession, domain: str, headers: dict[str, str], error: aiohttp.WSServerHandshakeError
) -> Exception:
    """Why the console was not opened. A handshake's answer has no body for us, so the same is asked plainly."""
    async with session.get(f"http://localhost{domain_path(domain, 'console')}", headers=headers) as response:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = (await response.json(content_type=None))["error"]
            return from_kind(told["kind"], told["message"], told.get("hint", ""))
    return Failed(f"{domain}'s console does not open: veeryd answers {error.status}")


def _short(path: Path) -> str:
    """`path`, or a shorter name for it where it is too long for a socket's address (108 bytes)."""
    return str(path) if len(os.fsencode(path)) < 108 else os.path.relpath(path)


class _Joined:
    """One console joined to stdin and stdout; ends when either side does."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, leave: bytes) -> None:
        self._socket, self._leave = socket, leave
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard = 0.0

    async def run(self) -> str:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        reader = asyncio.create_task(self._show())
        writer = asyncio.create_task(self._type())
        with _input(loop, self._typed):
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        ended = reader.done()
        writer.cancel()
        # The reader is not cancelled: aiohttp then drops the connection, and what was typed last with it. A close
        # in good order ends it too.
        await self._socket.close()
        results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise Failed(f"the console broke: {result}", hint="veery console DOMAIN opens it again") from result
        return str(results[0]) if ended else ""

    async def _show(self) -> str:
        """Print what the domain says; why the console ended."""
        async for message in self._socket:
            if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                data: Any = message.data
                self._heard = asyncio.get_running_loop().time()
                sys.stdout.buffer.write(data.encode() if isinstance(data, str) else data)
                sys.stdout.buffer.flush()
            elif message.type == aiohttp.WSMsgType.CLOSE:
                return str(message.extra or "")
        return "the console ended"

    async def _type(self) -> None:
        """Send what is typed, until `leave` or the end of input."""
        while data := await self._typed.get():
            before, found, _ = data.partition(self._leave)
            if before:
                await self._socket.send_bytes(before)
            if found:
                return
        loop = asyncio.get_running_loop()
        end = loop.time()
        self._heard = max(self._heard, end)
        while (wait := min(self._heard + _QUIET, end + _LONGEST) - loop.time()) > 0:  # noqa: ASYNC110 (for a silence)
            await asyncio.sleep(wait)


@contextlib.contextmanager
def _input(loop: asyncio.AbstractEventLoop, typed: asyncio.Queue[bytes]) -> Iterator[None]:
    """Feed stdin into `typed`; b"" marks its end. A plain file cannot be polled and is read whole."""
    descriptor = sys.stdin.fileno()

    def read() -> None:
        try:
            data = os.read(descriptor, 4096)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(descriptor)
        typed.put_nowait(data)

    try:
        loop.add_reader(descriptor, read)
    except PermissionError:
        while data := os.read(descriptor, 1 << 16):
            typed.put_nowait(data)
        typed.put_nowait(b"")
        yield
        return
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
