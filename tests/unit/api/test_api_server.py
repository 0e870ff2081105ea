"""The two doors of the API on loopback, with real TLS and real sockets: who is let in, and what strangers cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from veery.api import line as api_line
from veery.api.server import CALLER, EACH, ApiServer, Lines, answer, body, convert, require_direct
from veery.cluster import revocation
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete
from veery.errors import Failed, NotFound, Refused, Unavailable, VeeryError
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.model.cluster import Token
from veery.model.node import Node, Role
from veery.node.peers import STREAMS, Peers

ADDRESS = "127.0.0.1"
AS_USER = """
import os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(each) for each in sys.argv[4:]]
call = socket.socket(socket.AF_UNIX)
call.settimeout(20)
folder = os.open(os.path.dirname(path), os.O_PATH)
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
call.connect(f"/proc/self/fd/{folder}/api.sock")
call.sendall(b"GET /v1/who HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
said = b""
while piece := call.recv(65536):
    said += piece
print(said.decode())
"""


def sign(folder: Path, authority: tls.KeyPair, name: str) -> Path:
    """A certificate of node `name` in `folder`."""
    now, request = time.time(), tls.make_request(name)
    cert = tls.sign(authority, request.cert, name=name, addresses=[ADDRESS], epoch=now)
    tls.write_folder(folder, ca=authority.cert, node=tls.KeyPair(cert, request.key))
    return folder


def shown(folder: Path, name: str) -> tls.Shown:
    return tls.Shown(name, revocation.certificate((folder / "server-cert.pem").read_text()).serial)


class Served:
    """Nodes a and b, each with an API of a few routes; `a` sends on to `b`."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        authority = self.authority = tls.make_ca("lab", epoch=time.time())
        self.folders = {name: sign(folder / name, authority, name) for name in ("a", "b", "c", "old-c", "local")}
        self.folders["old-c"] = sign(folder / "old", authority, "c")
        self.store, self.runtime = MemoryStore(RealClock()), runtime
        self.ports: dict[str, int] = {}
        self.apis: dict[str, ApiServer] = {}
        self.followers = 0
        self.error: VeeryError = NotFound("gone")
        self._running: list[asyncio.Task[None]] = []

    async def open(self, group: str = "") -> None:
        for name in ("a", "b", "c"):
            await self.know(name, self.folders[name])
        self.peers = Peers(tls.client_context(self.folders["a"]), self._node)
        for name in ("a", "b"):
            admission = Admission(
                self.store.view(), shown(self.folders[name], name), self.runtime / f"{name}-certificates.json"
            )
            self._running.append(asyncio.create_task(admission.run()))
            self.admission = admission
            routes = [
                web.get("/v1/who", self._who),
                web.get("/v1/direct", self._direct),
                web.get("/v1/ca", self._ca),
                web.get("/v1/gone", self._gone),
                web.post("/v1/join", self._join),
                web.post("/v1/events/follow", self._follow),
            ]
            api = ApiServer(
                name,
                self.peers,
                [routes],
                admission=admission,
                member=lambda address: address == ADDRESS,
                group=group if name == "a" else "",
            )
            with socket.socket() as free:
                free.bind((ADDRESS, 0))
                self.ports[name] = free.getsockname()[1]
            api.bind(ADDRESS, self.ports[name])
            (self.runtime / name).mkdir()
            await api.open(self.runtime / name / "api.sock", tls.server_context(self.folders[name]))
            self.apis[name] = api

    async def close(self) -> None:
        await self.peers.close()
        for api in self.apis.values():
            await api.close()
        await stop(*self._running)

    async def know(self, name: str, folder: Path) -> None:
        """Have the store say that this certificate is a node's."""
        record = revocation.certificate((folder / "server-cert.pem").read_text())
        await self.store.commit([], [CERTIFICATES.put(name, record)])

    async def _node(self, name: str) -> Node:
        if name not in self.ports:
            raise Refused(f"no node {name!r}")
        return Node(name=name, address=ADDRESS, roles=(Role.VOTER,), api_port=self.ports[name])

    async def _who(self, request: web.Request) -> web.Response:
        return answer({"caller": str(request[CALLER])})

    async def _direct(self, request: web.Request) -> web.Response:
        return answer({"caller": str(require_direct(request))})

    async def _gone(self, _: web.Request) -> web.Response:
        raise self.error

    async def _ca(self, _: web.Request) -> web.Response:
        return answer({"ca": ""})

    async def _join(self, request: web.Request) -> web.Response:
        return answer(convert(await body(request), Token))

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        async def silence() -> AsyncGenerator[object, None]:
            self.followers += 1
            try:
                yield "begun"
                await asyncio.sleep(3600)
            finally:
                self.followers -= 1

        async with Lines(request) as lines:
            await lines.follow(silence())
        return lines.response

    def context(self, who: str) -> ssl.SSLContext:
        if who:
            return tls.client_context(self.folders[who])
        return tls.unverified_context()

    async def ask(self, who: str, session: aiohttp.ClientSession | None = None) -> int:
        """The status of GET /v1/who with the certificate of `who`."""
        async with contextlib.AsyncExitStack() as stack:
            if session is None:
                session = await stack.enter_async_context(aiohttp.ClientSession())
            where = f"https://{ADDRESS}:{self.ports['a']}/v1/who"
            response = await session.get(where, ssl=self.context(who), server_hostname="a")
            async with response:
                return response.status

    async def say(self, data: bytes, source: str = "127.0.2.1") -> bytes:
        """All that is answered to `data` from a stranger."""
        reader, writer = await self.connect(source)
        writer.write(data)
        told = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                told = await reader.read()
        writer.close()
        return told

    async def connect(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            ADDRESS, self.ports["a"], ssl=tls.unverified_context(), local_addr=(source, 0)
        )


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "run").mkdir()
    made = Served(tmp_path, tmp_path / "run")
    await made.open()
    yield made
    await made.close()


