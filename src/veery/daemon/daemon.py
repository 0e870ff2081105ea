"""The life of a daemon: it takes its ports, runs its tasks, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import veery
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity
from veery.cluster.trust import Standing as StoreStanding
from veery.config.settings import Settings
from veery.daemon import doctor, routes
from veery.daemon.base import Base
from veery.daemon.brain import BrainParts
from veery.daemon.domains import DomainParts
from veery.daemon.safety import SafetyParts
from veery.daemon.store import StoreParts
from veery.daemon.tasks import Task, feed_systemd, lasting, periodic
from veery.daemon.volumes import VolumeParts
from veery.errors import Refused, VeeryError
from veery.ha import orders
from veery.host import log as logs
from veery.host import restarting, systemd
from veery.hypervisor.base import Driver
from veery.model.node import Role
from veery.node import goingdown
from veery.node.storagerole import end_target

log = logging.getLogger(__name__)

FAREWELL_S = 5.0  # how long to announce the stop; a node that cannot announce it counts as lost when its lease expires
ROLES_INTERVAL_S = 1.0  # between two checks whether this node's roles have changed
GOING_DOWN_S = 45  # time for all domains to end when the machine is shut down


class Daemon:
    """The parts of this node and their tasks."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        tail: logs.Tail,
        *,
        store: EtcdStore | None = None,
        driver: Driver | None = None,
    ) -> None:
        """Build everything. Nothing runs and no port is taken before `run`. `store` and `driver` replace those that the
        settings and the identity name."""
        self.restarts = False  # True if another daemon should follow this one at once
        self.stop: Callable[[], object] = lambda: None
        base = self.base = Base(settings, identity, store)
        domains = self.domains = DomainParts(base, driver)
        volumes = self.volumes = VolumeParts(base, domains)
        self.store = StoreParts(base, domains, volumes)
        self.safety = SafetyParts(base, domains, volumes)
        self.brain = BrainParts(base, domains, self.safety)
        self.api = routes.build(
            base,
            domains,
            volumes,
            store=self.store,
            safety=self.safety,
            brain=self.brain,
            doctor=doctor.build(base, domains, volumes, store=self.store, safety=self.safety),
            tail=tail,
        )

    async def run(self) -> None:
        """Take the ports and run everything until cancelled.

        Raises Refused if a port is in use, or if another veeryd uses the same run folder. Nothing is touched before
        both are checked."""
        base, domains = self.base, self.domains
        address = base.settings.api.address or base.node.address
        lock = _lock(base.runtime)
        domains.relocation.bind()
        self.api.bind(address, base.settings.api.port)
        await domains.driver.open()
        await self._sweep()  # before any domain can be ordered: the sweep would remove its taps as leftovers
        if self.volumes.target is None:
            await end_target(base.runtime, base.state)
        domains.settler.recall()
        await domains.settler.recall_illegible()
        self.volumes.moves.recall()
        await self.api.open(base.runtime / "api.sock", base.server_tls)
        restarting.done(base.runtime)
        try:
            async with asyncio.TaskGroup() as group:
                for task in self._tasks():
                    group.create_task(lasting(task), name=task.name)
                systemd.notify("READY=1", f"STATUS=node {base.node.name} of {base.identity.cluster.name}")
                log.info("veeryd %s serves node %s", veery.__version__, base.node.name)
        finally:
            await self._end()
            os.close(lock)

    async def _end(self) -> None:
        base = self.base
        if self.restarts:
            with contextlib.suppress(OSError):
                restarting.announce(base.runtime)
        else:  # systemd would stop the whole unit
            systemd.notify("STOPPING=1")
        await self._farewell()
        await self.api.close()
        await self.domains.driver.close()
        await base.peers.close()
        await base.near.close()
        await base.store.close()

    # ---- tasks
    def _tasks(self) -> list[Task]:
        base, domains = self.base, self.domains
        return [
            periodic("trust in the store", partial(base.trust.run, base.store.look, self._mark)),
            periodic("membership", base.membership.run),
            periodic("certificates", self.store.certificates.run),
            periodic("credentials", base.credentials.run),
            Task("watchdog", self.safety.keeper.run),
            periodic("heartbeat", self._be_present),
            periodic("relocation", domains.relocation.run),
            Task("settler", domains.settler.run),
            Task("moves", domains.moves.run),
            Task("volume moves", self.volumes.moves.run),
            Task("caretaker", domains.caretaker.run),
            periodic("processors", domains.cpu_baseline.run),
            periodic("node cache", base.node_cache.run),
            periodic("admission", base.admission.run),
            periodic("alarms", base.alarms.run),
            periodic("health", base.health.run),
            periodic("systemd", feed_systemd),
            *self._hypervisor_tasks(),
            *self._brain_tasks(),
            *self._store_tasks(),
            *self._volume_tasks(),
        ]

    def _hypervisor_tasks(self) -> list[Task]:
        found = []
        if self.safety.guard is not None:
            found.append(periodic("guard", self.safety.guard.run))
        if self.safety.writer is not None:
            found.append(periodic("heartbeats", self.safety.writer.run))
        if self.safety.fence_methods is not None:
            found.append(periodic("fence methods", self.safety.fence_methods.run))
        if self.base.node.has(Role.HYPERVISOR):
            found.append(periodic("watch cache", self.base.watch_cache.run))
        return found

    def _brain_tasks(self) -> list[Task]:
        found = []
        if self.brain.brain is not None:
            found.append(periodic("brain", self.brain.brain.run))
        if self.brain.leader_preference is not None:
            found.append(periodic("leader preference", self.brain.leader_preference.run))
        return found

    def _store_tasks(self) -> list[Task]:
        store = self.store
        found = [
            periodic("etcd", store.switch.run),
            periodic("abandoned stores", store.recoverer.look_back),
            periodic("change of roles", self._follow_roles),
            periodic("change of address", store.address_change.settle),
        ]
        if self.base.identity.etcd is not None:
            found.append(periodic("copies of the store", store.upkeep.run))
            found.append(periodic("members compared", store.compare.run))
        return found

    def _volume_tasks(self) -> list[Task]:
        volumes = self.volumes
        found = []
        if volumes.service is not None:
            found += [periodic("tgtd", volumes.service.run), periodic("volumes", volumes.volumes.run)]
        if volumes.watcher is not None:
            found.append(periodic("heartbeat watcher", volumes.watcher.run))
        if volumes.sessions is not None:
            found.append(periodic("iSCSI sessions", volumes.sessions.run))
        return found

    async def _mark(self, why: str) -> None:
        await self.base.store.mark(self.base.trust, why, self.base.clock.epoch())

    async def _be_present(self) -> None:
        """Start the heartbeat once the store has the current record of this node's watchdog."""
        await self.safety.keeper.declared()
        await self.base.heartbeat.run()

    # ---- another daemon follows
    async def _follow_roles(self) -> None:
        """End this daemon, and let another follow, when the roles or the address of this node change: they decide which
        parts a daemon has.

        It does not end while the store does not answer or is not trusted, because it could not release the watchdog
        then. Nor does it end during an order."""
        base = self.base
        while True:
            await base.clock.sleep(ROLES_INTERVAL_S)
            now = base.membership.identity
            changed = _shape(now) != _shape(base.identity)
            well = base.trust.standing is StoreStanding.FITS and base.heartbeat.remaining() > 0
            if changed and well and not self._busy():
                roles = ",".join(now.node.roles)
                log.warning("veeryd restarts: this node has roles %s and address %s now", roles, now.node.address)
                self.restarts = True
                self.stop()

    def _busy(self) -> bool:
        """Return True if a restart would interrupt an order on this node. This reads the journal."""
        store = self.store
        orders = store.votes.busy or store.recoverer.busy or store.address_change.busy or store.storage_role.busy
        return orders or bool(self.domains.domains.locks.busy()) or not self.domains.moves.idle()

    # ---- the end
    async def _farewell(self) -> None:
        """Announce that this node stops in good order and that its domains run on. Then the others do not count them as
        lost, and do not wait for this node's leadership to expire. If the whole machine goes down, end its domains, so
        that they start elsewhere."""
        base = self.base
        hypervisor = base.node.has(Role.HYPERVISOR)
        with contextlib.suppress(VeeryError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                if hypervisor:
                    await orders.away(base.store, base.node.name, base.settings.ha.away, now=base.clock.epoch())
                if self.brain.brain is not None:
                    await self.brain.brain.leadership.resign()
        if hypervisor and await systemd.going_down():
            systemd.notify(f"EXTEND_TIMEOUT_USEC={GOING_DOWN_S}000000")
            with contextlib.suppress(VeeryError, TimeoutError):
                async with asyncio.timeout(GOING_DOWN_S):
                    await goingdown.end_domains(self.domains.domains, base.heartbeat, base.clock)
        await self.brain.probes.close()

    async def _sweep(self) -> None:
        try:
            await self.domains.attacher.sweep()
        except VeeryError as error:
            log.warning("leftover taps not removed: %s", error.message)


def _shape(identity: Identity) -> tuple[object, ...]:
    """Return the parts of an identity that decide how a daemon is built."""
    return identity.node.roles, identity.node.address, identity.etcd is None


def _lock(folder: Path) -> int:
    """Lock the run folder for this process while the descriptor is open. Raises Refused if another veeryd has it, or if
    it cannot be created."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(
            f"{folder}: {error.strerror}", hint="set run in veery.toml to a folder that root can write"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Refused(f"another veeryd uses {folder}", hint="stop it first: systemctl stop veeryd") from error
    return handle
