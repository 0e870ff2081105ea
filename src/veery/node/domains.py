"""The domains of this node. Every start and stop goes through the owner key, and the on_* settings decide what follows
the end of a domain."""

from __future__ import annotations

import contextlib
import logging
import secrets
import uuid as uuids
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from veery.cluster import fencing, volumegate
from veery.cluster import owner as owners
from veery.cluster.keys import DOMAINS, NODES, POLICIES, RUNS
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Delete, StoreUnavailable
from veery.config import support
from veery.config.check import check_name
from veery.errors import Failed, NotFound, OutcomeUnknown, Refused, VeeryError, hinting
from veery.ha import orders
from veery.ha.wanted import WantedRecords
from veery.hypervisor.base import Console
from veery.migrate.base import MoveContext
from veery.migrate.check import Scout, stopped
from veery.migrate.moves import Moves
from veery.migrate.receiver import Receiver
from veery.model import newer
from veery.model.cluster import DomainRecord, Owner
from veery.model.domain import (
    DomainReading,
    DomainSpec,
    DomainState,
    VcpuReading,
)
from veery.model.ha import Ticket
from veery.model.move import MoveSettings
from veery.model.node import Node, Role
from veery.model.plan import Blocker, Obstacle, Plan, Question, Reply
from veery.model.volume import Attachments
from veery.node import destroying
from veery.node.attachments import NodeAttacher
from veery.node.conflicts import Conflicts
from veery.node.domainlocks import DomainLocks
from veery.node.stopping import Stopping
from veery.node.targets import find_node

log = logging.getLogger(__name__)

RETRIED_S = 0.5  # after an unpause: time for the domain to meet its disk's error again


