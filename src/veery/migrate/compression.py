"""Compression of a copy for a path that is slower than the hypervisor: packed here, unpacked at the target (zstd, RFC
8878).

QEMU compresses whole pages only over multifd, whose connections it makes itself, and a stream that it has encrypted can
no longer be compressed. So for such a copy the two daemons are between the hypervisors and the stream: they compress,
and they encrypt (TLS with both nodes' certificates). The hypervisor sees a plain TCP connection on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

import zstandard

from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.host.tls import Shown, shown
from veery.migrate.bandwidth import SLOW
from veery.migrate.base import MoveContext
from veery.migrate.policy import find
from veery.model.move import Compress, MoveSettings

log = logging.getLogger(__name__)

PIECE = 256 << 10
"""Bytes that are packed at once, and flushed: the last pages must not wait in the packer while the domain is paused."""
SHALLOW = 128 << 10
"""Bytes that may wait to be sent: what waits when the domain stops is part of its downtime."""
LEVEL = 1
SLICE = 256
"""Bytes that are unpacked at once: their blocks expand to 8 MiB at most."""
PART_MAX = PIECE + (SLICE // 4 + 1) * (128 << 10)
WINDOW_MAX = 8 << 20
"""How far back, in bytes, a packed stream may refer; LEVEL uses far fewer."""
WORTH = 0.7
"""The share to which the sample must pack, at most: below this a processor's work saves more than it costs."""
PAIR_DEADLINE_S = 5.0
HANDSHAKE_DEADLINE_S = 10.0

