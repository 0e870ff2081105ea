"""The API server: its listeners, admission, errors and forwarded requests."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from veery.api.errors import Malformed, NoRoute, misfit, problem
from veery.api.line import SERVER, Caller, Line
from veery.api.route import Privilege
from veery.api.table import ROUTES
from veery.cluster.admission import Admission
from veery.errors import Failed, Refused, VeeryError
from veery.host import doortls, tasks
from veery.host.acceptor import Acceptor
from veery.host.caps import Caps, Place
from veery.host.contexts import Source, current
from veery.host.credentials import credentials
from veery.host.ports import bind_refused
from veery.host.shortage import is_shortage
from veery.model import codec
from veery.model.codec import encode
from veery.node.peers import Peers

log = logging.getLogger(__name__)

SHORT_HINT = "ls /proc/$(pidof -x veeryd)/fd | wc -l; see LimitNOFILE; then check the result: veery list"
OPEN_ROUTES = frozenset(route.key for route in ROUTES if route.privilege is Privilege.OPEN)
NODE_HEADER = "X-Veery-Node"
BY_HEADER = "X-Veery-By"  # names the original caller of a request that another node forwards
HOP_HEADERS = frozenset(
    {"host", "connection", "transfer-encoding", "content-length", NODE_HEADER.lower(), BY_HEADER.lower()}
)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)

TOTAL, STRANGERS, EACH = 1024, 128, 16
"""Limits of connections to the TLS port: in all, from all strangers' addresses, from each such address. An idle
connection takes less than 64 KiB (tests/unit/api/test_api_memory.py)."""
LOCAL_TOTAL, LOCAL_STRANGERS, LOCAL_EACH = 512, 32, 8
"""Limits of connections to the unix socket: in all, from all users without permission, from each such user."""
HANDSHAKE_S = 10
BODY_S = 60.0
BODY_MAX = 4 << 20  # bytes of a JSON body
STRANGER_BODY_S = 10.0
STRANGER_BODY_MAX = 64 << 10
AUTHOR_MAX = 100  # characters of the name in an order
ALIVE_EVERY_S = 10.0  # interval of "alive" lines in a stream without events

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def answer(value: Any, *, status: int = 200) -> web.Response:
    """Return a response with `value` as JSON."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


def author(request: web.Request, by: str) -> str:
    """Return who gave an order, for records and events: the name `by` in the order, and the caller.

    The name is checked here alone. Records and logs keep it as it is."""
    return f"{words(by, AUTHOR_MAX) or 'root'}@{request[CALLER]}"


