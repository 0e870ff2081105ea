"""The local disks of a domain that moves: which must go along, and what happens to the files on both nodes.

The domain's record says which node has the bytes: COMMIT writes `home` in the same transaction that changes the owner.
So a daemon that comes back, however late, knows which files are the disks and which are stale, and removes only files
that the journal names as made by this move."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from veery.cluster.keys import DOMAINS
from veery.cluster.store import Store
from veery.errors import Failed, Refused
from veery.host.mounts import shared
from veery.hypervisor.base import DiskMover, Driver
from veery.migrate.journal import Line, Side
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec
from veery.model.move import MoveSettings
from veery.model.plan import Blocker, Obstacle
from veery.model.volume import CarriedDisk
from veery.storage import local

log = logging.getLogger(__name__)


async def carried(
    driver: Driver, uuid: str, settings: MoveSettings, *, node: str, name: str, target: str
) -> tuple[CarriedDisk, ...]:
    """Return the disks that must go along with domain `name`: files and devices that only this node has, and that the
    domain writes.

    Raises Refused where there are some and settings.with_disks does not allow it, or the driver cannot."""
    if not isinstance(driver, DiskMover):
        if settings.with_disks:
            raise Refused(f"the driver {driver.name} cannot take disks along", hint="import them as volumes")
        return ()
    found = tuple(disk for disk in await driver.local_disks(uuid) if disk.block or not shared(disk.path))
    if settings.with_disks:
        return found
    if found:
        raise Refused(
            f"only {node} has {', '.join(f'{disk.vdev} ({disk.path})' for disk in found)} of {name}",
            hint=f"take it along: veery migrate --with-disks {name} {target}; or import it as a volume",
        )
    return ()


def staying(spec: DomainSpec, disks: Sequence[CarriedDisk]) -> DomainSpec:
    """Return `spec` without the disks that go along."""
    names = {disk.vdev for disk in disks}
    return replace(spec, disks=tuple(disk for disk in spec.disks if disk.vdev not in names))


def blockers(driver: Driver, disks: Sequence[CarriedDisk]) -> tuple[Blocker, ...]:
    """Return every reason why these disks, each with its file chosen, cannot come to this node; changes nothing."""
    if disks and not isinstance(driver, DiskMover):
        reason = f"its driver {driver.name} cannot take disks along"
        return (Blocker(kind=Obstacle.STORAGE, reason=reason, hint="import them as volumes"),)
    return local.blockers(disks)


def arrived(spec: DomainSpec, disks: Sequence[CarriedDisk]) -> DomainSpec:
    """Return `spec` with the disks that go along at their paths on the target."""
    paths = {disk.vdev: disk.target for disk in disks}
    return replace(
        spec,
        disks=tuple(replace(disk, target=paths[disk.vdev]) if disk.vdev in paths else disk for disk in spec.disks),
    )


def matched(going: Sequence[CarriedDisk], made: Sequence[CarriedDisk]) -> tuple[CarriedDisk, ...]:
    """Return the source's disks, each with the file that the target has made for it. Raises Failed where it has not."""
    targets = {disk.vdev: disk.target for disk in made}
    if set(targets) != {disk.vdev for disk in going}:
        raise Failed("the target cannot take all disks of the domain", hint="compare `veery version` on both nodes")
    return tuple(replace(disk, target=targets[disk.vdev]) for disk in going)


async def record(store: Store, line: Line) -> DomainRecord | None:
    """Return the domain's record for COMMIT to write; None when no disk goes along. Raises StoreUnavailable."""
    if not line.disks:
        return None
    now = await DOMAINS.get(store, line.domain)
    if now is None:
        raise Failed(f"{line.domain} has no record", hint="veery list shows what runs")
    return replace(now, spec=arrived(now.spec, line.disks), home=line.target)


async def settle(store: Store, line: Line, node: str) -> tuple[str, ...]:
    """Clear up after a move that has ended, when the domain does not belong to this node (any more): the target removes
    its files; the source puts its files aside, or removes them as requested. Returns where the source's files are now.
    Idempotent. Raises Failed, StoreUnavailable."""
    if not line.disks:
        return ()
    now = await DOMAINS.get(store, line.domain)
    home = now.home if now else ""
    if line.side is Side.TARGET:
        for disk in line.disks if home != node else ():
            log.info("move=%s domain=%s removing %s", line.move, line.domain, disk.target)
            local.unmake(disk)
        return ()
    if home in ("", node):
        return ()  # no hand-over happened: these files are the disks
    for disk in line.disks:
        local.put_aside(disk, line.target, remove=line.remove_source)
    return kept(line)


def kept(line: Line) -> tuple[str, ...]:
    """Return where the source's copies of the disks are, once the move is over."""
    if line.remove_source:
        return tuple(disk.path for disk in line.disks if disk.block)
    return tuple(disk.path if disk.block else str(local.aside(disk, line.target)) for disk in line.disks)
