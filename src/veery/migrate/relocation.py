"""The relocation server: the listener that takes moves in, as xend's did, on port 8002 by default.

It admits by address (`relocation.hosts_allow`), then by certificate (`cluster/admission.py`), and hands control
connections to the receiver and streams to whoever waits for their token. Nothing a stranger sends gets further than
64 bytes, and strangers cannot take the connections that are kept for members."""

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

GREETING_DEADLINE = 5.0
HANDSHAKE_DEADLINE = 10
TOTAL, STRANGERS, EACH = 512, 64, 8
"""Connections: in all, of strangers' addresses that have not yet proved to be a node, of any one of those."""


def allowed(hosts_allow: str, address: str, name: str) -> bool:
    """Whether a caller may speak: "" lets all in; else one of the patterns, separated by spaces, must match
    the address or name from its beginning, as xend's relocation-hosts-allow did (re.match). A `$` at the end of a
    pattern asks for the whole. Raises Refused for a bad pattern."""
    patterns = hosts_allow.split()
    try:
        return not patterns or any(re.match(pattern, text) for pattern in patterns for text in (address, name) if text)
    except re.error as error:
        raise Refused(f"relocation.hosts_allow is no regular expression: {error}") from error


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
        """`tls` must ask for a certificate of the cluster's CA; `admission` tells which of them are let in, `member`
        whether an address is a node's. A bad hosts_allow raises Refused at once."""
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
        """Take the port. Raises Refused when it is in use."""
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
        """Serve for ever; each connection is a task of ours and ends with us."""
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
        """A fresh token, and the stream that will come with it; forgotten at the end of the `with`."""
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
        """A fresh token; until the end of the `with` each stream that comes with it is handed to `taken`, which
        owns it."""
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
            async with asyncio.timeout(GREETING_DEADLINE):
                if not allowed(self._hosts_allow, address, await _name_of(address, self._hosts_allow)):
                    said = f"{address} is not in relocation.hosts_allow of {self.node}"
                    await loop.sock_sendall(connection, f"NO {said}\n".encode())
                    raise Refused(said)
                data = b""
                while len(data) < GREETING_BYTES:
                    piece = await loop.sock_recv(connection, GREETING_BYTES - len(data))
                    if not piece:
                        raise Refused("closed before it said what it wants")
                    data += piece
                token = parse_greeting(data)
                if token and not self._awaited(token):
                    await loop.sock_sendall(connection, b"NO such move\n")
                    raise Refused("a stream that nobody waits for")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_sendall(connection, b"OK\n")
            if token and not self._awaited(token):
                raise Refused("a stream that nobody waits for any more")
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
            await doortls.accept(connection, protocol, current(self.tls), HANDSHAKE_DEADLINE)
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
        """Whose certificate it is. Raises Refused, and breaks the connection off, where it is no node's (any more)."""
        try:
            peer = shown(transport.get_extra_info("ssl_object"))
            if peer is None:
                raise Refused(f"{address} shows no certificate of this cluster")
            if not await self.admission.lets_in(peer):
                raise Refused(f"{address} shows a certificate of {peer.name} that is no node's any more")
        except BaseException:
            transport.abort()
            raise
        return peer


async def _name_of(address: str, hosts_allow: str) -> str:
    """The caller's host name, asked only where a pattern could want it; "" when it has none."""
    if not re.search(r"[A-Za-z]{2}", hosts_allow):
        return ""
    try:
        async with asyncio.timeout(2):
            name, _ = await asyncio.get_running_loop().getnameinfo((address, 0), socket.NI_NAMEREQD)
            return name
    except (OSError, TimeoutError):
        return ""
