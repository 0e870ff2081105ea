"""The parts that keep this node's member of the store, its vote, its certificates and its address."""

from __future__ import annotations

from veery.cluster import server as etcd_server
from veery.cluster.trust import Standing as StoreStanding
from veery.daemon.base import Base
from veery.daemon.domains import DomainParts
from veery.daemon.volumes import VolumeParts
from veery.host.process import Service
from veery.node.addresschange import AddressChange, Parts
from veery.node.adoption import Adopter
from veery.node.certificates import Certificates, Etcd
from veery.node.etcdcut import EtcdCut
from veery.node.etcdswitch import EtcdSwitch
from veery.node.storagerole import StorageRole
from veery.node.storecompare import StoreCompare
from veery.node.storerecovery import Recoverer
from veery.node.storeupkeep import StoreUpkeep
from veery.node.votes import Votes


class StoreParts:
    """The store parts. Each node also builds those of a voter, because it may receive a vote while the daemon runs."""

    def __init__(self, base: Base, domains: DomainParts, volumes: VolumeParts) -> None:
        """Build the parts. etcd is not started before `switch` runs."""
        settings, clock = base.settings, base.clock
        etcd = etcd_server.later(settings, lambda: base.membership.identity)
        self.switch = EtcdSwitch(etcd, on=base.identity.etcd is not None)
        ports = (settings.etcd.client_port, settings.etcd.peer_port)
        base.membership.cut = EtcdCut(base.store, ports, self.switch.pid)
        self.services = _services(base, volumes, self.switch)
        self.upkeep = StoreUpkeep(
            base.node.name,
            base.store,
            self.services,
            state=base.state,
            clock=clock,
            quota=settings.etcd.quota << 20,
            trusted=lambda: base.trust.standing is StoreStanding.FITS,
        )
        self.compare = StoreCompare(base.node.name, base.store, clock)
        self.votes = Votes(settings, base.store, base.membership, self.switch, clock)
        self.recoverer = Recoverer(
            settings,
            base.store,
            base.trust,
            base.membership,
            switch=self.switch,
            votes=self.votes,
            stillness=base.stillness,
            node_cache=base.node_cache,
            peers=base.near,
            tls=base.client_tls,
            clock=clock,
        )
        self.adopter = Adopter(
            base.node,
            base.store.raw,
            base.trust,
            domains.domains,
            node_cache=base.node_cache,
            peers=base.near,
            clock=clock,
        )
        self._build_identity(base, domains, volumes)

    def _build_identity(self, base: Base, domains: DomainParts, volumes: VolumeParts) -> None:
        """Build the parts that change this node's certificate, address and roles."""
        etcd = None
        if base.identity.etcd is not None:
            etcd = Etcd(lambda force: self.upkeep.restart(force=force), base.runtime / "etcd.pid")
        self.certificates = Certificates(
            base.node,
            base.store,
            base.vault,
            contexts=base.contexts,
            admission=base.admission,
            peers=base.peers,
            clock=base.clock,
            folder=base.certificates,
            idle=domains.moves.idle,
            settled=base.membership.settle_ca,
            etcd=etcd,
        )
        parts = Parts(
            base.membership, self.certificates, self.upkeep, self.switch, volumes=volumes.volumes, peers=base.peers
        )
        self.address_change = AddressChange(base.settings, base.store, parts, base.clock, idle=domains.moves.idle)
        self.storage_role = StorageRole(base.settings, base.store, base.membership, volumes.here)


def _services(base: Base, volumes: VolumeParts, switch: EtcdSwitch) -> list[Service]:
    """Return the programs, apart from domains, that this node keeps running."""
    found = [switch.service] if base.identity.etcd is not None else []
    return found if volumes.service is None else [*found, volumes.service]
