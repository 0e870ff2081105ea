"""The other nodes' APIs, reached with this node's certificate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from veery.errors import Failed, OutcomeUnknown, Refused, from_kind
from veery.host.contexts import Source, current
from veery.model import endpoint
from veery.model.node import Node

CONNECT_DEADLINE = 5.0
AWAKE_DEADLINE = 5.0
POOL_DEADLINE = 10.0  # seconds that a request waits for a connection of its pool
ORDERS, STREAMS = (256, 32), (256, 64)
"""Connections of each pool: in all, to any one node."""


class Peers:
    """One client for all of them. Each node's certificate must carry its name.

    What this node asks by itself (`call`: fences, storage, moves) has connections of its own, so that it never waits
    for what it carries for others (`open`, `websocket`): streams last as long as their callers like."""

    def __init__(self, tls: Source, node: Callable[[str], Awaitable[Node]]) -> None:
        """`node` finds a node's record by name or address; it raises Refused where there is none. Each request
        takes the context that `tls` has at its time: a connection of an older one is not used again."""
        self._tls, self._node = tls, node
        self._pools: dict[tuple[int, int], aiohttp.ClientSession] = {}

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        """One request to node `name`; its JSON answer. Raises what that node raised, Refused when it is not
        reachable, OutcomeUnknown when it did not answer in time."""
        try:
            async with asyncio.timeout(deadline):
                async with await self._request(ORDERS, name, method, path, json=body) as response:
                    return await read_answer(response)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{name} did not answer within {deadline:g} s", hint="look there before it is ordered again"
            ) from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(f"{name} broke off: {error}") from error

    async def awake(self, name: str) -> None:
        """Return when node `name` answers at all: a machine that hangs still takes connections. Raises Refused."""
        try:
            await self.call(name, "GET", "/v1/ca", deadline=AWAKE_DEADLINE)
        except OutcomeUnknown as error:
            raise Refused(
                error.message, hint="is veeryd stuck there, or the machine? nothing was asked of it"
            ) from error

    async def open(
        self,
        name: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request; the response as it begins, to be closed by the caller. Raises Refused when the node
        cannot be reached."""
        return await self._request(STREAMS, name, method, path, json=json, data=data, headers=headers)

    async def _request(
        self,
        pool: tuple[int, int],
        name: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        node = await self._node(name)
        try:
            return await self._client(pool).request(
                method,
                self._url(node, path),
                json=json,
                data=data,
                headers=headers,
                ssl=current(self._tls),
                server_hostname=node.name,
            )
        except aiohttp.ClientConnectorCertificateError as error:
            raise Refused(f"{node.name} shows a wrong certificate: {error}", hint="has it been joined anew?") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Refused(
                f"no connection to {node.name} ({endpoint.join(node.address, node.api_port)}) in time",
                hint="is the machine up, or do too many streams lead there: veery events -f, consoles?",
            ) from error
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise Refused(
                f"{node.name} ({endpoint.join(node.address, node.api_port)}) is not reachable: {error}",
                hint="is veeryd running there?",
            ) from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(
                f"{node.name} broke off: {error}", hint="look there before it is ordered again"
            ) from error

    async def websocket(self, name: str, path: str) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket on node `name`. Raises Refused, Failed."""
        node = await self._node(name)
        try:
            return await self._client(STREAMS).ws_connect(
                self._url(node, path), ssl=current(self._tls), server_hostname=node.name, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            raise Failed(f"{node.name}: {error.message}") from error
        except aiohttp.ClientError as error:
            raise Refused(f"{node.name} is not reachable: {error}", hint="is veeryd running there?") from error

    async def close(self) -> None:
        """Let go of all connections."""
        for session in self._pools.values():
            await session.close()
        self._pools.clear()

    def _client(self, pool: tuple[int, int]) -> aiohttp.ClientSession:
        if pool not in self._pools:
            timeout = aiohttp.ClientTimeout(total=None, connect=POOL_DEADLINE, sock_connect=CONNECT_DEADLINE)
            connector = aiohttp.TCPConnector(limit=pool[0], limit_per_host=pool[1])
            self._pools[pool] = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self._pools[pool]

    def _url(self, node: Node, path: str) -> str:
        return f"https://{endpoint.join(node.address, node.api_port)}{path}"


async def read_answer(response: aiohttp.ClientResponse) -> Any:
    """The JSON of a response; an error in it is raised as ours."""
    text = await response.text()
    try:
        answer = json.loads(text) if text else None
    except ValueError as error:
        raise Failed(f"unreadable answer ({response.status}): {text[:80]!r}", hint="compare `veery version`") from error
    if response.status >= 400:
        told = answer.get("error", {}) if isinstance(answer, dict) else {}
        raise from_kind(
            told.get("kind", "failed"), told.get("message", f"HTTP {response.status}"), told.get("hint", "")
        )
    return answer
