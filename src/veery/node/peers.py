"""A client for the APIs of the other nodes, which uses this node's certificate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from veery.errors import Failed, NotFound, OutcomeUnknown, Refused, from_kind
from veery.host.contexts import Source, current
from veery.model import endpoint
from veery.model.node import Node

CONNECT_DEADLINE_S = 5.0
AWAKE_DEADLINE_S = 8.0  # a busy node answers late, one that hangs not at all; shorter than POOL_DEADLINE_S
POOL_DEADLINE_S = 10.0  # seconds for which a request waits for a connection of its pool
NOT_FOUND = 404  # the object does not exist, or the version of the node does not know the order
ORDERS, STREAMS = (256, 32), (256, 64)
"""Connections of each pool: (in all, to any one node)."""


class Peers:
    """One client for all nodes. Each node's certificate must carry its name.

    Requests of this node itself (`call`: fences, storage, moves) have connections of their own. So they never wait for
    streams that it relays for others (`open`, `websocket`), which last as long as their callers want."""

    def __init__(self, tls: Source, node: Callable[[str], Awaitable[Node]]) -> None:
        """`node` finds a node's record by name or address; it raises Refused if there is none. Each request uses the
        context that `tls` has at its time. A connection of an older context is not reused."""
        self._tls, self._node = tls, node
        self._pools: dict[tuple[int, int], aiohttp.ClientSession] = {}

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        """Send one request to node `name` and return its JSON answer.

        Raises what that node raised, Refused if it is not reachable, OutcomeUnknown if it did not answer in time."""
        try:
            async with asyncio.timeout(deadline):
                async with await self._request(ORDERS, name, method, path, json=body) as response:
                    if response.status == NOT_FOUND and not await _names_object(response):
                        raise Refused(
                            f"the veery on {name} does not know this order: {method} {path.partition('?')[0]}",
                            hint=f"upgrade veery on {name}; veery version -a shows all versions",
                        )
                    return await read_answer(response)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{name} did not answer within {deadline:g} s", hint="check the state there before you repeat the order"
            ) from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(f"{name} closed the connection: {error}") from error

    async def awake(self, name: str) -> None:
        """Return when node `name` answers at all: a machine that hangs still accepts connections. Raises Refused."""
        try:
            await self.call(name, "GET", "/v1/ca", deadline=AWAKE_DEADLINE_S)
        except OutcomeUnknown as error:
            raise Refused(error.message, hint="veeryd or the machine may hang; no order was sent to it") from error

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
        """Send a request and return the response as it begins. The caller closes it. Raises Refused if the node cannot
        be reached."""
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
            raise Refused(
                f"{node.name} shows a wrong certificate: {error}", hint="if it was joined again: veery node list"
            ) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Refused(
                f"no connection to {node.name} ({endpoint.join(node.address, node.api_port)}) in time",
                hint="check that the machine is up; too many open streams (veery events -f, consoles) also cause this",
            ) from error
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise Refused(
                f"{node.name} ({endpoint.join(node.address, node.api_port)}) is not reachable: {error}",
                hint="check that veeryd runs there: systemctl status veeryd",
            ) from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown(
                f"{node.name} closed the connection: {error}",
                hint="check the state on that node before you repeat the order",
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
            raise Refused(
                f"{node.name} is not reachable: {error}", hint="check that veeryd runs there: systemctl status veeryd"
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        for session in self._pools.values():
            await session.close()
        self._pools.clear()

    def _client(self, pool: tuple[int, int]) -> aiohttp.ClientSession:
        if pool not in self._pools:
            timeout = aiohttp.ClientTimeout(total=None, connect=POOL_DEADLINE_S, sock_connect=CONNECT_DEADLINE_S)
            connector = aiohttp.TCPConnector(limit=pool[0], limit_per_host=pool[1])
            self._pools[pool] = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self._pools[pool]

    def _url(self, node: Node, path: str) -> str:
        return f"https://{endpoint.join(node.address, node.api_port)}{path}"


async def _names_object(response: aiohttp.ClientResponse) -> bool:
    """Return whether an answer with the status 404 is about an object. Older versions have that status for unknown
    orders alone."""
    try:
        told = json.loads(await response.text())
    except ValueError:
        return False
    return isinstance(told, dict) and str(told.get("type", "")).endswith(f":{NotFound.reason}")


async def read_answer(response: aiohttp.ClientResponse) -> Any:
    """Return the JSON of a response. An error in it is raised as an error of veery."""
    text = await response.text()
    try:
        answer = json.loads(text) if text else None
    except ValueError as error:
        raise Failed(f"unreadable answer ({response.status}): {text[:80]!r}", hint="compare `veery version`") from error
    if response.status >= 400:
        told = answer.get("error", {}) if isinstance(answer, dict) else {}
        raise from_kind(
            told.get("kind", "failed"),
            told.get("message", f"HTTP {response.status}"),
            told.get("hint", ""),
            reason=str(answer.get("type", "")).rpartition(":")[2] if isinstance(answer, dict) else "",
        )
    return answer
