"""A packed stream between two ends: what goes in comes out, less of it goes over the path, and an end that breaks is
noticed at the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from two_nodes import make_certificates

from veery.errors import Failed, Refused
from veery.host import crl, tls
from veery.host.clock import RealClock
from veery.migrate.compression import PART_MAX, PIECE, SLICE, Compression, Unpacker, packing, unpacking

TEXT = b"a veery sings in the woods at dusk, and leaves before the hurricanes. " * 40000


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def all_are(_: tls.Shown | None) -> bool:
    return True


async def path() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection, as sender and receiver have them."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        listener.setblocking(False)
        one = socket.socket()
        one.setblocking(False)
        await loop.sock_connect(one, listener.getsockname())
        two, _ = await loop.sock_accept(listener)
    return one, two


@contextlib.asynccontextmanager
async def both(
    squeeze: Compression, client: ssl.SSLContext | None = None, server: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[socket.socket, socket.socket, contextlib.AsyncExitStack]]:
    """The two hypervisors' ends, non-blocking; the stack is the target's."""
    one, two = await path()
    async with contextlib.AsyncExitStack() as here, contextlib.AsyncExitStack() as there:
        async with asyncio.TaskGroup() as tasks:
            near = tasks.create_task(here.enter_async_context(packing(one, squeeze, peer="b", tls=client)))
            far = tasks.create_task(there.enter_async_context(unpacking(two, peer="a", tls=server, admits=all_are)))
        for each in (near.result(), far.result()):
            each.setblocking(False)
        yield near.result(), far.result(), there


async def all_of(stream: socket.socket, count: int) -> bytes:
    data = b""
    async with asyncio.timeout(30):
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(stream, 1 << 20)
            if not piece:
                break
            data += piece
    return data


@pytest.mark.parametrize("secret", [False, True])
async def test_what_goes_in_comes_out(certificates: Path, secret: bool) -> None:
    client = tls.client_context(certificates / "a") if secret else None
    server = tls.server_context(certificates / "b") if secret else None
    loop = asyncio.get_running_loop()
    squeeze = Compression(0, RealClock())
    async with both(squeeze, client, server) as (near, far, _):
        sent = TEXT + os.urandom(300_000)
        got, _ = await asyncio.gather(all_of(far, len(sent)), loop.sock_sendall(near, sent))
        assert got == sent
        assert squeeze.plain == len(sent)
        assert squeeze.cipher.startswith("TLS_") is secret
        assert 300_000 < squeeze.packed < 0.3 * len(sent)
        await loop.sock_sendall(near, b"one page more")  # nothing waits in the packer
        assert await all_of(far, 13) == b"one page more"
        await loop.sock_sendall(far, b"loaded")
        assert await all_of(near, 6) == b"loaded"


async def test_the_rate_holds_for_what_is_sent() -> None:
    squeeze = Compression(400_000, RealClock())
    loop = asyncio.get_running_loop()
    async with both(squeeze) as (near, far, _):
        begun = loop.time()
        noise = os.urandom(200_000)
        await asyncio.gather(all_of(far, len(noise)), loop.sock_sendall(near, noise))
        await loop.sock_sendall(near, b"x")
        await all_of(far, 1)
        assert loop.time() - begun > 0.4
        squeeze.rate = 0
        await asyncio.gather(all_of(far, len(TEXT)), loop.sock_sendall(near, TEXT))


async def test_an_end_that_breaks_is_noticed_at_the_other() -> None:
    async with both(Compression(0, RealClock())) as (near, _, there):
        await there.aclose()
        assert await all_of(near, 1) == b""
    async with both(Compression(0, RealClock())) as (near, far, _):
        near.shutdown(socket.SHUT_RDWR)
        assert await all_of(far, 1) == b""


async def test_only_the_node_of_the_move_may_send(certificates: Path) -> None:
    one, two = await path()
    server = tls.server_context(certificates / "b")
    client = tls.client_context(certificates / "b")

    async def send() -> None:
        with contextlib.suppress(Refused, OSError):
            async with packing(one, Compression(0, RealClock()), peer="b", tls=client) as near:
                near.setblocking(False)
                assert await all_of(near, 1) == b""

    sending = asyncio.create_task(send())
    with pytest.raises((Failed, Refused), match="does not come from a"):
        async with unpacking(two, peer="a", tls=server, admits=all_are):
            pass
    await sending


async def test_a_node_that_was_put_out_sends_no_packed_stream(certificates: Path) -> None:
    one, two = await path()
    client, server = tls.client_context(certificates / "a"), tls.server_context(certificates / "b")
    asked: list[tls.Shown | None] = []

    async def none_is(shown: tls.Shown | None) -> bool:
        asked.append(shown)
        return False

    async def send() -> None:
        with contextlib.suppress(Refused, OSError):
            async with packing(one, Compression(0, RealClock()), peer="b", tls=client) as near:
                near.setblocking(False)
                assert await all_of(near, 1) == b""

    sending = asyncio.create_task(send())
    with pytest.raises((Failed, Refused), match="does not come from a"):
        async with unpacking(two, peer="a", tls=server, admits=none_is):
            pass
    await sending
    serial, _ = crl.serial((certificates / "a" / "client-cert.pem").read_text())
    assert asked == [tls.Shown("a", serial)]


async def test_a_target_that_hangs_up_is_told() -> None:
    one, two = await path()
    two.close()
    with pytest.raises(Refused, match="b does not accept a compressed stream"):
        async with packing(one, Compression(0, RealClock()), peer="b", tls=ssl.create_default_context()):
            pass


def parts(unpacker: Unpacker, data: bytes, piece: int = PIECE) -> list[bytes]:
    """All that `data` stands for, as it comes out."""
    found = []
    for at in range(0, len(data), piece):
        unpacker.feed(data[at : at + piece])
        while part := unpacker.unpack():
            found.append(part)
    return found


@pytest.mark.parametrize("piece", [1, SLICE - 1, SLICE, SLICE + 1, PIECE])
def test_unpacked_in_parts_it_is_the_same(piece: int) -> None:
    sent = TEXT[: 300_000 if piece > 1 else 20_000] + os.urandom(20_000)
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    packed = packer.compress(sent) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert b"".join(parts(Unpacker(), packed, piece)) == sent


def test_what_some_kilobytes_stand_for_comes_in_bounded_parts() -> None:
    packer, packed = zstandard.ZstdCompressor(level=1).compressobj(), b""
    for _ in range(256):
        packed += packer.compress(bytes(1 << 20))
    packed += packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert len(packed) < 64 << 10
    total = 0
    unpacker = Unpacker()
    unpacker.feed(packed)
    while part := unpacker.unpack():
        assert len(part) <= PART_MAX
        total += len(part)
    assert total == 256 << 20


def test_a_stream_that_wants_much_memory_is_refused() -> None:
    params = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    packed = packer.compress(os.urandom(1000)) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(Failed, match="cannot be unpacked"):
        parts(Unpacker(), packed)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_stream_is_refused(seed: int) -> None:
    rng = random.Random(seed)
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    data = bytearray(packer.compress(TEXT[:50_000]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with contextlib.suppress(Failed):  # where the damage is in what stands for itself, nothing is seen
        assert sum(map(len, parts(Unpacker(), bytes(data)))) <= len(data) // 4 * (128 << 10)
    packed = zstandard.ZstdCompressor().compress(b"ended")
    with pytest.raises(Failed):
        parts(Unpacker(), packed + b"more", piece=len(packed))
