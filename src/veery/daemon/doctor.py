"""The checks of `veery doctor` on this node."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from veery.daemon.base import Base
from veery.daemon.domains import DomainParts
from veery.daemon.safety import SafetyParts
from veery.daemon.store import StoreParts
from veery.daemon.volumes import VolumeParts
from veery.host.owner import has_account
from veery.model.node import Role
from veery.node.doctor import Doctor
from veery.node.exposure import Exposure, judge_user


def build(base: Base, domains: DomainParts, volumes: VolumeParts, *, store: StoreParts, safety: SafetyParts) -> Doctor:
    """Build the doctor of this node."""
    folders = {"state": base.state, "run": base.runtime}
    if base.settings.storage.pool:
        folders["volumes"] = Path(base.settings.storage.pool)
    hypervisor = base.node.has(Role.HYPERVISOR)
    return Doctor(
        base.node,
        base.store,
        peers=base.peers,
        fencing=safety.fencing,
        keeper=safety.keeper,
        guard=safety.guard,
        writer=safety.writer,
        trust=base.trust,
        clock=base.clock,
        folders=folders,
        tls=base.certificates,
        unread=domains.driver.unread,
        driver=domains.driver if hypervisor else None,
        at_work=domains.domains.locks.at_work,
        unsettled=domains.settler.troubles,
        exposure=_exposure(base, domains) if hypervisor else None,
        quota=base.settings.etcd.quota << 20,
        services=lambda: store.services,
        pool=volumes.pool if volumes.target is not None else None,
        copies=store.upkeep.copies if base.identity.etcd is not None else None,
        alarms=base.alarms.ways,
        sessions=volumes.sessions.finding if volumes.sessions is not None else None,
        sensors=base.health.finding,
    )


def _exposure(base: Base, domains: DomainParts) -> Exposure:
    """Return the checks of this node's ports, and of the rules that keep guests from them."""
    node, settings = base.node, base.settings
    ports = {
        f"API (port {settings.api.port})": settings.api.address or node.address,
        f"relocation (port {settings.relocation.port})": settings.relocation.address or node.address,
    }
    if base.identity.etcd is not None:
        ports[f"etcd (ports {settings.etcd.client_port}, {settings.etcd.peer_port})"] = node.address
    if node.has(Role.STORAGE):
        ports[f"iSCSI (port {settings.storage.portal_port})"] = settings.storage.address or node.address
    if node.driver == "xen":
        return Exposure(node.name, ports, domains.attacher.guest_bridges, None)
    user = partial(judge_user, node.name, settings.qemu.user, account=has_account())
    return Exposure(node.name, ports, domains.attacher.guest_bridges, domains.filter, user)
