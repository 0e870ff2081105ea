"""The private tgtd itself: starting it, its traps, and the fence's proof."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from storage_parts import TEST1, TEST2, Storage, free_port, qemu_io, storage

from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.process import Process, Service
from veery.model.units import MIB
from veery.storage import tgt
from veery.storage.tgt import TargetServer


@pytest.fixture
async def node() -> AsyncIterator[Storage]:
    async with storage(TEST1, TEST2) as made:
        yield made


async def test_a_taken_port_and_a_strange_address_are_refused_before_tgtd_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Refused, match=f"port 127.0.0.1:{port} is in use"):
            TargetServer(address="127.0.0.1", port=port, run=tmp_path).command()
    with pytest.raises(Refused, match=r"cannot listen on 192\.0\.2\.1:3260"):
        TargetServer(address="192.0.2.1", port=3260, run=tmp_path).command()
    with pytest.raises(Refused, match="longer than 107 bytes"):
        TargetServer(address="127.0.0.1", port=free_port(), run=tmp_path / ("x" * 110)).command()


async def test_a_tgtd_on_the_wrong_portal_is_found_and_ended() -> None:
    async with storage(TEST1) as node:
        right = node.server
        wrong = TargetServer(address="127.0.0.1", port=right.port + 1, run=node.run)
        first = node.service.process
        node.served.clear()
        with pytest.raises(Failed, match="instead of"):
            await wrong.ready()
        async with asyncio.timeout(20):
            await node.served.wait()
        assert first is not None
        assert not first.alive()


@pytest.mark.parametrize("address", ["127.31.79.1", "::1"])
async def test_a_tgtd_that_serves_turns_to_another_portal_and_is_not_ended(address: str) -> None:
    """The node has another address on the storage network: it keeps the old one while somebody is logged in."""
    async with storage(TEST1) as node:
        volume = await node.volumes.create("busybox", MIB)
        process = node.service.process
        other = TargetServer(address=address, port=node.server.port, run=node.run)
        there = replace(volume, portal=other.portal)
        io = asyncio.create_task(qemu_io(volume, TEST1, "read 0 512", "sleep 8000", "read 0 512"))

        async def logged_in() -> bool:
            return any(each.sessions for each in await node.server.targets())

        async with asyncio.timeout(30):
            while not await logged_in():
                await asyncio.sleep(0.1)
        await other.ready()
        assert (await qemu_io(there, TEST1, "read 0 512")).code == 0
        assert (await io).code == 0, "its session stayed"
        assert (await qemu_io(volume, TEST1, "read 0 512")).code == 0, "the old portal is kept"
        async with asyncio.timeout(30):
            while await logged_in():
                await asyncio.sleep(0.1)
        await other.ready()
        assert (await qemu_io(volume, TEST1, "read 0 512")).code != 0
        assert (await qemu_io(there, TEST1, "read 0 512")).code == 0
        assert node.service.process == process


async def test_the_daemon_is_adopted_not_restarted(node: Storage) -> None:
    volume = await node.volumes.create("busybox", MIB)
    first = node.service.process
    adopted = asyncio.Event()

    async def found() -> None:
        adopted.set()

    again = Service("tgtd", node.server.command, run=node.run, env=node.server.env, started=found)
    task = asyncio.create_task(again.run())
    try:
        async with asyncio.timeout(10):
            await adopted.wait()
        assert again.process == first
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert await node.volumes.reconcile() == ()
    assert (await qemu_io(volume, TEST1, "read 0 512")).code == 0


async def test_unbinding_leaves_no_hole_that_kills_tgtd(node: Storage) -> None:
    """The trap that fillers are for (tgt.py): a hole in the account table."""
    volume = await node.volumes.create("busybox", MIB)
    await node.server.new_account("#0", "")
    await node.server.unbind_account(volume.tid, "test1", "#0")

    (target,) = await node.server.targets()
    assert target.accounts == ("#0", "test2")
    assert (await qemu_io(volume, TEST2, "read 0 512")).code == 0
    assert (await qemu_io(volume, TEST1, "read 0 512")).code == 1
    await node.server.bind_account(volume.tid, "test1", instead="#0")
    (target,) = await node.server.targets()
    assert target.accounts == ("test1", "test2")
    assert (await qemu_io(volume, TEST1, "read 0 512")).code == 0
    assert isinstance(node.service.process, Process)
    assert node.starts == 1


async def test_the_fence_waits_for_half_done_logins_and_ends_them(
    node: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    volume = await node.volumes.create("busybox", MIB)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
    try:
        with pytest.raises(OutcomeUnknown, match=r"a login from 127\.0\.0\.1 is unfinished"):
            await node.server.cut(TEST1.iqn, iqn=volume.iqn, user="test1", deadline=0.3)
        (target,) = await node.server.targets()
        assert target.acl == (TEST2.iqn,)  # shut all the same

        closed = await node.server.cut(TEST1.iqn, iqn=volume.iqn, user="test1", deadline=tgt.LOGIN_TIMEOUT_S + 20)

        assert closed == 0
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert "cannot be ended" not in caplog.text
    assert (await qemu_io(volume, TEST2, "read 0 512")).code == 0


async def test_cutting_what_is_not_there_succeeds(node: Storage) -> None:
    assert await node.server.cut(TEST1.iqn, iqn="iqn.2026-11.lab.veery:nothing") == 0
    with pytest.raises(Failed, match="can't find the target"):
        await node.server.allow(99, TEST1.iqn)
    with pytest.raises(Failed, match="invalid request"):
        await node.server.new_target(9, "iqn.2026-11.lab.veery:under_score")
