"""The parts that serve volumes from this node and move them to others."""

from __future__ import annotations

from pathlib import Path

from veery.daemon.base import Base
from veery.daemon.domains import DomainParts
from veery.host.process import Service
from veery.model.node import Role
from veery.model.volume import Backing
from veery.node.images import Images
from veery.node.sessions import SessionWatch
from veery.node.storage_heartbeats import HeartbeatWatcher
from veery.node.volume_moves.moves import VolumeMoves
from veery.node.volumes import VolumeRecords, VolumeService
from veery.storage.base import BytesStore
from veery.storage.file import FileStore
from veery.storage.heartbeat import HeartbeatFile, heartbeat_iqn
from veery.storage.lvm import LvmStore
from veery.storage.served import Served
from veery.storage.tgt import TargetServer
from veery.storage.volumes import Volumes


class VolumeParts:
    """The volume parts. `target`, `service`, `here`, `sessions` and `watcher` are None on a node that serves no
    volumes."""

    def __init__(self, base: Base, domains: DomainParts) -> None:
        """Build the parts. Nothing is served before tgtd is started."""
        self._base = base
        self._authority = base.identity.cluster.authority.removeprefix("iqn.")
        self.pool = Path(base.settings.storage.pool or base.state / "volumes")
        self.target: TargetServer | None = None
        self.here: Volumes | None = None
        self.service: Service | None = None
        self.sessions: SessionWatch | None = None
        self.watcher: HeartbeatWatcher | None = None
        served = Served(base.state / "served.json")
        records = VolumeRecords(base.store)
        if base.node.has(Role.STORAGE):
            records = VolumeRecords(base.store, base.credentials.password, served.initiators)
            self._serve(base, served, records)
        self.volumes = VolumeService(base.node.name, base.store, base.peers, records, self.here)
        self.images = Images(self.volumes, base.settings.image)
        self.moves = VolumeMoves(
            self.volumes,
            domains.domains,
            domains.driver,
            domains.attacher,
            store=base.store,
            peers=base.peers,
            clock=base.clock,
            hold=domains.context.hold,
            folder=base.state / "volume-moves",
        )

    def _serve(self, base: Base, served: Served, records: VolumeRecords) -> None:
        storage, beats = base.settings.storage, HeartbeatFile(base.state / "heartbeats")
        address = storage.address or base.node.address
        target = self.target = TargetServer(address=address, port=storage.portal_port, run=base.runtime)
        stores: dict[Backing, BytesStore] = {Backing.FILE: FileStore(self.pool, base.state)}
        if storage.group:
            stores[Backing.LVM] = LvmStore(storage.group)
        self.here = Volumes(
            node=base.node.name,
            server=target,
            stores=stores,
            records=records,
            authority=self._authority,
            clock=base.clock,
            served=served,
            beats=beats,
        )
        self.sessions = SessionWatch(base.node.name, base.store, self.here, base.clock)
        self.watcher = HeartbeatWatcher(
            base.node,
            beats,
            base.node_cache,
            base.clock,
            portal=target.portal,
            iqn=heartbeat_iqn(self._authority, base.node.name),
        )
        self.service = Service("tgtd", target.command, run=base.runtime, env=target.env, started=self._started)

    async def _started(self) -> None:
        assert self.target is not None
        await self.target.ready(besides=heartbeat_iqn(self._authority, self._base.node.name))
        await self.volumes.repair()
