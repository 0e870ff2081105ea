"""etcd's v3 API as JSON over HTTP: one call to whichever member answers, and one stream.

etcd serves its gRPC API as JSON too (etcd docs, dev-guide/api_grpc_gateway); int64 are strings there, bytes
base64. What matters here is what is known when a call ends badly: a member that says so, or a connection that
was never made, has done nothing, and another member is asked; a request that was sent and not answered may
have been done."""

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

HINT = "see `veery node list`; most voters must be up and reach each other"
FULL = "veery cluster defrag"

# Answers after which the request has surely not been carried out (etcd api/v3rpc/rpctypes/error.go, raft/raft.go,
# and grpc's picker, which speaks when the gateway cannot reach its own server).
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
# gRPC codes of answers that no other member would give differently: invalid argument, not found, already exists,
# failed precondition, out of range.
FINAL = frozenset({3, 5, 6, 9, 11})
RESOURCE_EXHAUSTED = 8

PAUSE = 0.1  # seconds between two rounds over all members
# Have a member without a leader say so at once instead of waiting for one (rpctypes/md.go); streams end with it.
LEADER = {"Grpc-Metadata-hasleader": "true"}


class Declined(Failed):
    """etcd understood and declined: `code` is gRPC's, `reason` its own words. Nothing was done."""

    def __init__(self, code: int, reason: str) -> None:
        full = code == RESOURCE_EXHAUSTED
        super().__init__(
            "the store is full" if full else f"the store refuses: {reason.removeprefix('etcdserver: ')}",
            hint=FULL if full else "",
        )
        self.code = code
        self.reason = reason


class NotDone(Exception):
    """One member did not do it; another may."""


class Unanswered(Exception):
    """One member may have done it: it was asked, and gave no usable answer."""


class _Error(msgspec.Struct):
    message: str = ""
    error: str = ""
    code: int = 0


class Gateway:
    """Calls to the members of one etcd cluster, over connections that are kept."""

    def __init__(self, endpoints: Sequence[str], *, tls: Source | None, deadline: float) -> None:
        """`endpoints`: "https://172.16.31.1:2379", the preferred one first; `deadline`: seconds a call may take."""
        self._endpoints = tuple(endpoints)
        self._at = 0
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.deadline = deadline
        self.closed = False
        self._waits: dict[asyncio.Timeout, str] = {}  # and the member whose stream it is; of a call ""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members that are asked."""
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
        """Ask until a member takes the request; it is never sent twice where it may have been taken.

        Raises StoreUnavailable (surely not done), Declined (the same), OutcomeUnknown."""
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
        """Ask this one member, once; with `leader`, one that knows no leader declines. Raises NotDone, Unanswered,
        Declined."""
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
        """The lines of one stream from one member, which is another one each time the last failed; with `leader`, from
        one that knows a leader.

        Raises Unanswered when it ends, when it was silent for `quiet` seconds, or when a call finds that member dead:
        a machine without power ends no connection."""
        endpoint = self._endpoints[self._at % len(self._endpoints)]
        rest, answer = b"", None
        try:
            answer = await self._within(
                quiet, self._send(endpoint + path, body, self.deadline, leader=leader), endpoint
            )
            while piece := await self._within(quiet, answer.content.readany(), endpoint):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    if line.startswith(b'{"error"'):  # it has no leader, no vote, or is stopping
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
                    connection.transport.abort()  # a TLS farewell would wait for a member that may be frozen
                answer.close()

    async def close(self) -> None:
        """Let go of all connections; no call is possible any more."""
        self.closed = True
        self._wake(*self._waits.values())  # closing a connection does not wake who reads from it
        if self._session is not None:
            await self._session.close()

    async def _rounds(self, path: str, body: Any, type: type[T], *, again: bool) -> T:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self.deadline
        tried, why = 0, "it was not asked"
        while (left := ends - loop.time()) > 0 and not self.closed:
            endpoint = self._endpoints[self._at % len(self._endpoints)]
            # The members not yet tried share what time is left, so that one frozen member does not use it all up.
            share = left / max(1, len(self._endpoints) - tried)
            try:
                return await self.ask(endpoint, path, body, type, within=share if again else left, connect=0.9 * share)
            except NotDone as error:
                why = str(error)
            except Unanswered as error:
                why = str(error)
                if not again:
                    self._skip(endpoint)
                    raise OutcomeUnknown(f"the store's answer was lost ({why})", hint=HINT) from error
            self._skip(endpoint)
            tried += 1
            if tried % len(self._endpoints) == 0:
                await asyncio.sleep(min(PAUSE, max(0.0, ends - loop.time())))
        raise StoreUnavailable(f"the store does not answer ({why})", hint=HINT)

    async def _exchange(self, url: str, body: Any, connect: float, leader: bool, method: str) -> tuple[int, bytes]:
        async with await self._send(url, body, connect, leader=leader, method=method) as answer:
            return answer.status, await answer.read()

    async def _send(
        self, url: str, body: Any, connect: float, *, leader: bool, method: str = "POST"
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        headers = LEADER if leader else None
        data = msgspec.json.encode(body)
        context = current(self._tls) if self._tls else False
        return await self._open().request(method, url, data=data, headers=headers, timeout=timeout, ssl=context)

    async def _within(self, seconds: float, call: Awaitable[T], stream: str = "") -> T:
        """What `call` gives. Raises TimeoutError after `seconds`, when we are closed, or when the member whose `stream`
        it is turns out to be dead."""
        async with asyncio.timeout(seconds) as wait:
            self._waits[wait] = stream
            try:
                return await call
            finally:
                del self._waits[wait]

    def _skip(self, endpoint: str) -> None:
        """Prefer the next member, unless another call has moved on already."""
        if self._endpoints[self._at % len(self._endpoints)] == endpoint:
            self._at = (self._at + 1) % len(self._endpoints)
        if len(self._endpoints) > 1:
            self._wake(endpoint)

    def _wake(self, *streams: str) -> None:
        """End the waits for these."""
        for wait, stream in self._waits.items():
            if stream in streams and not wait.expired():
                wait.reschedule(0)

    def _open(self) -> aiohttp.ClientSession:
        if self.closed:
            raise StoreUnavailable("the connection to the store is closed")
        if self._session is None:
            # 30 s: the node's own presence keeps one connection warm, so that COMMIT need not shake hands first,
            # and one that has been idle for longer may have died unseen.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


def _reason(error: aiohttp.ClientError) -> str:
    """Why there was no connection, in the system's words and not in aiohttp's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        system = error.os_error
        if isinstance(system, ssl.SSLError):  # its errno is OpenSSL's
            return f"TLS: {system.reason or system}"
        return os.strerror(system.errno) if system.errno else str(system)
    return "no connection in time"


def _judge(endpoint: str, status: int, data: bytes) -> Exception:
    """What an answer other than 200 means for the request."""
    try:
        told = msgspec.json.decode(data, type=_Error, strict=False)
    except msgspec.DecodeError:
        return Unanswered(f"{endpoint}: HTTP {status}")
    reason = told.message or told.error
    if any(words in reason for words in NOT_DONE):
        return NotDone(f"{endpoint}: {reason}")
    if told.code in FINAL or (told.code == RESOURCE_EXHAUSTED and "space" in reason):
        return Declined(told.code, reason)
    return Unanswered(f"{endpoint}: {reason or f'HTTP {status}'}")
