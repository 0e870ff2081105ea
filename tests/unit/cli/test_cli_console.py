"""The console, against a WebSocket that a stand-in serves."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web
from cli_standin import BUSYBOX, ZERO

COMMAND = (sys.executable, "-m", "veery", "console", "busybox")


class Guest:
    """Serves busybox's console: prints a backlog, answers each line with `heard: LINE`, ends on "poweroff"."""

    def __init__(self, path: Path) -> None:
        self.path, self.typed, self.nodes = path, b"", {"test1": [ZERO, BUSYBOX]}
        self._loop = asyncio.new_event_loop()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Guest:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        self._loop.close()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/v1/domains/{ref}/console", self._console)
        app.router.add_get("/v1/domains/{ref}", self._domain)
        app.router.add_get("/v1/domains", self._domains)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        await web.UnixSite(runner, str(self.path)).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _serve(self) -> None:
        async with self._listening():
            self._ready.set()
            await self._over.wait()

    async def _console(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["ref"] != BUSYBOX["uuid"]:
            return web.json_response(
                {"error": {"kind": "refused", "message": "no domain there", "hint": "look"}}, status=409
            )
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(b"booted\r\n/ # ")
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            self.typed += message.data
            if self.typed.endswith((b"\n", b"\r")):
                await socket.send_bytes(b"heard: " + self.typed.split()[-1] + b"\r\n")
            if b"poweroff" in self.typed:
                self.nodes["test1"] = [ZERO]
                break
        await socket.close()
        return socket

    async def _domain(self, request: web.Request) -> web.Response:
        if request.match_info["ref"] != "busybox":
            error = {"kind": "refused", "message": "no domain wren on test1", "hint": "it runs on test2"}
            return web.json_response({"error": error}, status=409)
        return web.json_response({"reading": BUSYBOX, "spec": {}, "owner": None})

    async def _domains(self, request: web.Request) -> web.Response:
        if request.query.get("cluster"):
            return web.json_response({"nodes": self.nodes, "silent": []})
        return web.json_response({"node": "test1", "domains": self.nodes["test1"]})


@pytest.fixture
def guest(folder: Path) -> Iterator[Guest]:
    with Guest(folder / "run" / "api.sock") as made:
        yield made


def piped(typed: bytes) -> subprocess.CompletedProcess[bytes]:
    """`veery console busybox` with `typed` on a pipe."""
    return subprocess.run(COMMAND, input=typed, capture_output=True, timeout=60, check=False)


def test_a_pipe_types_and_the_answer_is_printed(guest: Guest) -> None:
    done = piped(b"hello\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"booted\r\n/ # heard: hello\r\n"


def test_no_input_prints_the_backlog(guest: Guest) -> None:
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (a device)
        done = subprocess.run(COMMAND, stdin=nothing, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"booted\r\n/ # ")


def test_a_plain_file_is_typed_too(guest: Guest, folder: Path) -> None:
    (folder / "typed").write_bytes(b"hello\n")
    with (folder / "typed").open("rb") as file:
        done = subprocess.run(COMMAND, stdin=file, capture_output=True, timeout=60, check=False)
    assert done.stdout.endswith(b"heard: hello\r\n")


def test_leaving_key_in_a_pipe(guest: Guest) -> None:
    done = piped(b"abc\x1dnever")
    assert (done.returncode, guest.typed) == (0, b"abc")


def test_the_end_of_the_domain_is_told(guest: Guest) -> None:
    done = piped(b"poweroff\n")
    assert (done.returncode, done.stderr) == (0, b"\n[domain busybox has ended]\n")


def test_a_domain_that_moved_away(guest: Guest) -> None:
    guest.nodes["test2"] = [ZERO, BUSYBOX]
    assert piped(b"poweroff\n").stderr == b"\n[domain busybox moved to test2]\n"


def test_no_such_domain(guest: Guest) -> None:
    done = subprocess.run([*COMMAND[:-1], "wren"], input=b"", capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == b"veery: no domain wren on test1\n  hint: it runs on test2\n"


def test_a_refused_console_is_told_in_the_daemons_words(guest: Guest) -> None:
    from veery.client import console
    from veery.client.address import Address
    from veery.errors import Refused

    with pytest.raises(Refused, match="no domain there"):
        asyncio.run(console._attach(Address(guest.path), "other", b"\x1d"))


def test_no_daemon(folder: Path) -> None:
    done = piped(b"")
    assert (done.returncode, b"no veeryd answers" in done.stderr) == (1, True)


class Terminal:
    """`veery console busybox` on a terminal."""

    def __init__(self) -> None:
        self.end, theirs = pty.openpty()
        self.process = subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            try:
                self.seen += os.read(self.end, 4096)
            except OSError:
                break
        assert text in self.seen


@pytest.fixture
def terminal(guest: Guest) -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(20)
        os.close(made.end)


def test_a_terminal(terminal: Terminal, guest: Guest) -> None:
    terminal.wait_for(b"/ # ")
    os.write(terminal.end, b"\x03hi\r")  # Ctrl-C goes to the guest
    terminal.wait_for(b"heard: ")
    assert guest.typed == b"\x03hi\r"
    os.write(terminal.end, b"\x1d")
    assert terminal.process.wait(60) == 0
