"""The relocation server: the listener that accepts moves, as xend's did, on port 8002 by default.

It admits by address (`relocation.hosts_allow`), then by certificate (`cluster/admission.py`). It passes control
connections to the receiver, and streams to the task that waits for their token. It reads at most 64 bytes of a
stranger, and strangers cannot use up the connections reserved for members."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator

from veery.cluster.admission import Admission
from veery.config.settings import Relocation
from veery.errors import Failed, Refused, VeeryError
from veery.host import doortls
from veery.host.acceptor import Acceptor
from veery.host.caps import Caps, Place
from veery.host.contexts import Source, current
from veery.host.ports import bind_refused
from veery.host.tls import Shown, shown
from veery.migrate.wire import (
    FRAME_MAX,
    GREETING_BYTES,
    SO_RCVBUFFORCE,
    Channel,
    end_when_silent,
    keep_shallow,
    parse_greeting,
)

log = logging.getLogger(__name__)

GREETING_DEADLINE_S = 5.0
HANDSHAKE_DEADLINE_S = 10
TOTAL, STRANGERS, EACH = 512, 64, 8
"""Connections: in all; of addresses that have not yet proved to be a node; of any single such address."""


def allowed(hosts_allow: str, address: str, name: str) -> bool:
    """Return whether a caller may connect. "" lets all in. Else one of the patterns, separated by spaces, must match
    the address or name from its beginning, as xend's relocation-hosts-allow did (re.match). A `$` at the end of a
    pattern requires the whole address. Raises Refused for a bad pattern."""
    patterns = hosts_allow.split()
    try:
        return not patterns or any(re.match(pattern, text) for pattern in patterns for text in (address, name) if text)
    except re.error as error:
        raise Refused(f"relocation.hosts_allow is not a valid regular expression: {error}") from error


class _Held(asyncio.StreamReaderProtocol):
    """A protocol that knows its transport."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        super().connection_made(transport)


