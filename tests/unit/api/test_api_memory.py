"""What an idle caller costs the daemon's memory, at the API's TLS port and at the relocation port."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_api_server import ADDRESS, Served, eventually

from veery.config.settings import Relocation
from veery.host import tls
from veery.host.tasks import stop
from veery.migrate.relocation import RelocationServer
from veery.migrate.wire import Channel, greeting

COUNT, FIRST = 300, 60
EACH_MAX = 64  # KiB

CALLER = """
import resource, socket, ssl, sys
port, count, hail, certificates = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4]
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.load_cert_chain(certificates + "/client-cert.pem", certificates + "/client-key.pem")
held = []
for number in range(count):
    call = socket.create_connection(("127.0.0.1", port), 60)
    if hail:
        call.sendall(hail)
        assert call.recv(3) == b"OK\\n"
    held.append(context.wrap_socket(call))
print("all", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return int(free.getsockname()[1])


def resident() -> int:
    """KiB of memory of this process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0])


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "run").mkdir()
    made = Served(tmp_path, tmp_path / "run")
    await made.open()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def callers(port: int, count: int, hail: bytes, folder: Path) -> AsyncIterator[None]:
    """So many connections of another process, each with its hand-shake made, that say nothing."""
    words = [sys.executable, "-c", CALLER, str(port), str(count), hail.hex(), str(folder)]
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=piped, stdout=piped, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 120) == b"all\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def test_idle_members_cost_little_at_both_ports(served: Served) -> None:
    """All of them stay until the end: memory that is given back would be counted for nobody."""
    waiting = 0

    async def taken(channel: Channel) -> None:
        nonlocal waiting
        waiting += 1
        await channel.receive(None)

    server = RelocationServer(
        "a",
        ADDRESS,
        Relocation(port=free_port()),
        tls.server_context(served.folders["a"]),
        taken,
        admission=served.admission,
        member=lambda _: True,
    )
    server.bind()
    running = asyncio.create_task(server.run())
    api, folder = served.apis["a"], served.folders["c"]
    try:
        async with contextlib.AsyncExitStack() as stack:
            each = []
            for port, hail, there in (
                (served.ports["a"], b"", lambda: api.connections),
                (server.port, greeting(), lambda: waiting),
            ):
                await stack.enter_async_context(callers(port, FIRST, hail, folder))
                before, begun = resident(), there()
                await stack.enter_async_context(callers(port, COUNT, hail, folder))
                await eventually(lambda there=there, begun=begun: there() >= begun + COUNT, 60)
                each.append((resident() - before) / COUNT)
            assert max(each) < EACH_MAX, each
    finally:
        await stop(running)