def words(text: str, most: int) -> str:
    """Return an operator's own words from an order: at most `most` characters, all printable.

    They are checked here alone. Records, events and logs keep them as they are."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:most])


async def body(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object. Raises Malformed if the body is not an object, is too long or too slow."""
    raw = await _read(request)
    try:
        data = msgspec.json.decode(raw) if raw else {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"the request is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Malformed("the request is not a JSON object")
    return data


async def order(request: web.Request, type: type[T]) -> T:
    """Return the body of the request as a `type`, the one that its row of the table has. A null counts as a missing
    field, and unknown fields are ignored. Raises Malformed with the name of the wrong field."""
    return checked(await body(request), type)


def checked(data: Mapping[str, Any], type: type[T]) -> T:
    """Return `data`, the result of `body`, as `order` does."""
    return convert({key: value for key, value in data.items() if value is not None}, type)


def require_direct(request: web.Request) -> Caller:
    """Return the calling node, by its own certificate. Raises Refused for a forwarded request."""
    caller = request[CALLER]
    if not caller.node or BY_HEADER in request.headers:
        raise Refused("a node must call this route itself, not through another node", hint="see docs/api.md")
    return caller


def convert(value: Any, type: type[T], *, keep: bool = False) -> T:
    """Convert a part of a request's JSON to a `type`; `keep` as in codec.convert. Raises Malformed on a misfit."""
    try:
        return codec.convert(value, type, keep=keep)
    except (Failed, RecursionError) as error:
        raise misfit(str(error.__cause__ or error), type) from error


async def _read(request: web.Request) -> bytes:
    """Return the bytes of the body, within the caller's limits of size and time. Raises Malformed."""
    known = request[CALLER].known
    most, within = (BODY_MAX, BODY_S) if known else (STRANGER_BODY_MAX, STRANGER_BODY_S)
    if (request.content_length or 0) > most:
        raise Malformed(f"the request has more than {most} bytes", 413)
    data = bytearray()
    try:
        async with asyncio.timeout(within):
            async for piece in request.content.iter_any():
                data += piece
                if len(data) > most:
                    raise Malformed(f"the request has more than {most} bytes", 413)
    except TimeoutError as error:
        raise Malformed(f"the request was not complete within {within:g} s", 408) from error
    return bytes(data)


class Lines:
    """An answer in lines of JSON, for long work. The work continues when the caller has disconnected."""

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
        """True once the caller has disconnected."""
        return self._gone

    @property
    def response(self) -> web.StreamResponse:
        """The response that the handler returns."""
        return self._response

    async def follow(self, source: AsyncGenerator[Any, None]) -> None:
        """Send each value of `source` as an event, until it ends or the caller disconnects. Without values, send an
        "alive" line every ALIVE_EVERY_S: its failure shows that the caller's machine has died."""
        line = _line(self._request)
        async with contextlib.aclosing(source):
            values = aiter(source)
            due = asyncio.create_task(_next(values))
            try:
                while not self._gone and not line.gone.done():
                    await asyncio.wait({due, line.gone}, timeout=ALIVE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                    if not due.done():
                        await self.say("alive")
                        continue
                    if (value := due.result()) is None:
                        return
                    due = asyncio.create_task(_next(values))
                    await self.say("event", value=value)
            finally:
                await tasks.stop(due)

    async def say(self, event: str, **values: Any) -> None:
        """Send one line. Do nothing once the caller has disconnected."""
        if self._gone:
            return
        try:
            await self._response.write(encode({"event": event, **values}) + b"\n")
        except ConnectionError:
            self._gone = True


class ApiServer:
    """One aiohttp application with two listeners: a unix socket, and a TLS port for the nodes."""

    def __init__(
        self,
        node: str,
        peers: Peers,
        tables: Sequence[Sequence[web.RouteDef]],
        *,
        admission: Admission,
        member: Callable[[str], bool],
        group: str = "",
    ) -> None:
        """`tables` are the routes. `admission` decides which certificates are accepted. `member` returns whether an
        address is a node's; the limit on strangers keeps connections free for nodes. Root and members of `group` may
        use the unix socket."""
        self._node, self._peers, self._admission, self._member = node, peers, admission, member
        self._group = grp.getgrnam(group).gr_gid if group else None
        self._app = web.Application(middlewares=[self._errors, self._door, self._forward])
        self._app.on_response_prepare.append(_unnamed)
        self.routes = tuple(route for table in tables for route in table)
        for table in tables:
            self._app.add_routes(table)
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=2.0)
        self._listener: socket.socket | None = None
        self._tls: Source | None = None
        self._open: list[tuple[asyncio.Task[None], socket.socket]] = []

    def bind(self, address: str, port: int) -> None:
        """Bind the port without answering yet. Raises Refused if it is in use."""
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((address, port))
            listener.listen(128)  # without it two processes could bind the port, and only the second listen would fail
        except OSError as error:
            listener.close()
            raise bind_refused("API port", "api", address, port, error) from error
        self._listener = listener

    async def open(self, path: Path, tls: Source) -> None:
        """Start to answer on the port of `bind` and on the unix socket `path`."""
        assert self._listener is not None, "bind first"
        await self._runner.setup()
        self._tls = tls
        caps = Caps(total=TOTAL, strangers=STRANGERS, each=EACH)
        self._accept("api", self._listener, caps)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o666)  # peer credentials decide, so that a refused user gets a clear answer
        listener.setblocking(False)
        listener.listen(128)
        self._accept("api.sock", listener, Caps(total=LOCAL_TOTAL, strangers=LOCAL_STRANGERS, each=LOCAL_EACH))

    async def close(self) -> None:
        """Give callers two seconds to finish, then close."""
        await tasks.stop(*(task for task, _ in self._open))
        for _, listener in self._open:
            listener.close()
        await self._runner.cleanup()

    # ---- connections
    @property
    def connections(self) -> int:
        """The number of open connections that may send a request."""
        return len(self._runner.server.connections) if self._runner.server else 0

    def _accept(self, name: str, listener: socket.socket, caps: Caps) -> None:
        acceptor = Acceptor(name, listener, caps, whose=self._whose, serve=self._serve)
        self._open.append((asyncio.create_task(acceptor.run(), name=name), listener))

    def _whose(self, connection: socket.socket, address: str) -> tuple[str, bool]:
        if connection.family == socket.AF_UNIX:
            theirs = credentials(connection)
            return f"user {theirs.uid}", theirs.uid == 0 or self._group in theirs.groups
        return address, self._member(address)

    async def _serve(self, connection: socket.socket, where: str, place: Place) -> None:
        """Hand a connection to aiohttp after its TLS handshake."""
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        local = connection.family == socket.AF_UNIX
        try:
            line = Line(server, where, place, self._admission)
            if local and self._whose(connection, "")[1]:
                line.welcome()
            if local or self._tls is None:
                await loop.connect_accepted_socket(lambda: line, connection)
            else:
                await doortls.accept(connection, line, current(self._tls), HANDSHAKE_S)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one
            log.debug("api: %s: %s", where, error)
            place.leave()
            connection.close()
        except BaseException:
            place.leave()
            connection.close()
            raise

    # ---- middlewares, from the outside in

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except VeeryError as error:
            log.info("%s %s: %s: %s", request.method, request.path, error.kind, error.message)
            return _failed(request, error)
        except web.HTTPException as error:
            unknown = NoRoute(f"{request.method} {request.path}: {error.reason}", hint="compare `veery version`")
            response = problem(unknown, error.status)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            if is_shortage(error):
                log.error("%s %s: %s", request.method, request.path, error)
                short = Failed(f"veeryd is short of a resource: {error or type(error).__name__}", hint=SHORT_HINT)
                return _failed(request, short)
            log.exception("%s %s", request.method, request.path)
            return _failed(request, Failed(f"{type(error).__name__}: {error}", hint="see veeryd's log"))

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        line = _line(request)
        line.begun()
        try:
            caller = request[CALLER] = await line.identify()
            if caller.known:
                return await handler(request)
            return await self._stranger(request, handler)
        finally:
            line.ended()

    async def _stranger(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve the routes that are open to strangers. Each answer closes the connection."""
        if (request.method, request.path) in OPEN_ROUTES and not request.headers.get(NODE_HEADER):
            try:
                response = await handler(request)
            except Malformed as error:
                response = _failed(request, error)
        else:
            log.warning("stranger %s at %s %s", request.remote or "here", request.method, request.path)
            stranger = Refused("this node does not know you", hint="call as root, or with a certificate of the cluster")
            response = problem(stranger, 403)
        response.force_close()
        return response

    @web.middleware
    async def _forward(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = request.headers.get(NODE_HEADER, "")
        if not wanted or wanted == self._node:
            return await handler(request)
        return await forward(request, self._peers, wanted)


def _failed(request: web.Request, error: VeeryError) -> web.Response:
    return problem(error, plain=(request.method, request.path) in OPEN_ROUTES)


async def forward(request: web.Request, peers: Peers, node: str) -> web.StreamResponse:
    """Forward a request to `node`, and stream its answer back. Raises Refused if that node does not answer."""
    await peers.awake(node)
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _forward_websocket(request, peers, node)
    headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_HEADERS}
    headers[BY_HEADER] = str(request[CALLER])
    data = request.content if request.body_exists else None
    upstream = await peers.open(node, request.method, request.path_qs, data=data, headers=headers)
    async with upstream:
        response = web.StreamResponse(
            status=upstream.status, headers={"Content-Type": upstream.headers.get("Content-Type", "application/json")}
        )
        await response.prepare(request)
        copying = asyncio.ensure_future(_copy(upstream, response))
        gone = _line(request).gone
        try:
            await asyncio.wait({copying, gone}, return_when=asyncio.FIRST_COMPLETED)
            if copying.done():
                copying.result()
                await response.write_eof()
        finally:
            await tasks.stop(copying)
        return response


async def _copy(upstream: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    async for piece in upstream.content.iter_any():
        await response.write(piece)


async def _next(values: AsyncIterator[Any]) -> Any:
    """Return the next value; None at the end, because a task cannot raise StopAsyncIteration."""
    return await anext(values, None)


def _line(request: web.Request) -> Line:
    assert isinstance(request.protocol, Line)
    return request.protocol


async def _unnamed(_: web.Request, response: web.StreamResponse) -> None:
    """Hide the names and versions of the libraries."""
    response.headers["Server"] = SERVER


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
