"""What one side of a volume's move asks of another node, over the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from veery.errors import Failed, OutcomeUnknown, from_kind
from veery.node.peers import Peers, read_answer

SILENCE_S = 45.0  # seconds without a line from the node that copies
PIECE_BYTES = 1 << 20


def order_path(name: str, order: str) -> str:
    """Return the API's path of an order for volume `name`."""
    return f"/v1/volumes/{quote(name, safe='')}/{order}"


async def follow(peers: Peers, node: str, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the lines of a long answer. Raises the error that ended it, OutcomeUnknown if the connection closed."""
    try:
        async with await peers.open(node, "POST", path, json=body) as response:
            if response.status >= 400:
                await read_answer(response)
            while True:
                async with asyncio.timeout(SILENCE_S):
                    line = await response.content.readline()
                if not line:
                    break
                event = msgspec.json.decode(line)
                if event["event"] == "error":
                    error = event["error"]
                    raise from_kind(error["kind"], error["message"], error["hint"])
                yield event
                if event["event"] == "done":
                    return
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        raise OutcomeUnknown(
            f"{node} closed the connection: {error or 'timeout'}",
            hint=f"check that veeryd runs on {node}: systemctl status veeryd",
        ) from error
    raise OutcomeUnknown(
        f"{node} closed the connection", hint=f"check that veeryd runs on {node}: systemctl status veeryd"
    )


async def pieces(response: aiohttp.ClientResponse, node: str) -> AsyncIterator[bytes]:
    """Yield the body in pieces; no piece may take longer than SILENCE_S seconds. Raises Failed."""
    try:
        while True:
            async with asyncio.timeout(SILENCE_S):
                piece = await response.content.read(PIECE_BYTES)
            if not piece:
                return
            yield piece
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        raise Failed(
            f"{node} closed the connection: {error or 'timeout'}",
            hint=f"check that veeryd runs on {node}: systemctl status veeryd",
        ) from error