async def eventually(check: object, within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not check():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_the_serial_number_decides_not_the_name(served: Served) -> None:
    assert await served.ask("c") == 200
    assert await served.ask("old-c") == 403
    assert await served.ask("") == 403
    await served.store.commit([], [Delete(CERTIFICATES.key("c"))])
    async with asyncio.timeout(10):
        while await served.ask("c") != 403:
            pass
    await served.know("c", served.folders["old-c"])  # the name joins anew
    assert await served.ask("old-c") == 200, "one that has just come in is asked for at once"
    assert await served.ask("c") == 403


async def test_no_name_opens_the_door_by_itself(served: Served) -> None:
    assert await served.ask("local") == 403


async def test_a_standing_connection_is_cut(served: Served) -> None:
    url = f"https://{ADDRESS}:{served.ports['a']}/v1/events/follow"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, ssl=served.context("c"), server_hostname="a") as response,
    ):
        assert b"begun" in await response.content.readline()
        await served.store.commit([], [Delete(CERTIFICATES.key("c"))])
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(8):  # sooner than the next "alive" line
                while await response.content.readline():
                    pass
    await eventually(lambda: served.followers == 0)


async def test_a_store_that_is_away_leaves_things_as_they_were(tmp_path: Path) -> None:
    store = MemoryStore(RealClock())
    file, own, other = tmp_path / "certificates.json", tls.Shown("a", "1"), tls.Shown("b", "2")
    record = revocation.Certificate(serial="2", ends=0)
    await store.commit([], [CERTIFICATES.put("b", record)])
    assert await Admission(store, own, file).lets_in(other)
    store.set_available(False)
    again = Admission(store, own, file)
    assert await again.lets_in(other)
    assert await again.lets_in(own)
    assert not await again.lets_in(tls.Shown("b", "3"))
    assert not await again.lets_in(None)


