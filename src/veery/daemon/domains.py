"""The parts that run domains on this node and move them."""

from __future__ import annotations

from dataclasses import replace

from veery.cluster import volumegate
from veery.cluster.keys import VOLUMES
from veery.daemon.base import Base
from veery.errors import Refused
from veery.hypervisor.base import Driver
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.xen.driver import XenDriver
from veery.migrate.base import MoveContext
from veery.migrate.check import Scout
from veery.migrate.journal import Journal
from veery.migrate.moves import Moves
from veery.migrate.phases import Hold
from veery.migrate.receiver import Receiver
from veery.migrate.relocation import RelocationServer
from veery.migrate.settle import Settler
from veery.model.codec import convert, plain
from veery.model.node import Role
from veery.model.plan import Question, Reply
from veery.model.volume import Volume
from veery.network.filter import TapFilter
from veery.node.attachments import NodeAttacher
from veery.node.caretaker import Caretaker
from veery.node.cpu_baseline import CpuBaseline
from veery.node.devices import Devices
from veery.node.domains import Domains
from veery.node.machine import Machine
from veery.node.saving import Saving
from veery.storage.iscsiadm import KernelInitiator


class DomainParts:
    """The domain parts. Every daemon has them: a node that runs no domains still answers questions about itself."""

    def __init__(self, base: Base, driver: Driver | None) -> None:
        """Build the parts. `driver` replaces the one that the node's record names."""
        self._base = base
        self.driver = driver or _driver(base)
        self.filter = TapFilter(on=base.settings.network.filter)
        self.attacher = NodeAttacher(
            base.node.name,
            self.driver,
            self._volume,
            base.credentials.mine,
            taps=base.node.driver != "xen",
            filter=self.filter,
        )
        self.context = MoveContext(
            node=base.node.name,
            store=base.store,
            driver=self.driver,
            attacher=self.attacher,
            journal=Journal(base.state / "journal"),
            clock=base.clock,
            hold=Hold(base.runtime / "hold"),
            client_tls=base.client_tls,
            disk_folder=base.settings.storage.local,
        )
        self._build_moves(base)
        self.domains = Domains(
            base.node,
            self.context,
            self.attacher,
            base.heartbeat,
            moves=self.moves,
            receiver=self.receiver,
            scout=self.scout,
        )
        self.saving = Saving(self.domains, base.store, base.heartbeat)
        self.devices = Devices(self.domains, self.driver, self.attacher)
        self.caretaker = Caretaker(self.context, self.domains, base.trust)
        self.machine = Machine(
            base.node,
            self.driver,
            base.store.raw,
            base.peers,
            doubt=lambda: base.trust.reason,
            unsettled=self.settler.troubles,
        )
        self.cpu_baseline = CpuBaseline(base.node, base.store, self.driver)

    def _build_moves(self, base: Base) -> None:
        moves = base.settings.moves
        self.settler = Settler(self.context)
        self.moves = Moves(self.context, self.settler, base.state / "moves", moves)
        self.receiver = Receiver(self.context, self.settler, moves)
        self.relocation = RelocationServer(
            base.node.name,
            base.node.address,
            base.settings.relocation,
            base.server_tls,
            self.receiver.take,
            admission=base.admission,
            member=base.node_cache.reached_at,
        )
        self.receiver.server = self.relocation
        self.scout = Scout(self.context, base.node, self.moves.list, self.moves.paths, self._ask)

    async def _volume(self, name: str) -> Volume | None:
        if move := await volumegate.standing(self._base.store, name):
            raise volumegate.being_moved(move)
        return await VOLUMES.get(self._base.store, name)

    async def _ask(self, name: str, question: Question) -> Reply:
        answer = await self._base.peers.call(name, "POST", "/v1/question", plain(question), deadline=15)
        return convert(answer, Reply)


def _driver(base: Base) -> Driver:
    """Return the driver that the node's record names. Raises Refused if this version has no such driver."""
    match base.node.driver:
        case "xen":
            return XenDriver(base.runtime, base.certificates, base.settings.xen, KernelInitiator(), base.clock)
        case "" | "qemu":
            qemu = base.settings.qemu
            if not base.node.has(Role.HYPERVISOR):  # it runs no domains, so KVM is not tested
                qemu = replace(qemu, accel="tcg")
            return QemuDriver(base.runtime, base.certificates, qemu, base.clock)
    raise Refused(f"no driver {base.node.driver!r}", hint="this version has: qemu, xen")
