"""The API of this node: the rooms that serve the table of routes, and the parts that answer."""

from __future__ import annotations

from aiohttp import web

from veery.api.about import AboutRoutes
from veery.api.addresses import AddressRoutes
from veery.api.adoption import AdoptionRoutes
from veery.api.alarms import AlarmRoutes
from veery.api.certificates import CertificateRoutes
from veery.api.cluster import ClusterRoutes
from veery.api.credentials import CredentialRoutes
from veery.api.domains import DomainRoutes
from veery.api.fencing import FencingRoutes
from veery.api.ha import HaRoutes
from veery.api.health import HealthRoutes
from veery.api.recovery import RecoveryRoutes
from veery.api.server import ApiServer
from veery.api.storage import StorageRoutes
from veery.api.upkeep import UpkeepRoutes
from veery.daemon.base import Base
from veery.daemon.brain import BrainParts
from veery.daemon.domains import DomainParts
from veery.daemon.safety import SafetyParts
from veery.daemon.store import StoreParts
from veery.daemon.volumes import VolumeParts
from veery.host.log import Tail
from veery.node.doctor import Doctor


def build(
    base: Base,
    domains: DomainParts,
    volumes: VolumeParts,
    *,
    store: StoreParts,
    safety: SafetyParts,
    brain: BrainParts,
    doctor: Doctor,
    tail: Tail,
) -> ApiServer:
    """Build the API server. It takes no port before `bind`."""
    served = tables(base, domains, volumes, store=store, safety=safety, brain=brain, doctor=doctor, tail=tail)
    return ApiServer(
        base.node.name,
        base.peers,
        served,
        admission=base.admission,
        member=base.node_cache.reached_at,
        group=base.settings.api.group,
    )


def tables(
    base: Base,
    domains: DomainParts,
    volumes: VolumeParts,
    *,
    store: StoreParts,
    safety: SafetyParts,
    brain: BrainParts,
    doctor: Doctor,
    tail: Tail,
) -> list[list[web.RouteDef]]:
    """Return what each room serves: together exactly the routes of veery.api.table."""
    peers, near, node_cache = base.peers, base.near, base.node_cache
    return [
        DomainRoutes(
            domains.domains,
            domains.saving,
            domains.devices,
            domains.moves,
            domains.machine,
            peers=peers,
            store=base.store,
        ).table(),
        StorageRoutes(
            volumes.volumes, volumes.images, domains.devices, domains.machine, volumes.moves, peers=peers
        ).table(),
        ClusterRoutes(base.membership, domains.machine, domains.cpu_baseline, tail, doctor).table(),
        CertificateRoutes(store.certificates).table(),
        CredentialRoutes(base.credentials).table(),
        AdoptionRoutes(store.adopter).table(),
        UpkeepRoutes(store.upkeep).table(),
        AlarmRoutes(base.alarms).table(),
        HealthRoutes(base.node.name, base.health, base.store, peers=peers).table(),
        AddressRoutes(base.node.name, store.address_change, store.storage_role, peers=peers).table(),
        RecoveryRoutes(base.node.name, store.recoverer, store.votes, base.stillness, peers=near).table(),
        FencingRoutes(safety.fencing, safety.witness, safety.guard, volumes.watcher).table(),
        AboutRoutes().table(),
        HaRoutes(brain.ha_service, brain.recovery, peers=near, node_cache=node_cache).table(),
    ]
