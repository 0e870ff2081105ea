"""Two nodes with fake drivers and a store in memory, and between them the real relocation protocol on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.cluster import owner as owners
from veery.cluster import revocation
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES
from veery.cluster.memory import MemoryStore
from veery.config.settings import MoveLimits, Relocation
from veery.errors import Failed
from veery.host import tls
from veery.host.clock import Clock, RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.migrate.base import MoveContext
from veery.migrate.journal import Journal, Line
from veery.migrate.journal import Side as JournalSide
from veery.migrate.moves import Moves
from veery.migrate.phases import Hold
from veery.migrate.receiver import Receiver
from veery.migrate.relocation import RelocationServer
from veery.migrate.settle import Settler
from veery.model.cluster import DomainRecord
from veery.model.domain import DiskFormat, DomainReading, DomainSpec
from veery.model.flow import Flow
from veery.model.move import MoveReport, MoveSettings, Phase
from veery.model.node import Node, Role
from veery.model.plan import Blocker
from veery.model.volume import AttachedDisk, Attachments, LocalDisk

ADDRESS = "127.0.0.1"
UUID = "11111111-2222-4333-8444-555555555555"
SPEC = DomainSpec(name="busybox", uuid=UUID, memory=64)


def make_certificates(folder: Path) -> Path:
    """One folder a node under `folder`, of one CA."""
    now = time.time()
    authority = tls.make_ca("test", epoch=now)
    for name in ("a", "b"):
        request = tls.make_request(name)
        cert = tls.sign(authority, request.cert, name=name, addresses=[ADDRESS], epoch=now)
        tls.write_folder(folder / name, ca=authority.cert, node=tls.KeyPair(cert, request.key))
    return folder


def dead_line(side: JournalSide, phase: Phase, **more: Any) -> Line:
    """The line that a dead daemon left in the journal of its `side` of a move from a to b."""
    known = {"domain": "busybox", "uuid": UUID, "boot": "boot", "source": "a", "target": "b", "owner_revision": 1}
    return Line(move="dead", side=side, phase=phase, **{**known, **more})  # type: ignore[arg-type]


def local_disk(path: str) -> LocalDisk:
    """A raw file as a disk's bytes."""
    return LocalDisk(path=path, format=DiskFormat.RAW, block=False)


class BareAttacher:
    """A node without taps, whose disks are raw files."""

    def __init__(self) -> None:
        self.reasons: tuple[Blocker, ...] = ()
        self.attached = 0
        self.announced = 0
        self.tracked: tuple[Flow, ...] = ()
        self.fails = False
        self.tidying = 0.0  # seconds for which taking off takes
        self.slow = 0.0  # seconds for which reading and admitting connections take

    async def blockers(self, spec: DomainSpec) -> tuple[Blocker, ...]:
        """As Attacher."""
        return self.reasons

    async def attach(self, spec: DomainSpec) -> Attachments:
        """As Attacher."""
        self.attached += 1
        disks = (AttachedDisk(spec=disk, source=local_disk(disk.target)) for disk in spec.disks)
        return Attachments(disks=tuple(disks))

    async def announce(self, attachments: Attachments) -> None:
        """As Attacher."""
        self.announced += 1

    async def flows(self, spec: DomainSpec) -> tuple[Flow, ...]:
        """As Attacher."""
        await asyncio.sleep(self.slow)
        if self.fails:
            raise Failed("tracked connections cannot be read")
        return self.tracked

    async def admit(self, flows: Sequence[Flow]) -> int:
        """As Attacher."""
        await asyncio.sleep(self.slow)
        if self.fails:
            raise Failed("no tracked connection could be entered")
        self.tracked = tuple(flows)
        return len(flows)

    async def detach(self, attachments: Attachments) -> None:
        """As Attacher."""
        await asyncio.sleep(self.tidying)
        self.attached -= 1


