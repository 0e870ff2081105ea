"""A shell on a console that loses input, as a guest's does while it boots."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from veery.client.address import Address
from veery.lab.shell import Shell


class Guest:
    """A guest whose shell knows echo alone. It loses the first `lost` characters that are typed."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.ran: list[str] = []

    async def console(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            line = message.data.decode()
            line, self.lost = line[self.lost :], max(0, self.lost - len(line))
            said = ""
            for command in filter(None, map(str.strip, line.split(";"))):
                self.ran.append(command)
                echoed = re.fullmatch("echo (.*)", command)
                said += (echoed[1].replace("'", "") if echoed else f"sh: {command}: not found") + "\r\n"
            await socket.send_bytes(f"{line.strip()}\r\n{said}# ".encode())
        return socket


@pytest.fixture(params=[0, 3, 5, 400])
async def guest(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guest]:
    guest = Guest(request.param)
    app = web.Application()
    app.router.add_get("/v1/domains/web/console", guest.console)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    yield guest
    await runner.cleanup()


async def test_a_command_runs_once_although_input_before_it_is_lost(guest: Guest, tmp_path: Path) -> None:
    async with Shell(Address(tmp_path / "s"), "web", answer_s=0.2) as shell:
        assert await shell.run("echo hello", deadline=60.0) == "hello"
    assert guest.ran.count("echo hello") == 1
