"""The parts of fake drivers: the world they share, their domains, consoles and streams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from veery.errors import Failed
from veery.hypervisor.fakedisks import Export, Mirror
from veery.model import codec
from veery.model.domain import DomainEnd, DomainReading, DomainSpec, DomainState, HostReading
from veery.model.move import CopyOptions, MoveProgress, Phase
from veery.model.volume import AttachedDisk, AttachedVif, Attachments

KEEP = 256 << 10
RATE = 1 << 30
"""Bytes/s of a copy without a limit."""
SLICES = 4
"""Readings in one pass."""
SLICE_LEAST_S = 0.002
"""A slice takes at least this time."""
END = b"e"
ENDS = {b"p": DomainEnd.POWEROFF, b"c": DomainEnd.CRASH, b"w": DomainEnd.WATCHDOG}
"""The run state, as the stream carries it, of a guest that has ended: a reboot looks like a power-off."""
DEVICES = b"d"
"""Everything but the rest of the memory has arrived: the domain can run."""


class Runner(Protocol):
    """A driver, as the world sees it."""

    def runs(self, uuid: str) -> bool:
        """Return whether the processors of domain `uuid` run there."""
        ...


@dataclass(slots=True)
class World:
    """The state that several fake drivers share. `twice` lists every (time, uuid, nodes) at which a domain ran in more
    than one place: it must stay empty."""

    drivers: dict[str, Runner] = field(default_factory=dict)
    twice: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)

    def running(self, uuid: str) -> tuple[str, ...]:
        """Return the nodes on which the processors of domain `uuid` run now."""
        return tuple(name for name, driver in self.drivers.items() if driver.runs(uuid))

    def look(self, uuid: str, now: float) -> None:
        """Record it if domain `uuid` runs twice."""
        nodes = self.running(uuid)
        if len(nodes) > 1:
            self.twice.append((now, uuid, nodes))


@dataclass(slots=True)
class Behind:
    """What is still at the source: `left` of `total` bytes, sent at `rate` bytes/s into `stream` (None: it broke)."""

    stream: socket.socket | None
    total: int
    left: int
    rate: int
    released: bool = False

    def close(self) -> None:
        """Break the stream."""
        if self.stream is not None:
            with contextlib.suppress(OSError):
                self.stream.shutdown(socket.SHUT_RDWR)
            self.stream.close()
        self.stream = None


@dataclass(slots=True)
class FakeDomain:
    """One fake domain. `stage` as in the qemu driver: running, incoming, arriving, sending. `behind`: the rest that
    stays here when the domain runs elsewhere by post-copy; `coming`: the task that receives the rest there, `whole`
    once it has all of it; `broken`: the stream broke before the domain could run. `unseen`: how its guest ended, which
    its driver has not noticed yet. `faults`: how often it must be resumed before its disk, which has the `fault`,
    accepts its write."""

    spec: DomainSpec
    attachments: Attachments
    domid: int
    started: float
    running: bool = False
    stage: str = "running"
    loaded: bool = False
    writes: float = 0.0
    deaf_until: float = 0.0
    fault: str = ""
    faults: int = 0
    held: bool = False
    ended: DomainEnd | None = None
    unseen: DomainEnd | None = None
    memory: int = 0
    most: int = 0
    ran: float = 0.0
    since: float = 0.0
    console: bytearray = field(default_factory=bytearray)
    printed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    export: Export | None = None
    mirrors: list[Mirror] = field(default_factory=list)
    disk_rate: int | None = None  # bandwidth of the copy of its disks that is under way
    behind: Behind | None = None
    coming: asyncio.Task[None] | None = None
    whole: bool = True
    broken: bool = False

    def seconds(self, now: float) -> float:
        """Return the processor time that it has used."""
        return self.ran + (now - self.since if self.running else 0.0)

    def end_disks(self) -> None:
        """Stop carrying its disks."""
        for mirror in self.mirrors:
            mirror.close()
        self.mirrors = []
        if self.export is not None:
            self.export.close()
        self.export = None

    def end_rest(self) -> None:
        """Stop the rest of its memory, both from here and to here."""
        if self.behind is not None:
            self.behind.close()
        if self.coming is not None:
            self.coming.cancel()
        self.behind = self.coming = None


class Header(msgspec.Struct):
    """The beginning of a fake stream; `size` in bytes."""

    uuid: str
    size: int


class Saved(msgspec.Struct):
    """The contents of a fake save file."""

    spec: DomainSpec


class FakeConsole:
    """See base.Console. What is typed is echoed, as a terminal does."""

    def __init__(self, domain: FakeDomain) -> None:
        """Begin at the backlog of `domain`."""
        self._domain, self._place, self._closed = domain, max(0, len(domain.console) - KEEP), False

    async def read(self) -> bytes:
        """See base.Console.read."""
        while not self._closed:
            data = bytes(self._domain.console[self._place :])
            if data:
                self._place += len(data)
                return data
            if self._domain.gone.is_set():
                break
            self._domain.printed.clear()
            await self._domain.printed.wait()
        return b""

    async def write(self, data: bytes) -> None:
        """See base.Console.write."""
        if self._domain.gone.is_set() or not self._domain.running:
            raise Failed(f"the console of {self._domain.spec.name} accepts no input")
        self._domain.console += data
        self._domain.printed.set()

    async def close(self) -> None:
        """See base.Console.close."""
        self._closed = True
        self._domain.printed.set()


def state_of(domain: FakeDomain) -> DomainState:
    """Return the state that a list shows."""
    if domain.stage == "incoming":
        return DomainState.INCOMING
    if domain.ended is not None:
        return DomainState.CRASHED if domain.ended is DomainEnd.CRASH else DomainState.SHUTDOWN
    return DomainState.RUNNING if domain.running else DomainState.PAUSED


def reading_of(domain: FakeDomain, seconds: float) -> DomainReading:
    """Return the reading of a domain that has used `seconds` of processor time."""
    return DomainReading(
        name=domain.spec.name,
        uuid=domain.spec.uuid,
        domid=domain.domid,
        state=state_of(domain),
        memory=domain.memory,
        vcpus=domain.spec.vcpus,
        cpu_seconds=seconds,
        started=domain.started,
        reason="" if domain.held else domain.fault,
    )


def host_reading(node: str, cpus: int, memory: int, free: int) -> HostReading:
    """Return the reading of a machine with `memory` MiB, of which `free` are free."""
    return HostReading(
        host=node,
        release="0",
        version="fake",
        machine="x86_64",
        cpus=cpus,
        cpu_mhz=1000.0,
        cpu_model="fake",
        memory_total=memory,
        memory_free=free,
        accelerator="fake",
        software={"fake": "1"},
        facts={},
    )


def fit_devices(domain: FakeDomain, disks: tuple[AttachedDisk, ...], vifs: tuple[AttachedVif, ...]) -> None:
    """Give the domain these devices from now on."""
    domain.attachments = replace(domain.attachments, disks=disks, vifs=vifs)
    domain.spec = replace(domain.spec, disks=tuple(each.spec for each in disks), vifs=tuple(each.spec for each in vifs))


def started_of(luggage: msgspec.Raw) -> float:
    """Return when the domain of `luggage` was started."""
    return codec.decode(bytes(luggage), dict[str, float])["started"]


@dataclass(slots=True)
class FakeCopy:
    """A copy under way: its settings that can be tuned, and its progress."""

    bandwidth: int
    downtime: int
    means: CopyOptions
    throttle: int = 0
    leaving: bool = False
    rounds: int = 0
    sent: int = 0
    dirty_rate: float = 0.0

    @property
    def rate(self) -> int:
        """Its speed in bytes/s."""
        return self.bandwidth or RATE


def progress(copy: FakeCopy, left: int, total: int) -> MoveProgress:
    """Return the reading of `copy` with `left` bytes of this pass to go."""
    return MoveProgress(
        phase=Phase.COPY,
        transferred=copy.sent,
        remaining=left,
        total=total,
        rate=copy.rate,
        dirty_rate=copy.dirty_rate,
        rounds=copy.rounds,
        throttle=copy.throttle,
    )


async def unless(gone: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Await `work`; raise ConnectionError as soon as `gone` is set."""
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionError("it was destroyed")
        working.result()
    finally:
        working.cancel()
        ending.cancel()
        await asyncio.wait({working, ending})


async def _timely(work: Awaitable[bytes | None], stall: float) -> bytes:
    try:
        async with asyncio.timeout(stall):
            return await work or b""
    except TimeoutError as error:
        raise ConnectionError(f"no byte moved for {stall:g} s") from error


async def write(stream: socket.socket, data: bytes, stall: float) -> None:
    """Send all of `data`. Raises ConnectionError when that takes longer than `stall` seconds."""
    stream.setblocking(False)
    await _timely(asyncio.get_running_loop().sock_sendall(stream, data), stall)


async def read(stream: socket.socket, stall: float) -> bytes:
    """Return one byte. Raises ConnectionError at the end of the stream."""
    stream.setblocking(False)
    data = await _timely(asyncio.get_running_loop().sock_recv(stream, 1), stall)
    if not data:
        raise ConnectionError("the other end is gone")
    return data