@dataclass
class Side:
    """One node."""

    node: Node
    store: MemoryStore
    driver: Any  # as base.Driver: a FakeDriver, or what `make` of two_nodes gives
    attacher: BareAttacher
    context: MoveContext
    settler: Settler
    moves: Moves
    hold: Path
    receiver: Receiver

    async def reading(self) -> DomainReading:
        """The domain, as it stands here."""
        (found,) = await self.driver.list()
        return found

    async def move(self, target: Side, settings: MoveSettings | None = None) -> MoveReport:
        """Move the domain there; the report."""
        return await self.moves.outcome(self.moves.start(await self.reading(), target.node, settings or MoveSettings()))


@dataclass
class Pair:
    """Both nodes; the domain runs on `a`."""

    a: Side
    b: Side
    world: World

    async def owner(self) -> str:
        """Who the store says owns the domain."""
        owner = await owners.read(self.a.store.view(), "busybox")
        return owner.node if owner else ""

    async def settled(self) -> None:
        """Return once nothing is open on either node."""
        async with asyncio.timeout(30):
            while self.a.context.journal.open() or self.b.context.journal.open() or self.a.moves.busy("busybox"):
                await asyncio.sleep(0.01)

    async def check(self, where: str) -> None:
        """Exactly one copy, on the owner, running; it never ran twice; nothing is left."""
        await self.settled()
        assert self.world.running(UUID) == (where,)
        assert self.world.twice == []
        assert await self.owner() == where
        assert await owners.reservation(self.a.store, "busybox") is None
        rest = self.b if where == "a" else self.a
        assert await rest.driver.list() == ()
        assert rest.attacher.attached <= 0


@contextlib.asynccontextmanager
async def two_nodes(
    folder: Path,
    certificates: Path,
    spec: DomainSpec = SPEC,
    *,
    make: Callable[[str, World, Clock], Any] = FakeDriver,
    limits: MoveLimits | None = None,
) -> AsyncIterator[Pair]:
    """Both nodes up, the domain `spec` running on `a`; `make` makes the driver of a node, `limits` are those of what it
    takes in."""
    clock, world = RealClock(), World()
    root = MemoryStore(clock)
    async with asyncio.TaskGroup() as tasks:
        running: list[asyncio.Task[None]] = []
        sides = []
        for name in ("a", "b"):
            with socket.socket() as free:
                free.bind((ADDRESS, 0))
                port = free.getsockname()[1]
            node = Node(name=name, address=ADDRESS, roles=(Role.HYPERVISOR,), relocation_port=port)
            store, driver, attacher = root.view(), make(name, world, clock), BareAttacher()
            await driver.open()
            hold = folder / name / "hold"
            context = MoveContext(
                node=name,
                store=store,
                driver=driver,
                attacher=attacher,
                journal=Journal(folder / name / "journal"),
                clock=clock,
                hold=Hold(hold),
                client_tls=tls.client_context(certificates / name),
            )
            settler = Settler(context)
            moves = Moves(context, settler, folder / name / "moves")
            receiver = Receiver(context, settler, limits or MoveLimits())
            server_tls = tls.server_context(certificates / name)
            own = revocation.certificate((certificates / name / "server-cert.pem").read_text())
            await store.commit([], [CERTIFICATES.put(name, own)])
            admission = Admission(store, tls.Shown(name, own.serial), folder / name / "certificates.json")
            server = RelocationServer(
                name,
                ADDRESS,
                Relocation(port=port),
                server_tls,
                receiver.take,
                admission=admission,
                member=lambda address: address == ADDRESS,
            )
            receiver.server = server
            server.bind()
            running += [tasks.create_task(each.run()) for each in (settler, moves, server)]
            sides.append(Side(node, store, driver, attacher, context, settler, moves, hold, receiver))
        await asyncio.sleep(0)
        a, b = sides
        await owners.claim(root.view(), "busybox", "a", "boot", DomainRecord(spec=spec))
        a.attacher.attached += 1
        await a.driver.start(spec, Attachments())
        try:
            yield Pair(a, b, world)
        finally:
            for task in running:
                task.cancel()
