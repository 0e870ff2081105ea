"""Post-copy between fake drivers: the rest of a domain's memory follows it, over a stream that can break and be
replaced."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from veery.errors import Failed, Refused
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.base import Lost, Report, Rest
from veery.hypervisor.fakeworld import DEVICES, END, SLICE_LEAST_S, SLICES, Behind, FakeDomain, read, unless, write
from veery.model.move import MoveProgress, Phase


async def release(domain: FakeDomain) -> None:
    """See PostCopier.release."""
    behind = _behind(domain)
    if behind.released:
        return
    behind.released = True
    if behind.stream is not None:
        with contextlib.suppress(OSError):
            await write(behind.stream, DEVICES, 5)


async def drain(
    domain: FakeDomain, report: Report, stall: float, clock: Clock, step: Callable[[], Awaitable[None]]
) -> Rest:
    """See PostCopier.drain. `step` may delay it."""
    behind = _behind(domain)
    stream = behind.stream
    piece = max(behind.total // SLICES, 1)
    try:
        while stream is not None and behind.left > 0:
            await clock.sleep(max(min(piece, behind.left) / behind.rate, SLICE_LEAST_S))
            await step()
            await unless(domain.gone, write(stream, b".", stall))
            behind.left = max(0, behind.left - piece)
            report(
                MoveProgress(phase=Phase.COPY, remaining=behind.left, total=behind.total, rate=behind.rate, rounds=2)
            )
        if stream is not None:
            await write(stream, END, stall)
            await unless(domain.gone, _ack(stream, stall))
            behind.close()
            return Rest.SENT
    except OSError:
        behind.close()
    if domain.gone.is_set():
        raise Lost(f"{domain.spec.name}: it ended before all of its memory was sent")
    return Rest.BROKEN


async def _ack(stream: socket.socket, stall: float) -> None:
    await read(stream, stall)


def reconnect(domain: FakeDomain, stream: socket.socket) -> None:
    """See PostCopier.reconnect."""
    behind = _behind(domain)
    behind.close()
    behind.stream = stream.dup()


def arrive(domain: FakeDomain, stream: socket.socket) -> None:
    """Receive the rest from `stream`, which this function owns, in a task of the domain: the target has the devices."""
    domain.coming = asyncio.create_task(_take_in(domain, stream), name=f"{domain.spec.name} arrives")


async def rejoin(domain: FakeDomain) -> socket.socket:
    """See PostCopier.rejoin."""
    if domain.stage not in {"arriving", "incoming"}:
        raise Refused(f"{domain.spec.name} is not arriving here")
    if not domain.loaded:
        if domain.broken:
            raise Lost(f"{domain.spec.name}: the state of its devices was lost on the way")
        raise Failed(f"{domain.spec.name} is not loaded yet")
    if domain.coming is not None:
        await tasks.stop(domain.coming)
    near, far = socket.socketpair()
    near.setblocking(False)
    arrive(domain, far)
    return near


async def _take_in(domain: FakeDomain, stream: socket.socket) -> None:
    with contextlib.closing(stream), contextlib.suppress(OSError):
        while await read(stream, 3600) != END:
            pass
        domain.whole = True
        await write(stream, b"!", 60)


def _behind(domain: FakeDomain) -> Behind:
    if domain.behind is None:
        raise Lost(f"{domain.spec.name} has no memory left to send")
    return domain.behind
