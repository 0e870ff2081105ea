"""How much gets through to another node: what the last copy showed, or a probe of a tenth of a second.

Of a probe's random bytes, which go over the relocation port with TLS, the receiver counts, from the first on, so that
what waits in the sender's buffers does not flatter the link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
import struct
import time

from veery.errors import Failed
from veery.migrate import wire
from veery.model.node import Node

log = logging.getLogger(__name__)

SECONDS = 0.1
LIMIT = 3.0  # seconds after which a receiver or a sender leaves, whatever came
PIECE = 1 << 18
CONNECT_DEADLINE = 5.0
SLOW = 125 << 20
"""Bytes/s of a path for which packing is worth its time: those of 1 Gbit/s, which a processor outruns."""
MOSTLY = 0.5
"""Share of a copy's time for which it had bytes under way that the receiver had room for: then the path is slow."""
ENOUGH = 4 << 20
"""Bytes from which on a copy tells something."""


class Paths:
    """What the last copy to each node showed of the path: a slow one is worth packing for."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._seen: dict[str, float] = {}

    def slow(self, target: str) -> float:
        """Bytes/s of the path to `target` where that was what the last copy waited for, and slow; else 0."""
        rate = self._seen.get(target, 0.0)
        return rate if rate < SLOW else 0.0

    def learn(self, target: str, stream: socket.socket, seconds: float, *, packed: bool) -> None:
        """Look at the connection of a copy that has ended after `seconds`. A packed one that did not wait for the path
        says nothing: it waited for the packer."""
        with contextlib.suppress(OSError, struct.error):
            told = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            # linux/tcp.h: tcpi_bytes_acked; busy_time and rwnd_limited in us: with data under way, and of that
            # with a receiver that had no room
            (acked,) = struct.unpack_from("=Q", told, 120)
            busy, kept = struct.unpack_from("=QQ", told, 168)
            waited = (busy - kept) / 1e6
            log.info("path to %s: %d bytes in %.2f s, waited for it %.2f s", target, acked, seconds, waited)
            if acked < ENOUGH:
                return
            if waited > MOSTLY * seconds:
                self._seen[target] = acked / waited
            elif not packed:
                self._seen.pop(target, None)


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
