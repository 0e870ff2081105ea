"""A program on a terminal inside a nested node, controlled from outside: mostly `xl console`."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from veery.errors import Failed
from veery.lab.xen import talk
from veery.lab.xen.agent import frame, read_frame
from veery.lab.xen.node import Nested

_OPEN_TIMEOUT_S = 30.0


class Terminal:
    """A program's terminal; `seen` is its output after the last expected pattern."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self.seen = reader, writer, ""

    async def type(self, text: str) -> None:
        """Type `text` unchanged."""
        self._writer.write(frame(b"I", text.encode()))
        await self._writer.drain()

    async def expect(self, pattern: str, *, deadline: float = 120.0) -> str:
        """Wait until `pattern` is seen; return the output up to its end, and remove it from `seen`. Raises Failed."""
        try:
            async with asyncio.timeout(deadline):
                while (match := re.search(pattern, self.seen)) is None:
                    kind, content = await read_frame(self._reader)
                    if kind == b"Q":
                        raise Failed(f"the program ended with {content.decode()}; last: {self.seen[-300:]!r}")
                    self.seen += content.decode(errors="replace").replace("\r", "")
        except (TimeoutError, EOFError) as error:
            raise Failed(f"no {pattern!r} within {deadline:g} s; last: {self.seen[-300:]!r}") from error
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    async def run(self, command: str, *, deadline: float = 120.0) -> str:
        """Run a line in the shell on the terminal; return its output.

        The marks are typed in two halves, so that the echo of the line does not match them."""
        mark = secrets.token_hex(3)
        await self.type(f"echo {mark}''a; {command}; echo {mark}''z\n")
        await self.expect(rf"{mark}a\n", deadline=deadline)
        return (await self.expect(rf"{mark}z\n", deadline=deadline)).rpartition(f"{mark}z")[0].strip()

    async def ready(self, *, deadline: float = 240.0) -> None:
        """Return once a shell answers: input during the boot may be lost, so the command is repeated."""
        ends = asyncio.get_running_loop().time() + deadline
        while True:
            try:
                await self.run("true", deadline=10.0)
                return
            except Failed:
                if asyncio.get_running_loop().time() > ends:
                    raise


@asynccontextmanager
async def terminal(node: Nested, argv: Sequence[str]) -> AsyncIterator[Terminal]:
    """Run `argv` on a terminal in dom0 for this context; then its process group is killed. Raises Failed."""
    order = {"argv": list(argv), "env": {"TERM": "dumb"}, "tty": [24, 200]}
    try:
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            reader, writer = await talk.connect(node.namespace)
    except (OSError, TimeoutError) as error:
        raise Failed(f"cannot open a terminal on {node.node.name}: {error}") from error
    try:
        writer.write(frame(b"R", json.dumps(order).encode()))
        yield Terminal(reader, writer)
    finally:
        writer.close()
