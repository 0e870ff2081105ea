"""The parts that all others use: the store, the other nodes, certificates, membership, health, alarms."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from veery.cluster import metrics
from veery.cluster.admission import Admission
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity, client_url
from veery.cluster.keys import node_at
from veery.cluster.members import open_store
from veery.cluster.presence import Heartbeat
from veery.cluster.store import StoreRestored
from veery.cluster.trust import SeenFile, Trust
from veery.cluster.vault import Vault
from veery.cluster.watch_cache import WatchCache
from veery.config.settings import Settings
from veery.errors import Failed
from veery.ha.observer import UNSEEN
from veery.health.live import Feeds
from veery.host import crl, tls
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.model.ha import Level
from veery.model.node import Node
from veery.node import alarmways
from veery.node.alarms import Alarms
from veery.node.credentials import Credentials
from veery.node.health import Health
from veery.node.membership import Membership
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.stillness import Stillness


class Base:
    """The basic parts. `peers` looks nodes up in the store; `near` does not need the store."""

    def __init__(self, settings: Settings, identity: Identity, store: EtcdStore | None) -> None:
        """Build the parts. `store` replaces the one that the settings and the identity name. Raises Failed if the
        certificates cannot be used."""
        self.settings, self.identity, self.node = settings, identity, identity.node
        self.state, self.runtime = Path(settings.state), Path(settings.run)
        self.clock = RealClock()
        self.certificates = self.state / "tls"
        self.contexts = _contexts(self.certificates)
        self.server_tls, self.client_tls = self.contexts.server, self.contexts.client
        self.trust = Trust(self.node.name, SeenFile(self.state / "store.json"), self.clock)
        self.store = store or open_store(settings, identity, self.trust, context=self.client_tls)
        self.node_cache = NodeCache(self.store, self.state / "nodes.json", self.clock)
        self.peers = Peers(self.client_tls, self._find)
        self.near = Peers(self.client_tls, self.node_cache.find)
        self.watch_cache = WatchCache(self.store, UNSEEN)
        own = tls.Shown(self.node.name, crl.serial((self.certificates / "server-cert.pem").read_text())[0])
        self.admission = Admission(self.store, own, self.state / "certificates.json")
        self.heartbeat = Heartbeat(self.store, self.node.name, ttl=settings.presence_ttl, clock=self.clock)
        self.stillness = Stillness(self.heartbeat, self.clock)
        self.vault = Vault(self.state)
        self.credentials = Credentials(self.node, self.store, self.state, peers=self.peers, clock=self.clock)
        self.membership = Membership(settings, identity, self.store, self.peers, self.vault)
        self.health = Health(
            self.node.name, self.store, self.clock, self.state, settings.health, feeds=self._feeds(identity)
        )
        self.alarms = Alarms(
            alarmways.ways(settings.alarms, self.node.name),
            least=Level(settings.alarms.level),
            node=self.node.name,
            cluster=identity.cluster.name,
            clock=self.clock,
            lost=self.heartbeat.since_lost,
        )

    def _feeds(self, identity: Identity) -> Feeds:
        """Return the figures that sensors get from parts of this daemon."""
        if identity.etcd is None:
            return {}
        return {"etcd-metrics": partial(metrics.read, client_url(self.settings, self.node), self.client_tls)}

    async def _find(self, where: str) -> Node:
        try:
            return await node_at(self.store, where)
        except StoreRestored:
            return await self.node_cache.find(where)


def _contexts(folder: Path) -> Contexts:
    """Load TLS contexts for both directions from the certificates in `folder`. Raises Failed if they cannot be used."""
    try:
        return Contexts(folder)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Failed(
            f"the certificates in {folder} cannot be used: {error}",
            hint="restore that folder from a copy; without a copy: veery node forget --help, then join again",
        ) from error
