"""How much gets through to another node: a tenth of a second of random bytes over its relocation port, TLS included.

The receiver counts, from the first bytes on, so that what waits in the sender's buffers does not flatter the link."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time

from veery.errors import Failed
from veery.migrate import wire
from veery.model.node import Node

SECONDS = 0.1
LIMIT = 3.0  # seconds after which a receiver or a sender leaves, whatever came
PIECE = 1 << 18
CONNECT_DEADLINE = 5.0


async def probe(node: Node, tls: ssl.SSLContext) -> float:
    """Bytes/s to `node`. Raises Refused, Failed."""
    address, port = node.relocation_address or node.address, node.relocation_port
    channel = await wire.open_control(address, port, node.name, tls, CONNECT_DEADLINE)
    counting = asyncio.create_task(channel.expect(wire.Poured, LIMIT), name=f"probe {node.name}")
    try:
        await channel.send(wire.Pour(seconds=SECONDS))
        piece = secrets.token_bytes(PIECE)
        pouring = asyncio.create_task(_pour(channel, piece), name=f"pour to {node.name}")
        try:
            poured = await counting
        finally:
            pouring.cancel()
            await asyncio.wait({pouring})
    finally:
        counting.cancel()
        await asyncio.wait({counting})
        channel.drop()
    return poured.bytes / poured.seconds if poured.seconds > 0 else 0.0


async def _pour(channel: wire.Channel, piece: bytes) -> None:
    with contextlib.suppress(Failed):  # the answer says what came of it
        while True:
            await channel.pour(piece)
            await asyncio.sleep(0)


async def count(channel: wire.Channel, wanted: wire.Pour) -> None:
    """The receiver's side: read for so long, and say how much came. Raises Failed."""
    seconds = min(max(wanted.seconds, 0.0), 1.0)
    await channel.catch(LIMIT)
    begun, total = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        try:
            total += await channel.catch(seconds - passed)
        except Failed:
            break
    await channel.send(wire.Poured(bytes=total, seconds=time.monotonic() - begun))
    for _ in range(10000):  # what was under way: the other side hangs up when it has read our answer
        if not await channel.catch(LIMIT):
            return