Way = Callable[[socket.socket], Coroutine[None, None, None]]
Admits = Callable[[Shown | None], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class Compression:
    """One packed copy. `rate`: bytes/s that may be sent (0: unlimited), which may change at any time. `plain` bytes
    came from the hypervisor, `packed` went over the path, encrypted by `cipher` ("": not encrypted)."""

    rate: int
    clock: Clock
    plain: int = 0
    packed: int = 0
    cipher: str = ""
    _due: float = 0.0

    async def pace(self, count: int) -> None:
        """Return when `count` more bytes may be sent."""
        self.packed += count
        now = self.clock.now()
        if self.rate <= 0:
            self._due = now
            return
        self._due = max(self._due, now) + count / self.rate
        if self._due - now > 0.002:
            await self.clock.sleep(self._due - now)


def considered(settings: MoveSettings, path: float) -> bool:
    """Return whether a copy is packed if its memory packs well. `path`: bytes/s of a path that is known to be slow,
    else 0."""
    if settings.compress is not Compress.AUTO:
        return settings.compress is Compress.YES and not find(settings.policy).post_copy
    return settings.live and not find(settings.policy).post_copy and bool(path or 0 < settings.bandwidth < SLOW)


async def chosen(context: MoveContext, uuid: str, settings: MoveSettings, path: float) -> Compression | None:
    """Return what packs the copy, where the user wants it or it is worth its time; else None. `path` as in
    `considered`. Samples the domain's memory (some 50 ms) only where the path is slow."""
    if not considered(settings, path):
        return None
    if settings.compress is Compress.AUTO:
        try:
            if (await context.driver.sample(uuid, quick=True)).packed > WORTH:
                return None
        except VeeryError as error:
            log.warning(
                "uuid=%s its memory could not be sampled, so the copy is not compressed: %s", uuid, error.message
            )
            return None
    return Compression(settings.bandwidth, context.clock)


@contextlib.asynccontextmanager
async def packing(
    stream: socket.socket, compression: Compression, *, peer: str, tls: ssl.SSLContext | None
) -> AsyncIterator[socket.socket]:
    """Yield the socket into which the source's hypervisor writes its copy; it is closed afterwards, like `stream`. With
    `tls` the target must be node `peer`. Raises Refused."""
    stream.setblocking(False)
    try:
        async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(
                sock=stream, ssl=tls, server_hostname=peer if tls else None, limit=PIECE
            )
    except (ssl.SSLError, OSError, TimeoutError) as error:
        raise Refused(f"{peer} does not accept a compressed stream: {error or 'timeout'}") from error
    if tls is not None:
        compression.cipher = writer.get_extra_info("cipher", ("",))[0]
    packer = zstandard.ZstdCompressor(level=LEVEL).compressobj()

    def pack(piece: bytes) -> bytes:
        return packer.compress(piece) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    async def there(mine: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(mine, PIECE):
            data = await asyncio.to_thread(pack, piece)
            compression.plain += len(piece)
            await compression.pace(len(data))
            writer.write(data)
            await writer.drain()

    async with _between(writer, there, _plainly_back(reader)) as near:
        yield near


class Unpacker:
    """Unpacks a stream in parts of bounded size: 32 KB of a hostile stream can expand to a GiB.

    A zstd block takes 4 bytes at least and expands to 128 KiB at most (RFC 8878, section 3.1.1.2). So a slice of SLICE
    bytes completes a bounded number of blocks, and no part is larger than PART_MAX."""

    def __init__(self) -> None:
        """Begin without data."""
        self._object = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).decompressobj()
        self._fed = memoryview(b"")

    def feed(self, data: bytes) -> None:
        """Take `data`; all of the earlier data must have been unpacked."""
        assert not self._fed
        self._fed = memoryview(data)

    def unpack(self) -> bytes:
        """Return the next part, b"" when more must be fed. Raises Failed where the stream is damaged, needs more memory
        than a veery source uses, or continues after its end."""
        parts: list[bytes] = []
        size = 0
        try:
            while self._fed and size < PIECE:
                parts.append(self._object.decompress(self._fed[:SLICE]))
                size += len(parts[-1])
                self._fed = self._fed[SLICE:]
        except zstandard.ZstdError as error:
            raise Failed(
                f"the compressed stream cannot be unpacked: {error}", hint="veery migrate --compress no"
            ) from error
        return b"".join(parts)


@contextlib.asynccontextmanager
async def unpacking(
    stream: socket.socket, *, peer: str, tls: ssl.SSLContext | None, admits: Admits
) -> AsyncIterator[socket.socket]:
    """Yield the socket from which the target's hypervisor reads the copy. With `tls` only node `peer` may send, with a
    certificate that `admits` accepts. Raises Failed, Refused."""
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    reader = asyncio.StreamReader(limit=PIECE, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        timeout = HANDSHAKE_DEADLINE_S if tls else None
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, stream, ssl=tls, ssl_handshake_timeout=timeout
        )
    except (ssl.SSLError, OSError) as error:
        raise Failed(f"the compressed stream of {peer} did not begin: {error}") from error
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    if tls is not None:
        theirs = shown(transport.get_extra_info("ssl_object"))
        if theirs is None or theirs.name != peer or not await admits(theirs):
            transport.abort()
            raise Refused(f"a compressed stream does not come from {peer}")
    unpacker = Unpacker()

    async def there(mine: socket.socket) -> None:
        while piece := await reader.read(PIECE):
            unpacker.feed(piece)
            while data := await asyncio.to_thread(unpacker.unpack):
                await loop.sock_sendall(mine, data)

    async def back(mine: socket.socket) -> None:
        while piece := await loop.sock_recv(mine, PIECE):
            writer.write(piece)
            await writer.drain()

    async with _between(writer, there, back) as near:
        yield near


def _plainly_back(reader: asyncio.StreamReader) -> Way:
    """Return the way back, uncompressed: the target sends little to the source."""

    async def back(mine: socket.socket) -> None:
        while piece := await reader.read(PIECE):
            await asyncio.get_running_loop().sock_sendall(mine, piece)

    return back


@contextlib.asynccontextmanager
async def _between(writer: asyncio.StreamWriter, there: Way, back: Way) -> AsyncIterator[socket.socket]:
    """Run both ways between this node's socket and the path; yield the hypervisor's end. When either way ends, both
    ends are broken, so that the other side notices at once."""
    writer.transport.set_write_buffer_limits(high=SHALLOW)
    with contextlib.ExitStack() as closing:
        near, mine = await _pair()
        for each in (near, mine):
            closing.enter_context(each)

        async def run() -> None:
            ways = [asyncio.create_task(way(mine)) for way in (there, back)]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                _break(writer, mine)  # before anything that a cancellation could cut short
                await tasks.stop(*ways)
                for each in ways:
                    if not each.cancelled() and (error := each.exception()) is not None:
                        log.warning("compressed stream: %s: %s", type(error).__name__, error)

        running = asyncio.create_task(run(), name="packed stream")
        try:
            yield near
        finally:
            _break(writer, mine)
            await tasks.stop(running)


def _break(writer: asyncio.StreamWriter, mine: socket.socket) -> None:
    """Break both ends; the hypervisor at the other end has already answered everything that matters. Idempotent."""
    with contextlib.suppress(OSError):
        mine.shutdown(socket.SHUT_RDWR)
    if not writer.transport.is_closing():
        writer.transport.abort()


async def _pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection on the loopback, because hypervisors are given TCP. The first is blocking."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket()
        try:
            near.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SHALLOW)
            async with asyncio.timeout(PAIR_DEADLINE_S):
                await loop.sock_connect(near, listener.getsockname())
                while True:
                    mine, caller = await loop.sock_accept(listener)
                    if caller == near.getsockname():
                        break
                    mine.close()  # another local process connected first
        except BaseException:
            near.close()
            raise
    for each in (near, mine):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    mine.setblocking(False)
    near.setblocking(True)
    return near, mine
