"""The throughput to another node: what the last copy showed, or a probe of a tenth of a second.

A probe sends random bytes over the relocation port with TLS. The receiver counts them, from the first on, so that bytes
waiting in the sender's buffers do not make the link look faster."""

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

PROBE_S = 0.1
LIMIT_S = 3.0  # after this time a receiver or a sender gives up
PIECE = 1 << 18
CONNECT_DEADLINE_S = 5.0
SLOW = 125 << 20
"""Bytes/s of a path below which packing is worth its time: that of 1 Gbit/s, which a processor exceeds."""
MOSTLY = 0.5
"""The path is slow if for this share of the copy's time bytes were under way for which the receiver had room."""
ENOUGH = 4 << 20
"""Bytes that a copy must have sent to say anything about the path."""


class Paths:
    """What the last copy to each node showed of the path: a slow one is worth packing for."""

    def __init__(self) -> None:
        """Begin without any knowledge."""
        self._seen: dict[str, float] = {}

    def slow(self, target: str) -> float:
        """Return the bytes/s of the path to `target` where the last copy waited for the path, and the path is slow;
        else 0."""
        rate = self._seen.get(target, 0.0)
        return rate if rate < SLOW else 0.0

    def learn(self, target: str, stream: socket.socket, seconds: float, *, packed: bool) -> None:
        """Learn from the connection of a copy that has ended after `seconds`. A packed copy that did not wait for the
        path says nothing: it waited for the packer."""
        with contextlib.suppress(OSError, struct.error):
            info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            # linux/tcp.h: tcpi_bytes_acked; busy_time and rwnd_limited in us: with data under way, and of that
            # with a receiver that had no room
            (acked,) = struct.unpack_from("=Q", info, 120)
            busy, kept = struct.unpack_from("=QQ", info, 168)
            waited = (busy - kept) / 1e6
            log.info("path to %s: %d bytes in %.2f s, waited for it %.2f s", target, acked, seconds, waited)
            if acked < ENOUGH:
                return
            if waited > MOSTLY * seconds:
                self._seen[target] = acked / waited
            elif not packed:
                self._seen.pop(target, None)


async def probe(node: Node, tls: ssl.SSLContext) -> float:
    """Return the bytes/s to `node`. Raises Refused, Failed."""
    address, port = node.relocation_address or node.address, node.relocation_port
    channel = await wire.open_control(address, port, node.name, tls, CONNECT_DEADLINE_S)
    counting = asyncio.create_task(channel.expect(wire.Poured, LIMIT_S), name=f"probe {node.name}")
    try:
        await channel.send(wire.Pour(seconds=PROBE_S))
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
    with contextlib.suppress(Failed):  # the receiver's answer has the result
        while True:
            await channel.pour(piece)
            await asyncio.sleep(0)


async def count(channel: wire.Channel, wanted: wire.Pour) -> None:
    """Do the receiver's side: read for `wanted.seconds`, at most 1 s, and answer how much came. Raises Failed."""
    seconds = min(max(wanted.seconds, 0.0), 1.0)
    await channel.catch(LIMIT_S)
    begun, total = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        try:
            total += await channel.catch(seconds - passed)
        except Failed:
            break
    await channel.send(wire.Poured(bytes=total, seconds=time.monotonic() - begun))
    for _ in range(10000):  # bytes still under way: the other side closes once it has read the answer
        if not await channel.catch(LIMIT_S):
            return
