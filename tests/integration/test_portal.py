"""A target portal that answers, and all that looks like one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from storage_parts import TEST1, free_port, storage

from veery.errors import Refused
from veery.storage import portal


@asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[str]:
    """Something at a port that answers the first bytes with `answer`; None: not at all."""

    callers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(asyncio.current_task())
        await reader.read(1)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*(caller for caller in callers if caller), return_exceptions=True)


async def test_tgtd_answers_and_forgets_who_asked() -> None:
    async with storage(TEST1) as node:
        volume = await node.volumes.create("disk", 1 << 20)
        for _ in range(3):
            await portal.require(volume.portal, TEST1.iqn)
        await portal.require(volume.portal, "iqn.2026-11.lab.veery:nobody")
        (target,) = await node.volumes.targets()
        assert target.sessions == ()

        assert node.service.process is not None
        node.service.process.send(signal.SIGSTOP)  # its kernel still takes connections
        try:
            with pytest.raises(Refused, match="does not answer") as caught:
                await portal.require(volume.portal, TEST1.iqn, deadline=0.5)
            assert "tgtd" in caught.value.hint
        finally:
            node.service.process.send(signal.SIGCONT)
        await portal.require(volume.portal, TEST1.iqn)


async def test_what_is_no_portal() -> None:
    with pytest.raises(Refused, match="refused") as caught:
        await portal.require(f"127.0.0.1:{free_port()}", TEST1.iqn)
    assert "tgtd" in caught.value.hint
    cases = {b"": "closed the connection", b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(48): "no iSCSI target"}
    for answer, message in cases.items():
        async with listening(answer) as where:
            with pytest.raises(Refused, match=message):
                await portal.require(where, TEST1.iqn)
    async with listening(None) as where:
        with pytest.raises(Refused, match="does not answer"):
            await portal.require(where, TEST1.iqn, deadline=0.2)
