"""etcd's v3 API as JSON over HTTP: one call to any member that answers, and one stream.

etcd also serves its gRPC API as JSON (etcd docs, dev-guide/api_grpc_gateway); int64 are strings there, bytes
base64. The module decides what a failed call means. If a member reports that it did nothing, or the connection was
never made, another member is asked. A request that was sent and not answered may have been carried out."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from veery.cluster.store import StoreUnavailable
from veery.errors import Failed, OutcomeUnknown
from veery.host.contexts import Source, current

T = TypeVar("T")

STORE_HINT = "see `veery node list`; most voters must be up and reach each other"
FULL_HINT = "veery cluster defrag"

# Answers that prove that the request was not carried out (etcd api/v3rpc/rpctypes/error.go, raft/raft.go, and grpc's
# picker, which answers when the gateway cannot reach its own server).
NOT_DONE = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: too many requests",
    "etcdserver: unhealthy cluster",
    "etcdserver: rpc not supported for learner",
    "etcdserver: corrupt cluster",
    "raft proposal dropped",
    "all SubConns are in TransientFailure",
    "there is no connection available",
)
# gRPC codes of answers that are the same from every member: invalid argument, not found, already exists,
# failed precondition, out of range.
FINAL = frozenset({3, 5, 6, 9, 11})
RESOURCE_EXHAUSTED = 8

ROUND_PAUSE_S = 0.1  # between two rounds over all members
# Make a member without a leader fail at once instead of waiting for one (rpctypes/md.go); streams end with it.
LEADER_HEADERS = {"Grpc-Metadata-hasleader": "true"}


class Declined(Failed):
    """Raised when etcd rejects a request: `code` is gRPC's, `reason` is etcd's message. Nothing was done."""

    def __init__(self, code: int, reason: str) -> None:
        full = code == RESOURCE_EXHAUSTED
        super().__init__(
            "the store is full" if full else f"the store refuses: {reason.removeprefix('etcdserver: ')}",
            hint=FULL_HINT if full else "",
        )
        self.code = code
        self.reason = reason


class NotDone(Exception):
    """Raised when one member did not carry the request out; another may."""


class Unanswered(Exception):
    """Raised when a member got the request but gave no usable answer: it may have carried it out."""


class _Error(msgspec.Struct):
    message: str = ""
    error: str = ""
    code: int = 0


class Gateway:
    """Calls to the members of one etcd cluster, over persistent connections."""

    def __init__(self, endpoints: Sequence[str], *, tls: Source | None, deadline: float) -> None:
        """`endpoints`: "https://172.16.31.1:2379", the preferred one first. `deadline`: seconds a call may take."""
        self._endpoints = tuple(endpoints)
        self._at = 0
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.deadline = deadline
        self.closed = False
        self._waits: dict[asyncio.Timeout, str] = {}  # each with the member of its stream; "" for a call

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Return the members that are asked."""
        return self._endpoints

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these members from now on; the one in use stays in use if it is among them."""
        current = self._endpoints[self._at % len(self._endpoints)]
        self._endpoints = tuple(endpoints) or self._endpoints
        self._at = self._endpoints.index(current) if current in self._endpoints else 0

    async def read(self, path: str, body: Any, type: type[T]) -> T:
        """Ask until a member answers; asking twice must do no harm. Raises StoreUnavailable, Declined."""
        return await self._rounds(path, body, type, again=True)

    async def write(self, path: str, body: Any, type: type[T]) -> T:
        """Ask until a member takes the request; it is never sent again if a member may have taken it.

        Raises StoreUnavailable or Declined (both: not done), OutcomeUnknown."""
        return await self._rounds(path, body, type, again=False)

    async def ask(
        self,
        endpoint: str,
        path: str,
        body: Any,
        type: type[T],
        *,
        within: float,
        connect: float = 0,
        leader: bool = True,
        method: str = "POST",
    ) -> T:
        """Ask this one member, once. With `leader`, a member that knows no leader rejects the request.

        Raises NotDone, Unanswered, Declined."""
        try:
            call = self._exchange(endpoint + path, body, connect or within, leader, method)
            status, data = await self._within(within, call)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotDone(f"{endpoint}: {_reason(error)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(f"{endpoint}: {error or 'no answer in time'}") from error
        if status != 200:
            raise _judge(endpoint, status, data)
        try:
            return msgspec.json.decode(data, type=type, strict=False)
        except msgspec.DecodeError as error:
            raise Unanswered(f"{endpoint}: unreadable answer: {error}") from error

    async def lines(self, path: str, body: Any, *, quiet: float, leader: bool = True) -> AsyncGenerator[bytes, None]:
        """Yield the lines of one stream from one member; after a failure the next call uses another member. With
        `leader`, the member must know a leader.

        Raises Unanswered when the stream ends, when it is silent for `quiet` seconds, or when a call finds that member
        dead: a machine without power closes no connection."""
        endpoint = self._endpoints[self._at % len(self._endpoints)]
        rest, answer = b"", None
        try:
            answer = await self._within(
                quiet, self._send(endpoint + path, body, self.deadline, leader=leader), endpoint
            )
            while piece := await self._within(quiet, answer.content.readany(), endpoint):
                *complete, rest = (rest + piece).split(b"\n")
                for line in complete:
                    if line.startswith(b'{"error"'):  # the member has no leader, no vote, or is stopping
                        raise Unanswered(f"{endpoint}: {line.decode(errors='replace')}")
                    yield line
            raise Unanswered(f"{endpoint}: the stream ended")
        except (aiohttp.ClientError, OSError) as error:
            self._skip(endpoint)
            raise Unanswered(f"{endpoint}: {error or 'silent for too long'}") from error
        except Unanswered:
            self._skip(endpoint)
            raise
        finally:
            if answer is not None:
                if (connection := answer.connection) is not None and connection.transport is not None:
                    connection.transport.abort()  # a TLS close would wait for a member that may be frozen
                answer.close()

    async def close(self) -> None:
        """Close all connections; no call is possible afterwards."""
        self.closed = True
        self._wake(*self._waits.values())  # closing a connection does not wake its reader
        if self._session is not None:
            await self._session.close()

    async def _rounds(self, path: str, body: Any, type: type[T], *, again: bool) -> T:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self.deadline
        tried, why = 0, "no member was asked"
        while (left := ends - loop.time()) > 0 and not self.closed:
            endpoint = self._endpoints[self._at % len(self._endpoints)]
            # The members not yet tried share the remaining time, so that one frozen member does not use it all.
            share = left / max(1, len(self._endpoints) - tried)
            try:
                return await self.ask(endpoint, path, body, type, within=share if again else left, connect=0.9 * share)
            except NotDone as error:
                why = str(error)
            except Unanswered as error:
                why = str(error)
                if not again:
                    self._skip(endpoint)
                    raise OutcomeUnknown(f"the store's answer was lost ({why})", hint=STORE_HINT) from error
            self._skip(endpoint)
            tried += 1
            if tried % len(self._endpoints) == 0:
                await asyncio.sleep(min(ROUND_PAUSE_S, max(0.0, ends - loop.time())))
        raise StoreUnavailable(f"the store does not answer ({why})", hint=STORE_HINT)

    async def _exchange(self, url: str, body: Any, connect: float, leader: bool, method: str) -> tuple[int, bytes]:
        async with await self._send(url, body, connect, leader=leader, method=method) as answer:
            return answer.status, await answer.read()

    async def _send(
        self, url: str, body: Any, connect: float, *, leader: bool, method: str = "POST"
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        headers = LEADER_HEADERS if leader else None
        data = msgspec.json.encode(body)
        context = current(self._tls) if self._tls else False
        return await self._open().request(method, url, data=data, headers=headers, timeout=timeout, ssl=context)

    async def _within(self, seconds: float, call: Awaitable[T], stream: str = "") -> T:
        """Return the result of `call`. Raises TimeoutError after `seconds`, when this gateway is closed, or when the
        member of `stream` is found dead."""
        async with asyncio.timeout(seconds) as wait:
            self._waits[wait] = stream
            try:
                return await call
            finally:
                del self._waits[wait]

    def _skip(self, endpoint: str) -> None:
        """Prefer the next member, unless another call already did that."""
        if self._endpoints[self._at % len(self._endpoints)] == endpoint:
            self._at = (self._at + 1) % len(self._endpoints)
        if len(self._endpoints) > 1:
            self._wake(endpoint)

    def _wake(self, *streams: str) -> None:
        """End the waits on these members' streams."""
        for wait, stream in self._waits.items():
            if stream in streams and not wait.expired():
                wait.reschedule(0)

    def _open(self) -> aiohttp.ClientSession:
        if self.closed:
            raise StoreUnavailable("the connection to the store is closed")
        if self._session is None:
            # 30 s: the node's presence renewal keeps one connection open, so COMMIT needs no handshake first. A
            # connection that is idle for longer may have died unnoticed.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


def _reason(error: aiohttp.ClientError) -> str:
    """Return why the connection failed, in the operating system's words instead of aiohttp's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        system = error.os_error
        if isinstance(system, ssl.SSLError):  # its errno is OpenSSL's
            return f"TLS: {system.reason or system}"
        return os.strerror(system.errno) if system.errno else str(system)
    return "no connection in time"


def _judge(endpoint: str, status: int, data: bytes) -> Exception:
    """Return the exception for an answer other than 200."""
    try:
        answer = msgspec.json.decode(data, type=_Error, strict=False)
    except msgspec.DecodeError:
        return Unanswered(f"{endpoint}: HTTP {status}")
    reason = answer.message or answer.error
    if any(words in reason for words in NOT_DONE):
        return NotDone(f"{endpoint}: {reason}")
    if answer.code in FINAL or (answer.code == RESOURCE_EXHAUSTED and "space" in reason):
        return Declined(answer.code, reason)
    return Unanswered(f"{endpoint}: {reason or f'HTTP {status}'}")
