"""`veeryd`: builds this node's parts, once, and runs them until it is told to stop.

Everything that has a state is made here and handed down; nothing below makes its own. Domains, etcd and tgtd
are processes of their own: they do not end with us."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import veery
from veery.api.addresses import AddressRoutes
from veery.api.adoption import AdoptionRoutes
from veery.api.alarms import AlarmRoutes
from veery.api.certificates import CertificateRoutes
from veery.api.cluster import ClusterRoutes
from veery.api.credentials import CredentialRoutes
from veery.api.domains import DomainRoutes
from veery.api.fencing import FencingRoutes
from veery.api.ha import HaRoutes
from veery.api.recovery import RecoveryRoutes
from veery.api.server import ApiServer
from veery.api.storage import StorageRoutes
from veery.api.upkeep import UpkeepRoutes
from veery.cluster import server as etcd_server
from veery.cluster import volumegate
from veery.cluster.admission import Admission
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity, client_url
from veery.cluster.identity import load as load_identity
from veery.cluster.keys import VOLUMES, node_at
from veery.cluster.members import open_store
from veery.cluster.mirror import Mirror
from veery.cluster.presence import Heartbeat
from veery.cluster.store import StoreRestored
from veery.cluster.trust import SeenFile, Trust
from veery.cluster.trust import Standing as StoreStanding
from veery.cluster.vault import Vault
from veery.config.settings import DEFAULT_PATH, Settings
from veery.config.settings import load as load_settings
from veery.errors import Failed, Refused, VeeryError
from veery.ha import orders
from veery.ha.eyes import UNSEEN, StoreEyes
from veery.ha.fence.power import PowerFence
from veery.ha.loop import Brain
from veery.host import crl, heap, restarting, systemd, tls
from veery.host import log as logs
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.host.owner import has_account
from veery.host.process import Service
from veery.host.shortage import is_shortage
from veery.hypervisor.base import Driver
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.xen.driver import XenDriver
from veery.migrate.base import Ground
from veery.migrate.check import Scout
from veery.migrate.journal import Journal
from veery.migrate.moves import Moves
from veery.migrate.phases import Hold
from veery.migrate.receiver import Receiver
from veery.migrate.relocation import RelocationServer
from veery.migrate.settle import Settler
from veery.model.codec import convert, plain
from veery.model.fence import Method
from veery.model.ha import FenceMeans, Level, Rules
from veery.model.node import Node, Role
from veery.model.plan import Question, Reply
from veery.model.volume import Backing, Volume
from veery.network.filter import TapFilter
from veery.node import alarmways, goingdown
from veery.node.addresschange import AddressChange, Parts
from veery.node.adoption import Adopter
from veery.node.alarms import Alarms
from veery.node.attachments import NodeAttacher
from veery.node.caretaker import Caretaker
from veery.node.certificates import Certificates, Etcd
from veery.node.credentials import Credentials
from veery.node.devices import Devices
from veery.node.doctor import Doctor
from veery.node.domains import Domains
from veery.node.etcdcut import EtcdCut
from veery.node.etcdswitch import EtcdSwitch
from veery.node.exposure import Exposure, judge_user
from veery.node.fencing import Fencing
from veery.node.guard import Guard
from veery.node.hands import NodeHands
from veery.node.images import Images
from veery.node.leaning import SHY, Leaning
from veery.node.machine import Machine
from veery.node.means import MeansWriter
from veery.node.membership import Membership
from veery.node.neighbours import Neighbours
from veery.node.oversight import Oversight
from veery.node.peers import Peers
from veery.node.processors import Processors
from veery.node.recovery import Recovery
from veery.node.senses import PeerSenses
from veery.node.sessions import SessionWatch
from veery.node.signs import SignWatcher, SignWriter
from veery.node.standing import Standing
from veery.node.stillness import Stillness
from veery.node.storagerole import StorageRole, end_target
from veery.node.storecompare import StoreCompare
from veery.node.storerecovery import Recoverer
from veery.node.storeupkeep import StoreUpkeep
from veery.node.volumemoves import VolumeMoves
from veery.node.volumes import VolumeRecords, VolumeService
from veery.node.votes import Votes
from veery.node.watchdog import WatchdogKeeper
from veery.storage.base import BytesStore
from veery.storage.beat import BeatFile, heartbeat_iqn
from veery.storage.file import FileStore
from veery.storage.iscsiadm import KernelInitiator
from veery.storage.lvm import LvmStore
from veery.storage.served import Served
from veery.storage.tgt import TargetServer
from veery.storage.volumes import Volumes

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]

PAUSE = 1.0  # seconds before a part that met a shortage begins again
_PERIODIC = """
    membership, certificates, heartbeat, relocation, processors, neighbours, admission, systemd, guard, heartbeats,
    mirror, means, leaning, signs, etcd, tgtd, volumes, copies of the store, alarms, brain, trust in the store,
    given up stores, change of roles, change of address, members compared, credentials, iSCSI sessions"""
PERIODIC = frozenset(name.strip() for name in _PERIODIC.split(","))
"""Parts that lose nothing when they begin again."""
FAREWELL = 5.0  # seconds: a node that does not come to say that it is away is lost when its lease has ended
ROLES_S = 1.0  # between two looks whether our roles have changed
GOING_DOWN_S = 45  # for all domains to end when the machine is shut down


class Daemon:
    """This node's parts and their tasks."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        tail: logs.Tail,
        *,
        store: EtcdStore | None = None,
        driver: Driver | None = None,
    ) -> None:
        """Builds everything; nothing runs and no port is taken before `run`. `store`, `driver`: in place of those that
        the settings and the identity name."""
        self.settings, self.identity, self.node = settings, identity, identity.node
        self.anew = False  # whether a daemon is to follow this one at once
        self.stop: Callable[[], object] = lambda: None
        self.state, self.runtime = Path(settings.state), Path(settings.run)
        self.clock = RealClock()
        folder = self.state / "tls"
        self.contexts = _contexts(folder)
        self.server_tls, self.client_tls = self.contexts.server, self.contexts.client
        self.trust = Trust(self.node.name, SeenFile(self.state / "store.json"), self.clock)
        self.store = store or open_store(settings, identity, self.trust, context=self.client_tls)
        self.peers = Peers(self.client_tls, self._find)
        self.mirror = Mirror(self.store, UNSEEN)
        own = tls.Shown(self.node.name, crl.serial((folder / "server-cert.pem").read_text())[0])
        self.admission = Admission(self.store, own, self.state / "certificates.json")
        self.neighbours = Neighbours(self.store, self.state / "nodes.json", self.clock)
        self.heartbeat = Heartbeat(self.store, self.node.name, ttl=settings.presence_ttl, clock=self.clock)
        self.vault = Vault(self.state)
        self.credentials = Credentials(self.node, self.store, self.state, peers=self.peers, clock=self.clock)
        self.membership = Membership(settings, identity, self.store, self.peers, self.vault)
        self.alarms = Alarms(
            alarmways.ways(settings.alarms, self.node.name),
            least=Level(settings.alarms.level),
            node=self.node.name,
            cluster=identity.cluster.name,
            clock=self.clock,
            lost=self.heartbeat.since_lost,
        )
        self._build_ground(settings, driver or self._driver(folder))
        self._build_moves(settings)
        self._build_storage()
        self._build_safety(settings, identity, folder)
        self._build_brain(settings)
        self.api = self._api(tail)

    # ---- building

    def _build_ground(self, settings: Settings, driver: Driver) -> None:
        """What orders and moves of domains stand on."""
        self.driver = driver
        self.filter = TapFilter(on=settings.network.filter)
        self.attacher = NodeAttacher(
            self.node.name,
            self.driver,
            self._volume,
            self.credentials.mine,
            taps=self.node.driver != "xen",
            filter=self.filter,
        )
        self.ground = Ground(
            node=self.node.name,
            store=self.store,
            driver=self.driver,
            attacher=self.attacher,
            journal=Journal(self.state / "journal"),
            clock=self.clock,
            hold=Hold(self.runtime / "hold"),
            client_tls=self.client_tls,
            disk_folder=settings.storage.local,
        )

    def _build_moves(self, settings: Settings) -> None:
        """Domains, and their moves."""
        self.settler = Settler(self.ground)
        self.moves = Moves(self.ground, self.settler, self.state / "moves", settings.moves)
        self.receiver = Receiver(self.ground, self.settler, settings.moves)
        self.relocation = RelocationServer(
            self.node.name,
            self.node.address,
            settings.relocation,
            self.server_tls,
            self.receiver.take,
            admission=self.admission,
            member=self.neighbours.reached_at,
        )
        self.receiver.server = self.relocation
        self.scout = Scout(self.ground, self.node, self.moves.list, self.moves.paths, self._ask)
        self.domains = Domains(
            self.node,
            self.ground,
            self.attacher,
            self.heartbeat,
            moves=self.moves,
            receiver=self.receiver,
            scout=self.scout,
        )
        self.machine = Machine(
            self.node,
            self.driver,
            self.store.raw,
            self.peers,
            doubt=lambda: self.trust.reason,
            unsettled=self.settler.troubles,
        )
        self.processors = Processors(self.node, self.store, self.driver)

    def _build_storage(self) -> None:
        """Volumes, and their moves."""
        self.volumes = self._volumes()
        self.sessions: SessionWatch | None = None
        if self.volumes.here is not None:
            self.sessions = SessionWatch(self.node.name, self.store, self.volumes.here, self.clock)
        self.volume_moves = VolumeMoves(
            self.volumes,
            self.domains,
            self.driver,
            self.attacher,
            store=self.store,
            peers=self.peers,
            clock=self.clock,
            hold=self.ground.hold,
            folder=self.state / "volume-moves",
        )

    def _build_safety(self, settings: Settings, identity: Identity, folder: Path) -> None:
        """Fences, and what this node does when it is cut off."""
        self.fencing = Fencing(
            self.node.name,
            self.store,
            peers=self.peers,
            volumes=self.volumes,
            domains=self.domains,
            clock=self.clock,
            power=PowerFence(settings.power),
        )
        own = client_url(settings, self.node) if identity.etcd else ""
        self.standing = Standing(self.node, self.store, self.volumes, own)
        self.near = Peers(self.client_tls, self.neighbours.find)  # asks the store for nothing
        self.stillness = Stillness(self.heartbeat, self.clock)
        self.guard = self._guard()
        self.watcher = self._watcher()
        guard = self.guard
        self.keeper = WatchdogKeeper(
            self.node.name,
            self.store,
            settings.watchdog,
            self.clock,
            may_feed=guard.may_feed if guard else self._may_feed,
        )
        self.writer = self._signs() if self.node.has(Role.HYPERVISOR) else None
        etcd = etcd_server.later(settings, lambda: self.membership.identity)
        self.switch = EtcdSwitch(etcd, on=identity.etcd is not None)
        ports = (settings.etcd.client_port, settings.etcd.peer_port)
        self.membership.cut = EtcdCut(self.store, ports, self.switch.pid)
        self.services = self._services()
        self.store_upkeep = StoreUpkeep(
            self.node.name,
            self.store,
            self.services,
            state=self.state,
            clock=self.clock,
            quota=settings.etcd.quota << 20,
            trusted=lambda: self.trust.standing is StoreStanding.FITS,
        )
        self._build_recovery(settings)
        self.certificates = self._certificates(folder)
        self.address_change = self._address_change()
        self.storage_role = StorageRole(settings, self.store, self.membership, self.volumes.here)
        self.doctor = self._doctor(folder)

    def _build_recovery(self, settings: Settings) -> None:
        """Votes in the store, and a store that is made again."""
        self.votes = Votes(settings, self.store, self.membership, self.switch, self.clock)
        self.recoverer = Recoverer(
            settings,
            self.store,
            self.trust,
            self.membership,
            switch=self.switch,
            votes=self.votes,
            stillness=self.stillness,
            neighbours=self.neighbours,
            peers=self.near,
            tls=self.client_tls,
            clock=self.clock,
        )

    def _may_feed(self) -> bool:
        """The same without a guard."""
        return self.heartbeat.remaining() > 0 or self.trust.stands() or self.stillness.holds()

    def _build_brain(self, settings: Settings) -> None:
        """What is decided for the whole cluster, where this node leads."""
        self.rules = _rules(settings)
        self.senses = PeerSenses(self.near, self.neighbours, self.clock)
        self.brain = self._brain() if self.node.has(Role.VOTER) else None
        self.oversight = Oversight(
            self.node.name,
            self.store,
            records=self.store.raw,
            brain=self.brain,
            rules=self.rules,
            peers=self.near,
            clock=self.clock,
        )

    async def _find(self, where: str) -> Node:
        try:
            return await node_at(self.store, where)
        except StoreRestored:
            return await self.neighbours.find(where)

    def _driver(self, folder: Path) -> Driver:
        match self.node.driver:
            case "xen":
                return XenDriver(self.runtime, folder, self.settings.xen, KernelInitiator(), self.clock)
            case "" | "qemu":
                qemu = self.settings.qemu
                if not self.node.has(Role.HYPERVISOR):  # it reads the machine and runs nothing: KVM need not be tried
                    qemu = replace(qemu, accel="tcg")
                return QemuDriver(self.runtime, folder, qemu, self.clock)
        raise Refused(f"no driver {self.node.driver!r}", hint="this version has: qemu, xen")

    def _pool(self) -> Path:
        return Path(self.settings.storage.pool or self.state / "volumes")

    def _volumes(self) -> VolumeService:
        served = Served(self.state / "served.json")
        records = VolumeRecords(self.store)
        here: Volumes | None = None
        self.target: TargetServer | None = None
        if self.node.has(Role.STORAGE):
            records = VolumeRecords(self.store, self.credentials.password, served.initiators)
            storage = self.settings.storage
            address = storage.address or self.node.address
            self.target = TargetServer(address=address, port=storage.portal_port, run=self.runtime)
            stores: dict[Backing, BytesStore] = {Backing.FILE: FileStore(self._pool(), self.state)}
            if storage.group:
                stores[Backing.LVM] = LvmStore(storage.group)
            here = Volumes(
                node=self.node.name,
                server=self.target,
                stores=stores,
                records=records,
                authority=self.identity.cluster.authority.removeprefix("iqn."),
                clock=self.clock,
                served=served,
                beats=BeatFile(self.state / "heartbeats"),
            )
        return VolumeService(self.node.name, self.store, self.peers, records, here)

    def _guard(self) -> Guard | None:
        if not self.node.has(Role.HYPERVISOR) or not self.settings.guard.end:
            return None
        return Guard(
            self.node,
            self.store,
            heartbeat=self.heartbeat,
            domains=self.domains,
            fencing=self.fencing,
            standing=self.standing,
            neighbours=self.neighbours,
            peers=self.near,
            clock=self.clock,
            doubted=self.trust.stands,
            still=self.stillness.holds,
            file=self.runtime / "held.json",
            end=self.settings.guard.end,
        )

    def _watcher(self) -> SignWatcher | None:
        if self.target is None:
            return None
        authority = self.identity.cluster.authority.removeprefix("iqn.")
        return SignWatcher(
            self.node,
            BeatFile(self.state / "heartbeats"),
            self.neighbours,
            self.clock,
            portal=self.target.portal,
            iqn=heartbeat_iqn(authority, self.node.name),
        )

    def _signs(self) -> SignWriter:
        return SignWriter(
            self.node,
            self.credentials.mine,
            neighbours=self.neighbours,
            peers=self.near,
            clock=self.clock,
            stopped=lambda: self.guard is not None and self.guard.stopped,
        )

    def _certificates(self, folder: Path) -> Certificates:
        etcd = None
        if self.identity.etcd is not None:
            etcd = Etcd(lambda force: self.store_upkeep.restart(force=force), self.runtime / "etcd.pid")
        return Certificates(
            self.node,
            self.store,
            self.vault,
            contexts=self.contexts,
            admission=self.admission,
            peers=self.peers,
            clock=self.clock,
            folder=folder,
            idle=self.moves.idle,
            settled=self.membership.settle_ca,
            etcd=etcd,
        )

    def _address_change(self) -> AddressChange:
        parts = Parts(
            self.membership, self.certificates, self.store_upkeep, self.switch, volumes=self.volumes, peers=self.peers
        )
        return AddressChange(self.settings, self.store, parts, self.clock, idle=self.moves.idle)

    def _doctor(self, certificates: Path) -> Doctor:
        folders = {"state": self.state, "run": self.runtime}
        if self.settings.storage.pool:
            folders["volumes"] = Path(self.settings.storage.pool)
        return Doctor(
            self.node,
            self.store,
            peers=self.peers,
            fencing=self.fencing,
            keeper=self.keeper,
            guard=self.guard,
            writer=self.writer,
            trust=self.trust,
            clock=self.clock,
            folders=folders,
            tls=certificates,
            unread=self.driver.unread,
            driver=self.driver if self.node.has(Role.HYPERVISOR) else None,
            unsettled=self.settler.troubles,
            exposure=self._exposure() if self.node.has(Role.HYPERVISOR) else None,
            quota=self.settings.etcd.quota << 20,
            services=lambda: self.services,
            pool=self._pool() if self.target is not None else None,
            copies=self.store_upkeep.copies if self.identity.etcd is not None else None,
            alarms=self.alarms.ways,
            sessions=self.sessions.finding if self.sessions is not None else None,
        )

    def _exposure(self) -> Exposure:
        node, settings = self.node, self.settings
        ports = {
            f"API (port {settings.api.port})": settings.api.address or node.address,
            f"relocation (port {settings.relocation.port})": settings.relocation.address or node.address,
        }
        if self.identity.etcd is not None:
            ports[f"etcd (ports {settings.etcd.client_port}, {settings.etcd.peer_port})"] = node.address
        if node.has(Role.STORAGE):
            ports[f"iSCSI (port {settings.storage.portal_port})"] = settings.storage.address or node.address
        if node.driver == "xen":
            return Exposure(node.name, ports, self.attacher.guest_bridges, None)
        user = partial(judge_user, node.name, settings.qemu.user, account=has_account())
        return Exposure(node.name, ports, self.attacher.guest_bridges, self.filter, user)

    def _means(self) -> FenceMeans:
        """How this node can be fenced, as its settings and its watchdog have it now."""
        methods = [Method.STORAGE]
        if self.keeper.timeout:
            methods.append(Method.WATCHDOG)
        if self.node.name in self.settings.power:
            methods.append(Method.POWER)
        return FenceMeans(methods=tuple(methods), watchdog=self.keeper.timeout)

    def _brain(self) -> Brain:
        return Brain(
            self.node.name,
            store=self.store,
            eyes=StoreEyes(self.store, self.senses, self.clock, self.rules),
            hands=NodeHands(self.store, self.near, {way.method: way for way in self.fencing.ways}),
            clock=self.clock,
            rules=self.rules,
            told=self.alarms.hear,
            shy=SHY if self.node.has(Role.HYPERVISOR) else 0.0,
        )

    def _api(self, tail: logs.Tail) -> ApiServer:
        devices = Devices(self.domains, self.driver, self.attacher)
        tables = [
            DomainRoutes(self.domains, devices, self.moves, self.machine, peers=self.peers).table(),
            StorageRoutes(
                self.volumes,
                Images(self.volumes, self.settings.image),
                devices,
                self.machine,
                self.volume_moves,
                peers=self.peers,
            ).table(),
            ClusterRoutes(self.membership, self.machine, self.processors, tail, self.doctor).table(),
            CertificateRoutes(self.certificates).table(),
            CredentialRoutes(self.credentials).table(),
            AdoptionRoutes(
                Adopter(
                    self.node,
                    self.store.raw,
                    self.trust,
                    self.domains,
                    neighbours=self.neighbours,
                    peers=self.near,
                    clock=self.clock,
                )
            ).table(),
            UpkeepRoutes(self.store_upkeep).table(),
            AlarmRoutes(self.alarms).table(),
            AddressRoutes(self.node.name, self.address_change, self.storage_role, peers=self.peers).table(),
            RecoveryRoutes(self.node.name, self.recoverer, self.votes, self.stillness, peers=self.near).table(),
            FencingRoutes(self.fencing, self.standing, self.guard, self.watcher).table(),
            HaRoutes(
                self.oversight,
                Recovery(
                    self.node.name,
                    self.mirror,
                    self.domains,
                    self.heartbeat,
                    unsettled=self.settler.unsettled,
                    held=self._guard_holds,
                ),
                peers=self.near,
                neighbours=self.neighbours,
            ).table(),
        ]
        return ApiServer(
            self.node.name,
            self.peers,
            tables,
            admission=self.admission,
            member=self.neighbours.reached_at,
            group=self.settings.api.group,
        )

    def _guard_holds(self) -> frozenset[str]:
        return self.guard.holds if self.guard is not None else frozenset()

    async def _volume(self, name: str) -> Volume | None:
        if move := await volumegate.standing(self.store, name):
            raise volumegate.being_moved(move)
        return await VOLUMES.get(self.store, name)

    async def _ask(self, name: str, question: Question) -> Reply:
        answer = await self.peers.call(name, "POST", "/v1/question", plain(question), deadline=15)
        return convert(answer, Reply)

    # ---- running

    async def run(self) -> None:
        """Take the ports, run everything, until cancelled. Raises Refused when a port is in use, or another veeryd
        is at work here: nothing is touched before that is known."""
        address = self.settings.api.address or self.node.address
        lock = _lock(self.runtime)
        self.relocation.bind()
        self.api.bind(address, self.settings.api.port)
        await self.driver.open()
        await self._sweep()  # before anybody can order a domain, whose taps it would take for leftovers
        if self.target is None:
            await end_target(self.runtime, self.state)
        self.settler.recall()
        await self.settler.recall_illegible()
        self.volume_moves.recall()
        await self.api.open(self.runtime / "api.sock", self.server_tls)
        restarting.done(self.runtime)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in self._work():
                    tasks.create_task(lasting(name, work), name=name)
                systemd.notify("READY=1", f"STATUS=node {self.node.name} of {self.identity.cluster.name}")
                log.info("veeryd %s serves node %s", veery.__version__, self.node.name)
        finally:
            if self.anew:
                with contextlib.suppress(OSError):
                    restarting.announce(self.runtime)
            else:  # systemd would take it for the end of the unit
                systemd.notify("STOPPING=1")
            await self._farewell()
            await self.api.close()
            await self.driver.close()
            await self.peers.close()
            await self.near.close()
            await self.store.close()
            os.close(lock)

    def _work(self) -> list[tuple[str, Work]]:
        work: list[tuple[str, Work]] = [
            ("trust in the store", partial(self.trust.run, self.store.look, self._mark)),
            ("membership", self.membership.run),
            ("certificates", self.certificates.run),
            ("credentials", self.credentials.run),
            ("watchdog", self.keeper.run),
            ("heartbeat", self._be_present),
            ("relocation", self.relocation.run),
            ("settler", self.settler.run),
            ("moves", self.moves.run),
            ("volume moves", self.volume_moves.run),
            ("caretaker", Caretaker(self.ground, self.domains, self.trust).run),
            ("processors", self.processors.run),
            ("neighbours", self.neighbours.run),
            ("admission", self.admission.run),
            ("alarms", self.alarms.run),
            ("systemd", _feed),
        ]
        if self.guard is not None:
            work.append(("guard", self.guard.run))
        if self.writer is not None:
            work.append(("heartbeats", self.writer.run))
        if self.node.has(Role.HYPERVISOR):
            work.append(("mirror", self.mirror.run))
            means = MeansWriter(self.node.name, self.store, self._means, self.clock, started=self.heartbeat.started)
            work.append(("means", means.run))
        if self.brain is not None:
            work.append(("brain", self.brain.run))
            if self.node.has(Role.HYPERVISOR):
                leaning = Leaning(
                    self.node,
                    self.store,
                    client_url(self.settings, self.node),
                    brain=self.brain,
                    neighbours=self.neighbours,
                    clock=self.clock,
                )
                work.append(("leaning", leaning.run))
        if self.watcher is not None:
            work.append(("signs", self.watcher.run))
        work += [
            ("etcd", self.switch.run),
            ("given up stores", self.recoverer.look_back),
            ("change of roles", self._follow_roles),
            ("change of address", self.address_change.settle),
        ]
        work += [(each.name, each.run) for each in self.services if each is not self.switch.service]
        if self.identity.etcd is not None:
            work.append(("copies of the store", self.store_upkeep.run))
            work.append(("members compared", StoreCompare(self.node.name, self.store, self.clock).run))
        if self.target is not None:
            work.append(("volumes", self.volumes.run))
        if self.sessions is not None:
            work.append(("iSCSI sessions", self.sessions.run))
        return work

    def _services(self) -> list[Service]:
        """The programs besides domains that this node keeps running."""
        services = []
        if self.identity.etcd is not None:
            services.append(self.switch.service)
        if self.target is not None:
            env = self.target.env
            services.append(
                Service("tgtd", self.target.command, run=self.runtime, env=env, started=self._target_started)
            )
        return services

    async def _follow_roles(self) -> None:
        """Start anew once our roles or our address have changed: what a daemon is made of depends on it. Not while the
        store does not answer or is not trusted, for the watchdog could not be let go then; nor in the midst of an
        order."""
        while True:
            await self.clock.sleep(ROLES_S)
            now = self.membership.identity
            changed = _shape(now) != _shape(self.identity)
            well = self.trust.standing is StoreStanding.FITS and self.heartbeat.remaining() > 0
            if changed and well and not self._busy():
                roles = ",".join(now.node.roles)
                log.warning("veeryd starts anew: this node is %s at %s now", roles, now.node.address)
                self.anew = True
                self.stop()

    def _busy(self) -> bool:
        """Whether a new start would cut short an order that is at work here. This reads the journal."""
        orders = self.votes.busy or self.recoverer.busy or self.address_change.busy or self.storage_role.busy
        return orders or bool(self.domains.busy()) or not self.moves.idle()

    async def _mark(self, why: str) -> None:
        await self.store.mark(self.trust, why, self.clock.epoch())

    async def _be_present(self) -> None:
        """Once what the store says of our watchdog is true."""
        await self.keeper.declared()
        await self.heartbeat.run()

    async def _farewell(self) -> None:
        """We stop in good order, our domains run on: others are not to think them lost, nor to wait for our lead.
        Where the whole machine goes down our domains are ended, and start elsewhere."""
        with contextlib.suppress(VeeryError, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                if self.node.has(Role.HYPERVISOR):
                    await orders.away(self.store, self.node.name, self.settings.ha.away, now=self.clock.epoch())
                if self.brain is not None:
                    await self.brain.leadership.resign()
        if self.node.has(Role.HYPERVISOR) and await systemd.going_down():
            systemd.notify(f"EXTEND_TIMEOUT_USEC={GOING_DOWN_S}000000")
            with contextlib.suppress(VeeryError, TimeoutError):
                async with asyncio.timeout(GOING_DOWN_S):
                    await goingdown.end_domains(self.domains, self.heartbeat, self.clock)
        await self.senses.close()

    async def _target_started(self) -> None:
        assert self.target is not None
        authority = self.identity.cluster.authority.removeprefix("iqn.")
        await self.target.ready(besides=heartbeat_iqn(authority, self.node.name))
        await self.volumes.repair()

    async def _sweep(self) -> None:
        try:
            await self.attacher.sweep()
        except VeeryError as error:
            log.warning("leftover taps not removed: %s", error.message)


def _contexts(folder: Path) -> Contexts:
    """TLS for both directions, of the certificates in `folder`. Raises Failed where they cannot be used."""
    try:
        return Contexts(folder)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Failed(
            f"the certificates in {folder} cannot be used: {error}",
            hint="bring that folder back from a copy; without one: veery node forget --help, and join anew",
        ) from error


def _shape(identity: Identity) -> tuple[object, ...]:
    """What of an identity a daemon is made of."""
    return identity.node.roles, identity.node.address, identity.etcd is None


def _rules(settings: Settings) -> Rules:
    """The brain's figures, as far as settings have them."""
    ha, ttl = settings.ha, settings.presence_ttl
    return Rules(
        cycle=ha.cycle,
        leader_ttl=ha.leader_ttl,
        node_ttl=ttl,
        silence=ha.silence,
        sign=ha.sign,
        grace=ttl + 2.0,  # a new leader of etcd lets every lease begin anew
        blind=min(Rules().blind, ttl),
        out=ha.out,
        into=ha.into,
    )


def _lock(folder: Path) -> int:
    """Make the run folder ours while the descriptor is open. Raises Refused when it is another veeryd's, or cannot be
    made."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}", hint="set run in veery.toml to a folder for root") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Refused(
            f"another veeryd is at work in {folder}", hint="stop that one first: systemctl stop veeryd"
        ) from error
    return handle


async def lasting(name: str, work: Work, *, pause: float = PAUSE) -> None:
    """A part that ends by an error takes the daemon down with it: systemd starts us anew, domains run on. One of
    PERIODIC that met a shortage of descriptors or memory begins again after `pause` seconds."""
    while True:
        try:
            await work()
            return
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if name not in PERIODIC or not is_shortage(error):
                log.exception("%s ended", name)
                raise
            log.error("%s met a shortage, and begins again: %s", name, error)
        await asyncio.sleep(pause)


async def _feed() -> None:
    """Tell systemd that the loop turns."""
    interval = systemd.watchdog_interval()
    while interval > 0:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)


async def _serve(settings: Settings, tail: logs.Tail) -> bool:
    """Serve until told to stop; whether a daemon is to follow at once, with what the state folder says now."""
    loop = asyncio.get_running_loop()
    daemon = Daemon(settings, load_identity(Path(settings.state)), tail)
    running = asyncio.create_task(daemon.run())
    daemon.stop = running.cancel
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return daemon.anew


def main(argv: list[str] | None = None) -> int:
    """The entry point of `veeryd`."""
    parser = argparse.ArgumentParser(
        prog="veeryd", description="The daemon of one veery node. Domains run on when it stops, crashes or is upgraded."
    )
    path = os.environ.get("VEERY_SETTINGS", str(DEFAULT_PATH))
    parser.add_argument("--settings", metavar="FILE", default=path, help=f"settings of this node ({path})")
    parser.add_argument("--version", action="version", version=f"veeryd {veery.__version__}")
    args = parser.parse_args(argv)
    heap.hold_small()
    try:
        settings = load_settings(Path(args.settings))
        tail = logs.setup(settings.log)
        anew = asyncio.run(_serve(settings, tail))
    except VeeryError as error:
        print(f"veeryd: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return 1
    except BaseExceptionGroup:
        return 1  # logged where it ended
    if anew:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
