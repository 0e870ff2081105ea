"""A copy between fake drivers: pass after pass over a real stream, and its other end."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from veery.errors import Failed
from veery.host.clock import Clock
from veery.hypervisor import fakepostcopy
from veery.hypervisor.base import Report
from veery.hypervisor.fakeworld import (
    DEVICES,
    END,
    ENDS,
    SLICE_LEAST_S,
    SLICES,
    FakeCopy,
    FakeDomain,
    Header,
    progress,
    read,
    write,
)
from veery.model import codec
from veery.model.domain import DomainEnd
from veery.model.move import Tuning
from veery.model.units import MIB


async def passes(
    domain: FakeDomain,
    copy: FakeCopy,
    stream: socket.socket,
    stall: float,
    report: Report,
    *,
    clock: Clock,
    step: Callable[[], Awaitable[None]],
) -> int:
    """Send pass after pass while the domain runs; return the bytes of the last pass, for which it must be paused.
    `step` may delay it."""
    total = remaining = domain.memory * MIB
    while True:
        copy.rounds += 1
        begun, left = clock.now(), remaining
        for _ in range(SLICES):
            piece = remaining // SLICES
            await clock.sleep(max(piece / copy.rate, SLICE_LEAST_S))
            await write(stream, b".", stall)
            copy.sent, left = copy.sent + piece, left - piece
            report(progress(copy, left, total))
            await step()
            if copy.leaving:
                return left
        while copy.means.hold and not copy.downtime and domain.running:
            report(progress(copy, 0, total))  # it does not scan for freshly written pages
            await clock.sleep(0.01)
            await step()
        seconds = clock.now() - begun
        written = domain.writes * (1 - copy.throttle / 100) if domain.running else 0.0
        remaining, copy.dirty_rate = min(total, int(written * seconds)), written
        fits = not copy.means.hold and remaining / copy.rate * 1000 <= copy.downtime
        if not domain.running or fits:
            return remaining


def tune(domain: FakeDomain, copy: FakeCopy, tuning: Tuning) -> None:
    """See Driver.tune. This does not stop the domain. Raises Failed."""
    copy.bandwidth = copy.bandwidth if tuning.bandwidth is None else tuning.bandwidth
    copy.downtime = copy.downtime if tuning.downtime is None else tuning.downtime
    if tuning.throttle is not None:
        if not copy.means.throttle:
            raise Failed(f"{domain.spec.name} cannot be slowed in this copy")
        copy.throttle = tuning.throttle
    if tuning.stop or tuning.post_copy:
        copy.leaving = tuning.post_copy


async def send_end(domain: FakeDomain, stream: socket.socket, stall: float) -> None:
    """Send along that the guest has ended, where it has. Raises OSError."""
    ended = domain.ended or domain.unseen
    if ended is not None:
        state = DomainEnd.POWEROFF if ended is DomainEnd.REBOOT else ended
        await write(stream, next(data for data, end in ENDS.items() if end is state), stall)


async def load(domain: FakeDomain, stream: socket.socket) -> None:
    """Read the other end: everything, or in post-copy all but the rest. Raises Failed, OSError."""
    head = b""
    while not head.endswith(b"\n"):
        head += await read(stream, 60)
    if codec.decode(head, Header).uuid != domain.spec.uuid:
        raise Failed(f"{domain.spec.name}: the stream is of another domain")
    while (data := await read(stream, 60)) not in (END, DEVICES):
        domain.unseen = ENDS.get(data, domain.unseen)
    domain.loaded, domain.whole = True, data == END
    if domain.whole:
        await write(stream, b"!", 60)
    else:
        fakepostcopy.arrive(domain, stream.dup())