def _ask_as(path: Path, uid: int, gid: int, *groups: int) -> str:
    words = [sys.executable, "-c", AS_USER, str(path), str(uid), str(gid), *map(str, groups)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split(" ")[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
async def test_only_root_and_the_group_come_by_the_unix_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    served = Served(tmp_path, tmp_path / "run")
    await served.open(group="daemon")  # group 1 everywhere
    path = tmp_path / "run" / "a" / "api.sock"
    try:
        told = [
            await asyncio.to_thread(_ask_as, path, *who)
            for who in ((0, 0), (65534, 65534), (65534, 0), (65534, 65534, 0), (65534, 65534, 1), (65534, 1))
        ]
        assert told == ["200", "403", "403", "403", "200", "200"]
    finally:
        await served.close()


async def test_what_a_stranger_does_not_finish_is_ended(served: Served) -> None:
    """Nothing, half a header, half a body: none of them holds its connection."""
    halves = [
        b"",
        b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
    ]
    with socket.create_connection((ADDRESS, served.ports["a"]), 30, source_address=("127.0.2.1", 0)) as silent:
        silent.setblocking(False)  # no handshake at all
        told = await asyncio.gather(*(served.say(half) for half in halves))
        async with asyncio.timeout(40):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
    assert told[:2] == [b"", b""]
    assert told[2].startswith(b"HTTP/1.1 408"), told[2]
    assert api_line.STRANGER_S <= 10


async def test_a_stranger_sends_no_more_than_a_little(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for data, status in (
        (b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", b"413"),
        (
            b"POST /v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n11800\r\n"
            + b"x" * 0x11800
            + b"\r\n",
            b"413",
        ),
        (b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000, b"400"),
        (b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n\xff\xfe", b"400"),
        (b'POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"expires":"x"}', b"400"),
        (b"\x00\x01\x02 no HTTP\r\n\r\n", b"400"),
        (b"GET /v1/ca HTTP/1.1\r\nX-Veery-Node: b\r\nHost: x\r\n\r\n", b"403"),
    ):
        told = await served.say(data)
        assert told.split(b" ")[1] == status, (data[:80], told)
        assert b"aiohttp" not in told
    assert "Traceback" not in caplog.text


async def test_an_older_node_that_joins_reads_the_error(served: Served) -> None:
    """It takes the whole answer for objects of texts: nothing else may be in it."""
    for data in (b"{}", b"[]"):
        told = await served.say(
            b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        head, _, body = told.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        sent = msgspec.json.decode(body, type=dict[str, dict[str, str]])
        assert (sent["error"]["kind"], sent.keys()) == ("refused", {"error"})


async def test_strangers_leave_room_for_members(served: Served) -> None:
    idle = []
    try:
        for number in range(60):  # of one address, then of others
            with contextlib.suppress(OSError):
                idle.append(await served.connect(f"127.0.2.{1 if number < 30 else number}"))
        assert EACH <= len(idle) < 60
        assert await served.ask("c") == 200
    finally:
        for _, writer in idle:
            writer.transport.abort()


async def test_a_stream_ends_with_its_caller_and_delays_no_order(served: Served) -> None:
    url = f"https://{ADDRESS}:{served.ports['a']}/v1/events/follow"
    headers = {"X-Veery-Node": "b"}
    context = served.context("c")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def follow() -> aiohttp.ClientResponse:
            return await session.post(url, ssl=context, server_hostname="a", headers=headers)

        responses = await asyncio.gather(*(follow() for _ in range(STREAMS[1])))
        more = [asyncio.create_task(follow()) for _ in range(5)]  # these wait for a place
        await eventually(lambda: served.followers == STREAMS[1])
        assert await served.peers.call("b", "GET", "/v1/who", deadline=10) == {"caller": "a"}
        await stop(*more)
        for response in responses:
            response.close()
        await eventually(lambda: served.followers == 0)


async def test_a_peer_that_is_not_there_is_refused(served: Served) -> None:
    with pytest.raises((Refused, Failed), match="nowhere"):
        await served.peers.call("nowhere", "GET", "/v1/who")


@pytest.mark.parametrize("kind", [NotFound, Unavailable, Refused, Failed])
async def test_an_error_keeps_its_reason_from_node_to_node(served: Served, kind: type[VeeryError]) -> None:
    served.error = kind("no domain x", hint="look")
    with pytest.raises(kind, match="no domain x") as caught:
        await served.peers.call("b", "GET", "/v1/gone")
    assert (caught.type, caught.value.hint) == (kind, "look")


async def test_a_wrong_method_names_the_right_ones(served: Served) -> None:
    where = f"https://{ADDRESS}:{served.ports['a']}/v1/events/follow"
    async with (
        aiohttp.ClientSession() as session,
        session.get(where, ssl=served.context("c"), server_hostname="a") as response,
    ):
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert response.content_type == "application/problem+json"


def test_python_has_the_option_where_we_look_for_it() -> None:
    one, two = socket.socketpair()
    with one, two:
        data = one.getsockopt(socket.SOL_SOCKET, 59, 1024)
        assert {each for (each,) in struct.iter_unpack("I", data)} == set(os.getgroups())