class RelocationServer:
    """The listener. `taken` is called with each authenticated control connection and owns it until it returns."""

    def __init__(
        self,
        node: str,
        address: str,
        settings: Relocation,
        tls: Source,
        taken: Callable[[Channel], Awaitable[None]],
        *,
        admission: Admission,
        member: Callable[[str], bool],
    ) -> None:
        """`tls` must ask for a certificate of the cluster's CA. `admission` says which certificates are let in,
        `member` whether an address is a node's. Raises Refused at once for a bad hosts_allow."""
        allowed(settings.hosts_allow, "", "")
        for pattern in settings.hosts_allow.split():
            allowed(pattern, "x", "x")
        self.node, self.address, self.port = node, settings.address or address, settings.port
        self._hosts_allow, self.tls, self._taken = settings.hosts_allow, tls, taken
        self._expected: dict[str, asyncio.Future[socket.socket]] = {}
        self._open: dict[str, Callable[[socket.socket], None]] = {}
        self.admission, self._member = admission, member
        self._listener: socket.socket | None = None

    def bind(self) -> None:
        """Bind the port. Raises Refused when it is in use."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.address, self.port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise bind_refused("relocation port", "relocation", self.address, self.port, error) from error
        self._listener = listener

    async def run(self) -> None:
        """Serve without end; each connection is a task of this server and ends with it."""
        if self._listener is None:
            self.bind()
        assert self._listener is not None
        caps = Caps(total=TOTAL, strangers=STRANGERS, each=EACH)
        try:
            await Acceptor("relocation", self._listener, caps, whose=self._whose, serve=self._serve).run()
        finally:
            self._listener.close()
            self._listener = None

    def _whose(self, _: socket.socket, address: str) -> tuple[str, bool]:
        return address, self._member(address)

    @contextlib.contextmanager
    def expect(self) -> Iterator[tuple[str, asyncio.Future[socket.socket]]]:
        """Yield a new token, and a future of the stream that will show it; both are dropped at the end of the
        `with`."""
        token = secrets.token_hex(16)
        future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._expected[token] = future
        try:
            yield token, future
        finally:
            del self._expected[token]
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
            future.cancel()

    @contextlib.contextmanager
    def admit(self, taken: Callable[[socket.socket], None]) -> Iterator[str]:
        """Yield a new token; until the end of the `with` each stream that shows it is passed to `taken`, which owns
        it."""
        token = secrets.token_hex(16)
        self._open[token] = taken
        try:
            yield token
        finally:
            del self._open[token]

    def _awaited(self, token: str) -> bool:
        future = self._expected.get(token)
        return token in self._open or (future is not None and not future.done())

    async def _serve(self, connection: socket.socket, address: str, place: Place) -> None:
        try:
            await self._greet(connection, address, place)
        except VeeryError as error:
            log.warning("relocation: %s: %s", address, error.message)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            log.warning("relocation: %s: %s", address, error or "timeout")
        except Exception:  # one caller must never end the server
            log.exception("relocation: %s: unexpected", address)
        finally:
            place.leave()

    async def _greet(self, connection: socket.socket, address: str, place: Place) -> None:
        loop = asyncio.get_running_loop()
        kept = False
        try:
            async with asyncio.timeout(GREETING_DEADLINE_S):
                if not allowed(self._hosts_allow, address, await _name_of(address, self._hosts_allow)):
                    reason = f"{address} is not in relocation.hosts_allow of {self.node}"
                    await loop.sock_sendall(connection, f"NO {reason}\n".encode())
                    raise Refused(reason)
                data = b""
                while len(data) < GREETING_BYTES:
                    piece = await loop.sock_recv(connection, GREETING_BYTES - len(data))
                    if not piece:
                        raise Refused("closed the connection before its greeting")
                    data += piece
                token = parse_greeting(data)
                if token and not self._awaited(token):
                    await loop.sock_sendall(connection, b"NO such move\n")
                    raise Refused("no move waits for this stream")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_sendall(connection, b"OK\n")
            if token and not self._awaited(token):
                raise Refused("no move waits for this stream any more")
            if token in self._open:
                kept = True
                self._open[token](connection)
                return
            if token:
                connection.setblocking(True)
                keep_shallow(connection, SO_RCVBUFFORCE)
                self._expected[token].set_result(connection)
                kept = True
                return
            kept = True
            await self._control(connection, address, place)
        finally:
            if not kept:
                connection.close()

    async def _control(self, connection: socket.socket, address: str, place: Place) -> None:
        loop = asyncio.get_running_loop()
        end_when_silent(connection)
        reader = asyncio.StreamReader(limit=FRAME_MAX, loop=loop)
        protocol = _Held(reader, loop=loop)
        try:
            await doortls.accept(connection, protocol, current(self.tls), HANDSHAKE_DEADLINE_S)
        except BaseException:
            connection.close()
            raise
        writer = asyncio.StreamWriter(protocol.transport, protocol, reader, loop)
        peer = await self._admitted(protocol.transport, address)
        place.vouch()
        channel = Channel(reader, writer, peer.name)
        try:
            with self.admission.standing(peer, channel.drop):
                await self._taken(channel)
        except Failed as error:
            log.warning("relocation: %s: %s", peer.name, error.message)
        finally:
            await channel.close()

    async def _admitted(self, transport: asyncio.WriteTransport, address: str) -> Shown:
        """Return the certificate's node. Raises Refused, and breaks the connection, where the certificate is not one of
        a node (any more)."""
        try:
            peer = shown(transport.get_extra_info("ssl_object"))
            if peer is None:
                raise Refused(f"{address} has no certificate of this cluster")
            if not await self.admission.lets_in(peer):
                raise Refused(f"{address} has a certificate of {peer.name} that is no longer valid for a node")
        except BaseException:
            transport.abort()
            raise
        return peer


async def _name_of(address: str, hosts_allow: str) -> str:
    """Return the caller's host name, looked up only where a pattern could match one; "" when it has none."""
    if not re.search(r"[A-Za-z]{2}", hosts_allow):
        return ""
    try:
        async with asyncio.timeout(2):
            name, _ = await asyncio.get_running_loop().getnameinfo((address, 0), socket.NI_NAMEREQD)
            return name
    except (OSError, TimeoutError):
        return ""
