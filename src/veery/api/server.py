"""The listeners of the API, who is let in, and how errors and forwarded requests are rendered."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from veery.errors import Failed, Refused, VeeryError
from veery.host.ports import bind_refused
from veery.host.tls import peer_name
from veery.model.codec import encode
from veery.node.peers import Peers

log = logging.getLogger(__name__)

STATUS = {"refused": 409, "failed": 500, "unknown": 504}
HINTS = {  # where whoever raised it knew nothing better
    "failed": "veery dmesg and veeryd's log on that node may tell more",
    "unknown": "it may or may not be done: look with veery list before you try again",
}
LOCAL = "local"
OPEN_ROUTES = frozenset({("GET", "/v1/ca"), ("POST", "/v1/join")})
NODE_HEADER = "X-Veery-Node"
HOP_HEADERS = frozenset({"host", "connection", "transfer-encoding", "content-length", NODE_HEADER.lower()})
CALLER: web.RequestKey[str] = web.RequestKey("caller", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(value: Any, *, status: int = 200) -> web.Response:
    """`value` as the JSON of a response."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


def error_body(error: VeeryError) -> dict[str, Any]:
    """An error as the API shows it."""
    return {"error": {"kind": error.kind, "message": error.message, "hint": error.hint or HINTS.get(error.kind, "")}}


async def body(request: web.Request, **wanted: type) -> dict[str, Any]:
    """The request's JSON object. Raises Refused where it is none, or a key in `wanted` is
    missing or of a wrong type."""
    raw = await request.read()
    try:
        data = msgspec.json.decode(raw) if raw else {}
    except msgspec.DecodeError as error:
        raise Refused(f"the request is no JSON: {error}", hint="see docs/api.md") from error
    if not isinstance(data, dict):
        raise Refused("the request is no JSON object", hint="see docs/api.md")
    for key, kind in wanted.items():
        if not isinstance(data.get(key), kind):
            raise Refused(f"the request needs {key!r}, a {kind.__name__}", hint="see docs/api.md")
    return data


class Lines:
    """An answer in lines of JSON, for long work; it goes on when the caller has left."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self._gone = False

    async def __aenter__(self) -> Lines:
        await self._response.prepare(self._request)
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._gone:
            with contextlib.suppress(ConnectionError):
                await self._response.write_eof()

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self._gone

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response

    async def say(self, event: str, **values: Any) -> None:
        """One line; nothing once the caller has left."""
        if self._gone:
            return
        try:
            await self._response.write(encode({"event": event, **values}) + b"\n")
        except ConnectionError:
            self._gone = True


class ApiServer:
    """One aiohttp application behind two doors: a unix socket, and TLS between nodes."""

    def __init__(
        self,
        node: str,
        peers: Peers,
        tables: Sequence[Sequence[web.RouteDef]],
        *,
        knows: Callable[[str], Awaitable[bool]],
        group: str = "",
    ) -> None:
        """`tables` are the routes; `knows` tells whether a name is a node's, as long as it is in the cluster: its
        certificate lives longer; members of `group` may use the unix socket besides root."""
        self._node, self._peers, self._knows = node, peers, knows
        self._groups = {0} | ({grp.getgrnam(group).gr_gid} if group else set())
        self._app = web.Application(middlewares=[self._errors, self._door, self._forward], client_max_size=64 << 20)
        for table in tables:
            self._app.add_routes(table)
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=2.0)
        self._listener: socket.socket | None = None

    def bind(self, address: str, port: int) -> None:
        """Take the port; nobody is answered yet. Raises Refused when it is in use."""
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((address, port))
            listener.listen(128)  # else two could bind it, and only the first to listen would know
        except OSError as error:
            listener.close()
            raise bind_refused("API port", "api", address, port, error) from error
        self._listener = listener

    async def open(self, path: Path, tls: ssl.SSLContext) -> None:
        """Answer at both doors: the port that `bind` took, and the unix socket `path`."""
        assert self._listener is not None, "bind first"
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, ssl_context=tls).start()
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o666)  # who comes in is judged by SO_PEERCRED, as is said in a clear answer
        listener.setblocking(False)
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Let callers finish for two seconds, then close."""
        await self._runner.cleanup()

    # ---- middlewares, from the outside in

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except VeeryError as error:
            log.info("%s %s: %s: %s", request.method, request.path, error.kind, error.message)
            return answer(error_body(error), status=STATUS[error.kind])
        except web.HTTPException as error:
            unknown = Refused(f"{request.method} {request.path}: {error.reason}", hint="compare `veery version`")
            return answer(error_body(unknown), status=error.status)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            log.exception("%s %s", request.method, request.path)
            return answer(error_body(Failed(f"{type(error).__name__}: {error}", hint="see veeryd's log")), status=500)

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        caller = self._caller(request)
        if caller not in ("", LOCAL, self._node) and not await self._knows(caller):
            caller = ""
        if not caller and (request.method, request.path) not in OPEN_ROUTES:
            stranger = Refused("this node does not know you", hint="come as root, or with a certificate of the cluster")
            log.warning("stranger at %s %s", request.method, request.path)
            return answer(error_body(stranger), status=403)
        request[CALLER] = caller
        return await handler(request)

    def _caller(self, request: web.Request) -> str:
        """LOCAL, the node that the certificate names, or "" for a stranger."""
        if request.transport is None:
            return ""
        connection = request.transport.get_extra_info("ssl_object")
        if connection is not None:
            return peer_name(connection)
        unix = request.transport.get_extra_info("socket")
        if unix is None or unix.family != socket.AF_UNIX:
            return ""
        credentials = unix.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", credentials)
        return LOCAL if uid == 0 or gid in self._groups or _groups_of(pid) & self._groups else ""

    @web.middleware
    async def _forward(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = request.headers.get(NODE_HEADER, "")
        if not wanted or wanted == self._node:
            return await handler(request)
        return await forward(request, self._peers, wanted)


async def forward(request: web.Request, peers: Peers, node: str) -> web.StreamResponse:
    """Send a request on to `node` and its answer back, as they come. Raises Refused when that node does not answer."""
    await peers.awake(node)
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _forward_websocket(request, peers, node)
    headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_HEADERS}
    data = request.content if request.body_exists else None
    upstream = await peers.open(node, request.method, request.path_qs, data=data, headers=headers)
    async with upstream:
        response = web.StreamResponse(
            status=upstream.status, headers={"Content-Type": upstream.headers.get("Content-Type", "application/json")}
        )
        await response.prepare(request)
        async for piece in upstream.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def _forward_websocket(request: web.Request, peers: Peers, node: str) -> web.StreamResponse:
    upstream = await peers.websocket(node, request.path_qs)
    here = web.WebSocketResponse(max_msg_size=0)
    await here.prepare(request)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(upstream, here))
            tasks.create_task(_pump(here, upstream))
    finally:
        await upstream.close()
        await here.close()
    return here


async def _pump(
    source: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
    sink: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
    await sink.close()


def _groups_of(pid: int) -> set[int]:
    """Supplementary groups of a process (proc(5), status); empty when it has left."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Groups:"):
                return {int(word) for word in line.split()[1:]}
    except OSError:
        pass
    return set()
