"""What base.PostCopier promises: a domain that goes on before its memory has followed; the fake driver and QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from test_driver import PLAIN, UP, Move, QemuRig, Rig, event, refused, rig, snapshot, the

import qemu_parts as parts
from veery.errors import Refused
from veery.hypervisor.base import Lost, PostCopier, Rest
from veery.model.domain import DomainEnd, DomainState
from veery.model.move import CopyOptions, CopyResult, MoveProgress, Tuning

__all__ = ["rig", "snapshot"]  # fixtures

FAR_FROM_DONE = 16 << 20


class Leaving(Move):
    """A move that leaves for `far` when little of it has been copied."""

    def __init__(self, rig: Rig, uuid: str) -> None:
        slow = replace(PLAIN, bandwidth=(24 if isinstance(rig, QemuRig) else 200) << 20)
        super().__init__(rig.near, rig.far, uuid, slow, CopyOptions(post_copy=True))
        self.wire: tuple[socket.socket, ...] = ()
        self.left: list[MoveProgress] = []
        self.receiving: asyncio.Task[None] | None = None

    async def poise(self) -> CopyResult:
        """Up to where it stands at its source and could still go on there."""
        spec, luggage = await self.near.pack(self.uuid)
        _, attachments = await self.near.spec(self.uuid)
        luggage = type(luggage)(bytes(luggage))
        await self.far.prepare(
            spec, replace(attachments, domid=0), luggage, b"", tls=False, peer="test1", post_copy=True
        )
        self.wire = near, far = parts.stream()
        self.receiving = asyncio.create_task(self.far.receive(self.uuid, far))
        sending = asyncio.create_task(
            self.near.send(self.uuid, near, self.settings, self.progress.append, peer="test2", means=self.means)
        )
        await self.moving()
        await self.near.tune(self.uuid, Tuning(post_copy=True))
        return await sending

    async def go(self) -> None:
        """Over the edge: it runs at its target."""
        assert self.receiving is not None
        await self.near.release(self.uuid)  # type: ignore[attr-defined]
        await self.receiving
        await self.far.finish(self.uuid)

    async def drain(self, stall: float = 15.0) -> Rest:
        return await self.near.drain(self.uuid, self.left.append, stall=stall)  # type: ignore[attr-defined,no-any-return]

    async def broken(self) -> Rest:
        """The stream is cut for both, whoever else holds it, once something has moved."""
        before = len(self.left)
        draining = asyncio.create_task(self.drain())

        async def moving() -> bool:
            return draining.done() or len(self.left) > before

        await parts.becomes(moving, bool)
        with contextlib.suppress(OSError):
            self.wire[0].shutdown(socket.SHUT_RDWR)
        return await draining

    @contextlib.asynccontextmanager
    async def mended(self) -> AsyncIterator[None]:
        """A stream in place of the broken one."""
        far = await self.far.rejoin(self.uuid)  # type: ignore[attr-defined]
        one, other = socket.socketpair()
        other.setblocking(False)
        there, back = asyncio.create_task(pour(other, far)), asyncio.create_task(pour(far, other))
        try:
            await self.near.reconnect(self.uuid, one)  # type: ignore[attr-defined]
            yield
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            for each in (one, other, far):
                each.close()

    def close(self) -> None:
        for each in self.wire:
            each.close()


async def pour(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, 1 << 16):
            await loop.sock_sendall(sink, data)


async def is_whole(driver: Any, uuid: str) -> None:
    async def told() -> bool:
        return bool(await driver.whole(uuid))

    await parts.becomes(told, bool)


@contextlib.asynccontextmanager
async def leaving(rig: Rig) -> AsyncIterator[Leaving]:
    """A domain that writes, poised to leave."""
    assert isinstance(rig.near, PostCopier)
    spec = await rig.up(rig.near)
    if isinstance(rig, QemuRig):
        await parts.shell(
            rig.near, spec.uuid, "(i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done) & echo ok"
        )
    move = Leaving(rig, spec.uuid)
    try:
        result = await move.poise()
        assert result.poised
        assert (await the(rig.near, spec.uuid)).state is DomainState.PAUSED
        assert (await the(rig.far, spec.uuid)).state is DomainState.INCOMING
        yield move
    finally:
        if move.receiving is not None:
            move.receiving.cancel()
            await asyncio.gather(move.receiving, return_exceptions=True)
        move.close()


async def test_the_rest_follows_the_domain(rig: Rig) -> None:
    async with leaving(rig) as move:
        await move.go()
        assert (await the(rig.far, move.uuid)).state in UP
        assert (await the(rig.near, move.uuid)).state is DomainState.PAUSED
        await move.near.release(move.uuid)  # again: nothing happens
        assert not await rig.far.whole(move.uuid)
        assert "arriving" in await refused(rig.far.pause(move.uuid))
        assert "arriving" in await refused(rig.far.sample(move.uuid)), "it would wait for pages that are on their way"
        assert await move.drain() is Rest.SENT
        await is_whole(rig.far, move.uuid)
        remaining = [reading.remaining for reading in move.left]
        assert remaining[0] > FAR_FROM_DONE
        assert remaining == sorted(remaining, reverse=True)
        await rig.near.destroy(move.uuid)
        assert await rig.alive(rig.far, move.uuid)
        await rig.far.pause(move.uuid)
        await rig.far.unpause(move.uuid)


async def test_up_to_the_edge_it_can_stay(rig: Rig) -> None:
    async with leaving(rig) as move:
        await rig.far.destroy(move.uuid)
        await rig.near.resume(move.uuid)
        assert (await the(rig.near, move.uuid)).state in UP
        assert await rig.alive(rig.near, move.uuid)
    plain = Move(rig.near, rig.far, move.uuid)  # and then move as any other
    assert not (await plain.whole()).poised
    assert await rig.far.whole(move.uuid)
    assert await rig.alive(rig.far, move.uuid)


async def test_a_broken_stream_is_replaced(rig: Rig) -> None:
    async with leaving(rig) as move:
        await move.go()
        for _ in range(2):
            assert await move.broken() is Rest.BROKEN
            assert not await rig.far.whole(move.uuid)
        async with move.mended():
            assert await move.drain() is Rest.SENT
        await is_whole(rig.far, move.uuid)
        await rig.near.destroy(move.uuid)
        assert await rig.alive(rig.far, move.uuid)


async def test_its_source_ends_while_the_rest_is_there(rig: Rig) -> None:
    async with leaving(rig) as move:
        await move.go()
        await rig.kill(rig.near, await the(rig.near, move.uuid))
        with pytest.raises((Lost, Refused)):
            await move.drain()
        assert not await rig.far.whole(move.uuid)
        await rig.far.lose(move.uuid)
        ended = await event(rig.far)
        assert (ended.uuid, ended.end) == (move.uuid, DomainEnd.DIED)


async def test_drivers_that_begin_anew_find_it_arriving(rig: Rig) -> None:
    async with leaving(rig) as move:
        await move.go()
        move.near = await rig.again(rig.near)
        move.far = await rig.again(rig.far)
        if isinstance(rig, QemuRig):
            await parts.becomes(lambda: the(rig.far, move.uuid), lambda reading: reading.state in UP)
        assert not await rig.far.whole(move.uuid)
        assert await move.drain() is Rest.SENT
        await is_whole(rig.far, move.uuid)
        await rig.near.destroy(move.uuid)
        assert await rig.alive(rig.far, move.uuid)


async def test_a_stream_that_stands_still_is_broken_off(rig: Rig) -> None:
    if not isinstance(rig, QemuRig):
        pytest.skip("a fake target reads in this very process")
    async with leaving(rig) as move:
        await move.go()
        pid = (await the(rig.far, move.uuid)).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await move.drain(stall=2.0) is Rest.BROKEN
        finally:
            os.kill(pid, signal.SIGCONT)
        async with move.mended():
            assert await move.drain() is Rest.SENT
        await is_whole(rig.far, move.uuid)
        await rig.near.destroy(move.uuid)
        assert await rig.alive(rig.far, move.uuid)