class Domains:
    """The orders of users for the domains of this node. A `ref` is a name, a domid or a UUID."""

    def __init__(
        self,
        record: Node,
        context: MoveContext,
        attacher: NodeAttacher,
        heartbeat: Heartbeat,
        *,
        moves: Moves,
        receiver: Receiver,
        scout: Scout,
    ) -> None:
        """`record` is the record of this node. The daemon owns all of these and shares them."""
        self._record = record
        self.node, self.driver, self.attacher = context.node, context.driver, attacher
        self._store, self._clock, self._moves, self._receiver = context.store, context.clock, moves, receiver
        self._scout, self._heartbeat = scout, heartbeat
        self.locks = DomainLocks(moves, receiver)
        self.conflicts = Conflicts(context.node, context.store, context.driver, receiver)
        self.stopping = Stopping(context.driver, context.store, context.clock)
        self.wanted = WantedRecords(context.store, context.node)

    # ---- reading

    async def list(self) -> tuple[DomainReading, ...]:
        """Return every domain of this node, sorted by domid."""
        return await self.driver.list()

    async def find(self, ref: str) -> DomainReading:
        """Return the domain that `ref` names. Raises Refused; the hint names the node if the domain runs elsewhere."""
        for reading in await self.driver.list():
            if ref in (reading.name, str(reading.domid), reading.uuid):
                return reading
        if ref in ("0", "Domain-0"):
            raise Refused(
                "Domain-0 is this machine itself: veery does not manage it as a domain",
                hint="veery list shows the domains",
            )
        hint = "veery list shows the domains of this node"
        with contextlib.suppress(VeeryError):
            owner = await owners.read(self._store, ref)
            if owner is not None and owner.node != self.node:
                there = f"it runs on {owner.node}: veery --node {owner.node} list {ref}"
                hint = await owners.way_out(self._store, owner.node, there)
        raise NotFound(f"no domain {ref} on {self.node}", hint=hint)

    async def spec(self, ref: str) -> DomainSpec:
        """Return the spec of a domain on this node, including what was attached since it started."""
        spec, _ = await self.driver.spec((await self.find(ref)).uuid)
        return spec

    async def owner(self, name: str) -> Owner | None:
        """Return the owner of domain `name`."""
        return await owners.read(self._store, name)

    async def vcpus(self, ref: str) -> tuple[VcpuReading, ...]:
        """Return the domain's virtual processors."""
        return await self.driver.vcpus((await self.find(ref)).uuid)

    async def console(self, ref: str) -> Console:
        """Open the domain's console."""
        return await self.driver.console((await self.find(ref)).uuid)

    # ---- starting and ending

    async def create(self, spec: DomainSpec, *, paused: bool = False, force: bool = False) -> DomainReading:
        """Start a domain. `force`: also if this node's sensors ask that it is given none.

        Raises Refused if its name is taken, another node owns it, or something that it needs is missing. Raises Failed
        with the hypervisor's message. In both cases nothing of the domain is left."""
        if not self._record.has(Role.HYPERVISOR):
            raise Refused(f"{self.node} runs no domains", hint="name a hypervisor with --node: veery node list")
        check_name(spec.name)
        await self._heartbeat.require()
        await orders.require_undrained(self._store, self.node)
        if not force:
            await orders.require_well(self._store, self.node)
        async with self.locks.hold(spec.name):
            await self.conflicts.name(spec.name)
            record = await DOMAINS.get(self._store, spec.name)
            spec = await self.conflicts.identity(await self.attacher.fill(spec), record)
            await self.check_attachable(spec)
            self.conflicts.home(spec, record)
            await owners.refuse_written(self._store, spec, record, self.node)
            await owners.reclaim(self._store, spec.name, to=self.node)  # if its node is proven fenced
            async with self.claimed(spec, record) as owner:
                reading = await self._start(spec, paused=paused)
            log.info("domain=%s id=%d started boot=%s", spec.name, reading.domid, owner.boot)
            await self.wanted.say(spec.name, wanted=True)
            return reading

    async def launch(self, ticket: Ticket) -> DomainReading:
        """Start a domain from its record, by order of the brain, while `ticket` is valid. Raises Refused or Failed:
        nothing of the domain is left, and it has no owner."""
        name = ticket.domain
        await self._heartbeat.require()
        async with self.locks.hold(name):
            await self.conflicts.name(name)
            record = await DOMAINS.get(self._store, name)
            if record is None:
                raise NotFound(f"there is no domain {name}", hint="veery list --cluster shows the running domains")
            await self.check_attachable(record.spec)
            self.conflicts.home(record.spec, record)
            boot = secrets.token_hex(8)
            try:
                owner = await orders.claim(self._store, ticket, boot)
            except OutcomeUnknown:
                self.wanted.cut_short(boot)
                raise
            try:
                await self.conflicts.disks(record.spec)
                await self._end_volume_moves(record.spec)
                await self._disks_move_on(name)
                reading = await self._start(record.spec, paused=False)
            except BaseException as error:
                if isinstance(error, StoreUnavailable):
                    self.wanted.cut_short(boot)
                await self._abandon(owner, record)
                raise
            log.warning("domain=%s id=%d started by the brain boot=%s", name, reading.domid, owner.boot)
            return reading

    async def destroy(self, ref: str) -> None:
        """Kill a domain at once, in any state. It is gone when this returns, and it is no longer wanted.

        A move that can still be undone is cancelled first. A domain of a node that is proven fenced does not run: its
        owner key is taken from that node.

        Raises Refused if another living node owns the domain. Raises OutcomeUnknown if the store does not tell whether
        one does; then this node's copy is gone."""
        try:
            reading = await self.find(ref)
        except Refused:
            if not await owners.end_of_fenced(self._store, ref):
                raise
            return
        doubt = await destroying.make_way(self._store, self.node, self._moves, self._receiver, reading)
        async with self.locks.only(reading.name):
            reading = await self.find(reading.uuid)
            await self.wanted.say(reading.name, wanted=False)
            await self.end(reading)
        if doubt:
            raise OutcomeUnknown(
                f"{reading.name} is destroyed on {self.node}; the store does not answer whether {doubt} owns it",
                hint="when etcd is back (veery node list): veery list --cluster shows whether it runs elsewhere",
            )

    async def shutdown(self, ref: str) -> None:
        """Ask the guest to power off, and ask again while it may be booting. The domain is no longer wanted, until the
        request lapses (SHUTDOWN_LAPSE_S)."""
        async with self.held(ref) as reading:
            alive(reading)
            await self.wanted.say(reading.name, wanted=False, stopping=self.stopping.asked(reading.uuid))
            await self.driver.shutdown(reading.uuid)

    async def reboot(self, ref: str) -> None:
        """Restart the guest."""
        async with self.held(ref) as reading:
            alive(reading)
            await self.driver.reboot(reading.uuid)

    async def pause(self, ref: str) -> None:
        """Stop the domain's processors."""
        async with self.held(ref) as reading:
            alive(reading)
            await self.driver.pause(reading.uuid)

    async def unpause(self, ref: str) -> None:
        """Let the processors run again. Only the owner may do that, and only if the guard would not
        hold the domain."""
        await self._heartbeat.require()
        await fencing.refuse(self._store, self.node)
        async with self.held(ref) as reading:
            await self.ours(reading.name)
            alive(reading)
            await self._disks_move_on(reading.name)
            await self.driver.unpause(reading.uuid)
            if reading.reason:
                await self._goes_on(reading.uuid)

    async def _disks_move_on(self, name: str) -> None:
        """Record that a saved state no longer fits the disks, because the domain is about to run. (Saving ends the
        domain, but a daemon may have died in between.)"""
        record = await DOMAINS.get(self._store, name)
        if record is not None and record.saved:
            await self.remember(replace(record, saved=""))

    async def _goes_on(self, uuid: str) -> None:
        """Raise Failed if an error of its disk has stopped the domain again."""
        await self._clock.sleep(RETRIED_S)
        now = await self.find(uuid)
        if now.reason:
            raise Failed(
                f"{now.name} was unpaused, but an error of its disk has stopped it again ({now.reason})",
                hint=f"make room for that disk; then: veery --node {self.node} unpause {now.name}",
            )

    async def rename(self, ref: str, name: str) -> None:
        """Rename the domain. Raises Refused if the new name is taken anywhere in the cluster."""
        check_name(name)
        async with self.held(ref) as reading:
            await self.ours(reading.name)
            await self.conflicts.name(name)
            await owners.rename(self._store, reading.name, name)
            await self.driver.rename(reading.uuid, name)
            log.info("domain=%s renamed to %s", reading.name, name)

    async def forget(self, name: str) -> None:
        """Delete the record of a domain that is off. Its UUID and MACs are lost."""
        async with self.locks.hold(name):
            owner = await owners.read(self._store, name)
            if owner is not None and not await owners.end_of_fenced(self._store, name):
                hint = await owners.way_out(self._store, owner.node, f"veery --node {owner.node} destroy {name}")
                raise Refused(f"{name} runs on {owner.node}", hint=hint)
            if await DOMAINS.get(self._store, name) is None:
                raise NotFound(f"there is no domain {name}", hint="veery list --cluster shows the running domains")
            await self._forget(name)

    # ---- moving

    async def migrate(
        self, ref: str, target: str, settings: MoveSettings, *, brain: bool = False, force: bool = False
    ) -> str:
        """Begin to move a domain to node `target` (a name or an address); return the move's id. If the order is not
        from the `brain`, the domain will not return to a node that was drained before. `force`: also to a node whose
        sensors ask that it is given none."""
        async with self.held(ref) as reading:
            if reading.state not in (DomainState.RUNNING, DomainState.BLOCKED, DomainState.PAUSED):
                hint = f"only a living domain can move: veery destroy {reading.name}, then veery create elsewhere"
                raise Refused(f"{reading.name} is {reading.state.value}", hint=hint)
            for blocker in stopped(reading, self.driver.name):
                raise Refused(blocker.reason, hint=blocker.hint)
            node = await self._target(target)
            if not (brain or force):
                await orders.require_well(self._store, node.name)
            chosen = None if brain else partial(orders.stay, self._store, reading.name)
            return self._moves.start(
                reading, node, settings, lambda: self._scout.way_back(reading, node), arrived=chosen
            )

    async def plan(self, ref: str, target: str, settings: MoveSettings, *, quick: bool = False) -> Plan:
        """Return what would prevent moving a domain to node `target`, and a forecast of the move. Changes nothing.
        `quick`: as in Scout.plan."""
        reading, node = await self.find(ref), await self._target(target)
        plan = await self._scout.plan(reading, node, settings, quick=quick)
        try:
            await orders.require_well(self._store, node.name)
        except Refused as error:
            unwell = Blocker(kind=Obstacle.NODE, reason=error.message, hint=error.hint)
            plan = replace(plan, possible=False, blockers=(unwell, *plan.blockers))
        if busy := self._moves.busy(reading.name):
            blocker = Blocker(kind=Obstacle.DOMAIN, reason=busy, hint="wait for its end, or: veery move cancel MOVE")
            plan = replace(plan, possible=False, blockers=(blocker, *plan.blockers))
        return plan

    async def reply(self, question: Question) -> Reply:
        """Return this node's answer to a node that asks whether it could take a domain."""
        return await self._scout.reply(question)

    async def is_well(self, node: str) -> bool:
        """Return True if the sensors of `node` let it be given domains. Raises StoreUnavailable."""
        try:
            await orders.require_well(self._store, node)
        except Refused:
            return False
        return True

    async def _target(self, target: str) -> Node:
        nodes = list((await NODES.readable(self._store)).values())
        node = await find_node(target, nodes)
        if node.name == self.node:
            raise Refused(f"the domain runs on {self.node} already", hint="name another node: veery node list")
        if not node.has(Role.HYPERVISOR):
            raise Refused(f"{node.name} runs no domains", hint="name a hypervisor: veery node list")
        return node

    # ---- what the brain has to know

    async def press_again(self) -> None:
        """Ask guests again that have not followed a shutdown request. Raises StoreUnavailable, OutcomeUnknown."""
        await self.stopping.look(lambda name: self.locks.locked(name) or name in self.wanted.unsaid())

    async def power_off(self, name: str) -> None:
        """Ask the guest to power off because this machine goes down. The domain stays wanted. Raises Refused,
        Failed."""
        async with self.held(name) as reading:
            alive(reading)
            await self.driver.shutdown(reading.uuid)

    async def put_away(self, name: str) -> None:
        """Kill the domain because this machine goes down. It stays wanted and may start elsewhere. Raises Refused,
        Failed, StoreUnavailable, OutcomeUnknown."""
        async with self.held(name) as reading:
            await orders.spare(self._store, name, self.node)
            await self.end(reading)

    # ---- identity, locks, owners: also for the other orders of this node

    @contextlib.asynccontextmanager
    async def claimed(self, spec: DomainSpec, record: DomainRecord | None) -> AsyncIterator[Owner]:
        """Claim the name of `spec` for this node. If the block fails, release the name and restore the `record`
        that it had. The caller holds its lock."""
        claimed = newer.kept(owners.claimed(spec, record), record)
        owner = await owners.claim(self._store, spec.name, self.node, secrets.token_hex(8), claimed)
        try:
            await self.conflicts.disks(spec)
            yield owner
        except BaseException:
            await self._abandon(owner, record)
            raise

    async def check_attachable(self, spec: DomainSpec) -> None:
        """Raise Refused, before anything is claimed, if a need of the domain is known to be missing."""
        support.check(spec, self.driver.name)
        for vif in spec.vifs:
            await self.attacher.require_bridge(vif)
        await self.attacher.reach(spec.disks)

    async def remember(self, record: DomainRecord) -> None:
        """Write a domain's record. Keep the place of its local disks, and fields of a newer version."""
        before = await DOMAINS.get(self._store, record.spec.name)
        if before is not None:
            record = newer.kept(replace(record, home=before.home, left=before.left), before)
        await self._store.commit([], [DOMAINS.put(record.spec.name, record)])

    async def _forget(self, name: str) -> None:
        await self._store.commit([], [Delete(kind.key(name)) for kind in (DOMAINS, POLICIES, RUNS)])

    async def ours(self, name: str) -> Owner:
        """Return the owner key of a domain of this node. Raises Refused if the domain belongs to another node or to
        none."""
        owner = await owners.read(self._store, name)
        if owner is None or owner.node != self.node:
            raise Refused(
                f"{name} belongs to {owner.node if owner else 'no node'}, not to {self.node}",
                hint="veery list --cluster shows where it runs",
            )
        return owner

    async def _start(self, spec: DomainSpec, *, paused: bool) -> DomainReading:
        attachments = await self.attacher.attach(spec)
        try:
            with hinting("nothing of the domain is left; veery dmesg may show more"):
                reading = await self.driver.start(spec, attachments, paused=paused)
        except BaseException:
            await self.attacher.detach(attachments)
            raise
        self.attacher.taken(attachments)
        return reading

    async def restart(self, reading: DomainReading, spec: DomainSpec, *, keep: bool = False) -> DomainReading:
        """Start a domain of this node again under the same owner key. The caller holds its lock.

        The old instance is destroyed first. With `keep` it stays: it has ended and was renamed, and the new instance
        gets another UUID."""
        _, attachments = await self.driver.spec(reading.uuid)
        await self._end_volume_moves(spec)
        if keep:
            spec = replace(spec, uuid=str(uuids.uuid4()))
            await self.remember(DomainRecord(spec=spec))
        else:
            await self.driver.destroy(reading.uuid)
        await self.attacher.detach(attachments)
        return await self._start(spec, paused=False)

    async def revive(self, spec: DomainSpec) -> DomainReading:
        """Start a domain of this node whose process is gone, under the same owner key. The caller holds its lock."""
        await self._end_volume_moves(spec)
        return await self._start(spec, paused=False)

    async def _end_volume_moves(self, spec: DomainSpec) -> None:
        """Break off moves of the domain's volumes. A new QEMU will write to them where the records say they are, and a
        move copied for the old QEMU may no longer change that."""
        await volumegate.break_off(self._store, [disk.volume for disk in spec.disks if disk.volume])

    async def _abandon(self, owner: Owner, record: DomainRecord | None) -> None:
        """Release the name after a start that failed past its claim, and restore the record."""
        try:
            if record is not None:
                await self.remember(record)
            await self.wanted.spare(owner)
            await owners.release(self._store, owner)
            if record is None:
                await self._forget(owner.domain)
        except VeeryError as error:
            log.error("domain=%s owner key not released yet: %s", owner.domain, error.message)

    async def end(self, reading: DomainReading, owner: Owner | None = None) -> None:
        """Destroy the domain, remove its taps, and release its name. The caller holds the lock."""
        _, attachments = await self.driver.spec(reading.uuid)
        await self.driver.destroy(reading.uuid)
        await self._detach(attachments)
        try:
            owner = owner or await owners.read(self._store, reading.name)
            if owner is not None and owner.node == self.node:
                await self.wanted.give_back(owner)
        except VeeryError as error:  # the caretaker releases it when the store is back
            log.error("domain=%s owner key not released yet: %s", reading.name, error.message)
        log.info("domain=%s id=%d ended", reading.name, reading.domid)

    async def _detach(self, attachments: Attachments) -> None:
        """Remove the taps, except those whose name (vifname=) another domain of this node uses now. A domain that was
        set aside lost its taps at that time."""
        used: set[str] = set()
        for reading in await self.driver.list():
            used.update(vif.device for vif in (await self.driver.spec(reading.uuid))[1].vifs)
        mine = tuple(vif for vif in attachments.vifs if vif.device not in used)
        await self.attacher.detach(replace(attachments, vifs=mine))

    @contextlib.asynccontextmanager
    async def held(self, ref: str) -> AsyncIterator[DomainReading]:
        """Find a domain and hold it: no other order acts on it meanwhile."""
        async with self.locks.hold((await self.find(ref)).name):
            yield await self.find(ref)


def alive(reading: DomainReading) -> None:
    """Raise Refused if the domain has ended."""
    if reading.state in (DomainState.SHUTDOWN, DomainState.CRASHED):
        what = "has crashed" if reading.state is DomainState.CRASHED else "has shut down"
        raise Refused(
            f"{reading.name} {what}", hint=f"veery destroy {reading.name}, then start it again with veery create"
        )


def ended_name(reading: DomainReading) -> str:
    """Return the name of a domain that ended and was set aside (rename-restart)."""
    return f"{reading.name[:80]}-ended-{reading.domid}"
