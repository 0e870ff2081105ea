"""The console of a domain over the API's WebSocket, for a raw terminal or a pipe."""

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
_CONNECT_DEADLINE_S = 20.0  # for the connection and the first answer
_SILENCE_S = 1.0  # without output for so long after the end of piped input, leave
_DRAIN_LIMIT_S = 10.0  # after the end of piped input, leave at the latest


def attach(address: Address, domain: str, *, leave: bytes = LEAVE) -> str:
    """Connect stdin and stdout to `domain`'s console. Return when the user types `leave` or the console ends. If stdin
    is not a terminal, also return one second after the last output that follows its end.

    Returns "" if the user left, else veeryd's reason why the console ended. Raises Refused and Failed."""
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
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_DEADLINE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        try:
            async with asyncio.timeout(_CONNECT_DEADLINE_S):
                socket = await session.ws_connect(
                    f"http://localhost{domain_path(domain, 'console')}", headers=headers, heartbeat=20.0
                )
        except aiohttp.WSServerHandshakeError as error:
            raise await _refusal(session, domain, headers, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Refused(f"no veeryd answers at {address.socket}", hint=address.start) from error
        async with socket:
            return await _ConsoleLink(socket, leave).run()


async def _refusal(
    session: aiohttp.ClientSession, domain: str, headers: dict[str, str], error: aiohttp.WSServerHandshakeError
) -> Exception:
    """Return why the console did not open. aiohttp drops the body of a handshake's answer, so ask again without one."""
    async with session.get(f"http://localhost{domain_path(domain, 'console')}", headers=headers) as response:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            refusal = (await response.json(content_type=None))["error"]
            return from_kind(refusal["kind"], refusal["message"], refusal.get("hint", ""))
    return Failed(f"the console of {domain} does not open: veeryd answers {error.status}")


def _short(path: Path) -> str:
    """Return `path`, or a relative path if it is too long for a socket address (108 bytes)."""
    return str(path) if len(os.fsencode(path)) < 108 else os.path.relpath(path)


class _ConsoleLink:
    """The link between one console and stdin and stdout. It ends when either side ends."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, leave: bytes) -> None:
        self._socket, self._leave = socket, leave
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()
        self._last_output = 0.0

    async def run(self) -> str:
        loop = asyncio.get_running_loop()
        self._last_output = loop.time()
        reader = asyncio.create_task(self._show())
        writer = asyncio.create_task(self._type())
        with _input(loop, self._typed):
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        ended = reader.done()
        writer.cancel()
        # Do not cancel the reader: aiohttp would then drop the connection, with the last input. A clean close ends
        # the reader too.
        await self._socket.close()
        results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise Failed(
                    f"the console connection broke: {result}", hint="veery console DOMAIN opens it again"
                ) from result
        return str(results[0]) if ended else ""

    async def _show(self) -> str:
        """Print the output of the domain. Returns why the console ended."""
        async for message in self._socket:
            if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                data: Any = message.data
                self._last_output = asyncio.get_running_loop().time()
                sys.stdout.buffer.write(data.encode() if isinstance(data, str) else data)
                sys.stdout.buffer.flush()
            elif message.type == aiohttp.WSMsgType.CLOSE:
                return str(message.extra or "")
        return "the console ended"

    async def _type(self) -> None:
        """Send the input until `leave` or its end."""
        while data := await self._typed.get():
            before, found, _ = data.partition(self._leave)
            if before:
                await self._socket.send_bytes(before)
            if found:
                return
        loop = asyncio.get_running_loop()
        end = loop.time()
        self._last_output = max(self._last_output, end)
        while (wait := min(self._last_output + _SILENCE_S, end + _DRAIN_LIMIT_S) - loop.time()) > 0:  # noqa: ASYNC110 (waits for silence)
            await asyncio.sleep(wait)


@contextlib.contextmanager
def _input(loop: asyncio.AbstractEventLoop, typed: asyncio.Queue[bytes]) -> Iterator[None]:
    """Put stdin into `typed`; b"" marks its end. A regular file cannot be polled, so read it at once."""
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
