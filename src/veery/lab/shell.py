"""A domain's console as a user has it, for demo, bench and tests: type commands and read the answers."""

from __future__ import annotations

import asyncio
import re
import secrets
from types import TracebackType

import aiohttp

from veery.client.address import Address
from veery.client.http import NODE_HEADER, domain_path
from veery.errors import Failed

ANSWER_S = 10.0  # seconds before a shell is asked again whether it answers


def doubled(mark: str) -> str:
    """Return a pattern of `mark` in which any character may be doubled, except the first. On a busy machine a guest's
    serial port was seen to print about one in a hundred thousand characters twice."""
    return re.escape(mark[0]) + "".join(f"{re.escape(each)}{{1,2}}" for each in mark[1:])


class Shell:
    """A shell on a domain's console:

        async with Shell(address, "busybox") as shell:
            await shell.run("uptime")

    `seen` begins with the console's earlier output. Raises Failed when the console ends or stays silent."""

    def __init__(self, address: Address, domain: str, *, answer_s: float = ANSWER_S) -> None:
        """`address` is the daemon of the node on which the domain runs. `answer_s`: seconds before the shell is asked
        again whether it answers."""
        self._address, self._domain, self._answer_s = address, domain, answer_s
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self.seen = ""

    async def __aenter__(self) -> Shell:
        connector = aiohttp.UnixConnector(path=str(self._address.socket))
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        )
        try:
            headers = {NODE_HEADER: self._address.node} if self._address.node else {}
            async with asyncio.timeout(20):
                self._socket = await self._session.ws_connect(
                    f"http://localhost{domain_path(self._domain, 'console')}", headers=headers, max_msg_size=0
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self._session.close()
            raise Failed(f"the console of {self._domain} does not open: {error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()

    async def type(self, text: str) -> None:
        """Type `text` and Return."""
        assert self._socket is not None
        await self._socket.send_bytes(text.encode() + b"\n")

    async def expect(self, pattern: str, *, deadline: float = 60.0) -> str:
        """Wait until `pattern` is on the console; return the output up to its end, and remove it from `seen`."""
        try:
            async with asyncio.timeout(deadline):
                while (match := re.search(pattern, self.seen)) is None:
                    await self._more()
        except TimeoutError as error:
            raise Failed(
                f"{self._domain}: no {pattern!r} on the console within {deadline:g} s; last: {self.seen[-300:]!r}"
            ) from error
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    async def run(self, command: str, *, deadline: float = 60.0) -> str:
        """Run one command line; return its output without the prompt. Its exit code is ignored.

        The marks are typed in two halves, so that the echo of the command line, which may be wrapped at the edge of the
        screen, does not match them."""
        mark = secrets.token_hex(3)
        begin, end = doubled(f"{mark}a"), doubled(f"{mark}z")
        await self._prompted(mark, deadline)
        await self.type(f"echo {mark}''a; {command}; echo {mark}''z")
        await self.expect(rf"{begin}\r*\n", deadline=deadline)
        output = await self.expect(rf"{end}\r*\n", deadline=deadline)
        return re.sub(rf"{end}\r*\n$", "", output).replace("\r", "").strip("\n")

    async def _prompted(self, mark: str, deadline: float) -> None:
        """Return when the shell answers. A shell that starts, for instance after a reboot, loses part of its input. So
        a line without effects goes before each command, and is repeated."""
        ends = asyncio.get_running_loop().time() + deadline
        while True:
            await self.type(f"echo {mark}''h")
            left = ends - asyncio.get_running_loop().time()
            try:
                await self.expect(rf"{doubled(f'{mark}h')}\r*\n", deadline=max(0.1, min(self._answer_s, left)))
                return
            except Failed:
                if left <= self._answer_s or self._socket is None or self._socket.closed:
                    raise

    async def ready(self, *, deadline: float = 120.0) -> None:
        """Wait until a shell answers. The command is repeated, since input during the boot is lost. It turns the guest
        kernel's messages on the console off: they would appear in the middle of an answer."""
        end = asyncio.get_running_loop().time() + deadline
        timeout = 2.0
        while True:
            try:
                await self.run("dmesg -n 1", deadline=timeout)
                return
            except Failed:
                timeout = min(timeout * 1.5, 15.0)  # in software emulation an answer may take longer
                if asyncio.get_running_loop().time() > end or self._socket is None or self._socket.closed:
                    raise

    async def _more(self) -> None:
        assert self._socket is not None
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            self.seen += message.data.decode(errors="replace")
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.seen += message.data
        else:
            raise Failed(f"the console of {self._domain} ended")
