"""A simulated node's daemon: presence, heartbeats on storage, self-fencing, a caretaker, and what the brain orders.

Its presence and its brain are the real ones. What it does about its copies is what the real daemon promises: ends what
the owner key gives to another, gives back names whose domain is gone, and stops by itself when it is alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

from veery.cluster import owner as gate
from veery.cluster.keys import FENCES, HEALTHS, MEANS, OWNERS, RESERVATIONS
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.cluster.store import StoreUnavailable
from veery.cluster.trust import Trust
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.ha import orders
from veery.ha.simulation.reach import NodeStore
from veery.ha.simulation.world import Copy, Machine, NodeClock, World
from veery.ha.wanted import WantedRecords
from veery.health.sign import Level, Sign, sign
from veery.health.verdict import WHOLE, acknowledge, conclude, follow, rebooted
from veery.model.adoption import CopyHere, Inventory
from veery.model.cluster import Owner, Reservation
from veery.model.ha import FenceMethods, FenceState, NodeReading, RunningCopy, Ticket
from veery.model.node import Role
from veery.model.verdict import HealthRecord, NodeVerdict

BOOT = 1.0  # seconds from an order to a running domain
HEALTH_WORDS = {
    NodeVerdict.WELL: "well",
    NodeVerdict.QUARANTINE: "fit for quarantine",
    NodeVerdict.EVACUATE: "sick",
}
LOOK = 10.0  # seconds between two looks at what the store says of its health
STALL = 5.0  # seconds after which a move whose other side is gone is given up


class SimNode:
    """One daemon. `run` is its life from start to power-off."""

    def __init__(self, world: World, machine: Machine, data: MemoryStore, boots: Iterator[int]) -> None:
        self.world, self.machine, self.name = world, machine, machine.name
        self.clock = NodeClock(machine)
        self.trust = Trust(machine.name, machine, self.clock)
        self.store = NodeStore(world, machine.name, data, self.trust)
        self._boots = boots
        self.heartbeat = Heartbeat(self.store, self.name, ttl=world.scenario.rules.node_ttl, clock=self.clock)
        self.started = self.clock.epoch()
        self._alone = world.now()  # since when neither cluster nor storage was reached
        self._stopped = False
        self._starting: set[str] = set()
        self._sending: set[str] = set()
        self._wanted = WantedRecords(self.store, self.name)
        self._door = asyncio.Lock()  # a storage node's: whom it lets in is changed by one at a time

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.heartbeat.run())
            group.create_task(self._signs())
            group.create_task(self._caretaker())
            group.create_task(self._announce())
            group.create_task(self._reconcile())
            if self.world.scenario.probes:  # else all are well
                group.create_task(self._sensors())
            if self.world.scenario.restores:  # else there is nothing to look for
                group.create_task(self.trust.run(self.store.look, self._mark))

    async def _mark(self, why: str) -> None:
        await self.store.mark(self.trust, why, self.clock.epoch())
        self.world.say(self.name, f"doubts the store: {why}")

    async def _announce(self) -> None:
        """Once it is present: what it had announced is over; write how this node can be fenced."""
        if Role.HYPERVISOR not in self.machine.roles:
            return
        means = FenceMethods(methods=self.machine.methods, watchdog=self.machine.watchdog)
        while True:
            try:
                if await orders.back(self.store, self.name, self.started):
                    await self.store.commit([], [MEANS.put(self.name, means)])
                    return
            except (Failed, OutcomeUnknown):
                pass
            await self.clock.sleep(1.0)

    # ---- health
    async def _sensors(self) -> None:
        """Each second: one reading of each sensor, and the verdict into the store where it has changed."""
        machine, setup = self.machine, self.world.scenario.health
        if machine.booted != machine.boots:
            machine.booted, machine.history = machine.boots, rebooted(machine.history)
        published, looked = HealthRecord(), self.clock.now()
        while True:
            await machine.gate()
            now = self.clock.now()
            if machine.shown or machine.hung or machine.history.parts or machine.health != HealthRecord():
                told = {each.sensor for each in machine.history.parts.values()}
                for sensor in sorted({sensor for sensor, _ in machine.shown} | machine.hung | told):
                    machine.history = follow(machine.history, sensor, self._read(sensor), now, setup.figures)
                machine.history, record = conclude(machine.history, setup.sensors, now, setup.figures)
                self._feel(record)
            due = self.world.scenario.restores and now - looked >= LOOK  # a restored store may say something else
            if machine.health != published or due:
                with contextlib.suppress(VeeryError, TimeoutError):
                    if machine.health != published or await self._told_else():
                        await self.store.commit([], [HEALTHS.put(self.name, machine.health)])
                    published, looked = machine.health, now
            await self.clock.sleep(1.0)

    async def _told_else(self) -> bool:
        """Whether the store says something else of this node's health than the node does."""
        stands = await HEALTHS.get(self.store, self.name) or HealthRecord()
        return dataclasses.replace(stands, revision=0) != self.machine.health

    def _read(self, sensor: str) -> list[Sign]:
        if sensor in self.machine.hung:
            return [sign(sensor, WHOLE, Level.UNKNOWN, "", "no answer in time")]
        return [each for (name, _), each in self.machine.shown.items() if name == sensor]

    def _feel(self, record: HealthRecord) -> None:
        """Take `record` over, with the times of this node's wall clock when they were found."""
        machine, before, ahead = self.machine, self.machine.health, self.clock.epoch() - self.clock.now()
        same = record.verdict is before.verdict and before.since > 0
        if not same and (before.since > 0 or record.verdict is not NodeVerdict.WELL):
            why = f": {record.reason}" if record.reason else ""
            self.world.say(self.name, f"finds itself {HEALTH_WORDS[record.verdict]}{why}")
        known = {(each.sensor, each.part, each.level): each.since for each in before.signs}
        signs = tuple(
            dataclasses.replace(each, since=known.get((each.sensor, each.part, each.level), each.since + ahead))
            for each in record.signs
        )
        machine.health = dataclasses.replace(record, since=before.since if same else record.since + ahead, signs=signs)

    def called_well(self, sensor: str) -> None:
        """As `veery node well`."""
        self.machine.history = acknowledge(self.machine.history, sensor)

    # ---- alone or not
    async def _signs(self) -> None:
        """Each second: a heartbeat to storage; feed the watchdog; stop when alone for too long."""
        while True:
            await self.machine.gate()
            now = self.clock.now()
            heard = self.world.heartbeat(self.name, stopped=self._stopped)
            if heard or not self.heartbeat.lost() or self._down_for_all() or self._doubts():
                self._alone = self.machine.fed = now
            if not self.heartbeat.lost():
                self._stopped = False
            elif now - self._alone > self.machine.stop and not self._stopped:
                self._stopped = True
                names = ", ".join(sorted(self.machine.copies)) or "nothing"
                self.world.say(self.name, f"alone for {self.machine.stop:g} s: ends its domains ({names})")
                self.machine.copies.clear()
            await self.clock.sleep(1.0)

    def _down_for_all(self) -> bool:
        """Whether most voters tell this node that the store has no leader, and no storage node that it is shut out: as
        the guard's rule has it (node/guard.py), its domains run on then."""
        world = self.world
        voters = world.voters()
        heard = [each for each in voters if world.linked(self.name, each.name)]
        return not self._shut() and 2 * len(heard) > len(voters) and not world.members()

    def _doubts(self) -> bool:
        """Whether the store was just seen to be doubted, and no storage node shuts this node out."""
        return self.trust.stands() and not self._shut()

    def _shut(self) -> bool:
        world = self.world
        return any(self.name in each.denied for each in world.storages() if world.linked(self.name, each.name))

    def inventory(self) -> Inventory:
        """What this node tells to whoever adopts a restored store."""
        seen = self.trust.seen
        return Inventory(
            node=self.name,
            restored=self.trust.restored,
            incarnations=(*seen.before, seen.incarnation) if seen else (),
            copies=tuple(
                CopyHere(domain=name, boot=copy.boot, incoming=copy.incoming, busy=name in self._starting)
                for name, copy in self.machine.copies.items()
            ),
            shut=tuple(each.name for each in self.world.storages() if self.name in each.denied),
        )

    # ---- the caretaker
    async def _caretaker(self) -> None:
        settled = self.world.now() < 1  # nothing can be left at the beginning
        while Role.HYPERVISOR in self.machine.roles:
            await self.clock.sleep(1.0)
            try:
                if not settled:
                    await self._settle()
                    settled = True
                await self._tidy()
            except (VeeryError, TimeoutError):
                continue

    async def _settle(self) -> None:
        """Take away what was promised before this start and left no half copy here: the real one's journal knows."""
        for name, promise in (await RESERVATIONS.all(self.store)).items():
            if promise.target == self.name and name not in self.machine.copies:
                await gate.drop(self.store, promise)

    async def _tidy(self) -> None:
        """Obey the owner keys, and give back those whose domain is gone here."""
        for name in self._wanted.unsaid():
            await self._wanted.settle(name)
        before = dict(self.machine.copies)
        entries = (await self.store.scan(OWNERS.prefix)).entries
        owners = {owner.domain: owner for owner in map(OWNERS.value, entries)}
        for name, copy in before.items():
            owner = owners.get(name)
            if name in self._sending or self.machine.copies.get(name) is not copy:
                continue
            mine = owner is not None and (owner.node, owner.boot) == (self.name, copy.boot)
            if copy.incoming:
                await self._half(copy)
            elif owner is not None and owner.node != self.name and copy.running and await self._unfenced():
                self.trust.suspect(f"{name} runs here, its owner key names {owner.node}, and no fence stands")
            elif not mine and name not in self._starting:
                self.machine.copies.pop(name, None)
                whose = f"it belongs to {owner.node}" if owner else "it belongs to nobody"
                self.world.say(self.name, f"ends its copy of {name}: {whose}")
                if self.world.went_back is not None:
                    self.world.breaks(f"{self.name} ended its copy of {name} by a store that went back")
        for name, owner in owners.items():
            if owner.node == self.name and name not in before and not {name} & (self._starting | self._sending):
                if name in self.machine.copies:
                    continue
                await self._wanted.give_back(owner)
                self.world.say(self.name, f"gives {name} back: it does not run here")

    async def _unfenced(self) -> bool:
        return await FENCES.get(self.store, self.name) is None

    async def _half(self, copy: Copy) -> None:
        """An incoming copy whose source is not heard any more: ask the gate what became of it."""
        promise = await gate.reservation(self.store, copy.domain)
        if promise is not None and promise.target == self.name:
            flows = copy.flows and self.world.linked(self.name, promise.source)
            if flows or self.world.now() - copy.since < STALL:
                return
            owner = await gate.drop(self.store, promise)
        else:
            owner = await gate.read(self.store, copy.domain)
        if owner is not None and (owner.node, owner.boot) == (self.name, copy.boot):
            self._arrives(copy)
            self.world.say(self.name, f"{copy.domain} runs here: its move was committed")
        elif self.machine.copies.get(copy.domain) is copy:
            self.machine.copies.pop(copy.domain, None)
            self.world.say(self.name, f"drops its half copy of {copy.domain}")

    # ---- what the brain asks and orders
    def reading(self) -> NodeReading:
        """As the daemon tells it."""
        copies = tuple(RunningCopy(domain=each.domain, boot=each.boot) for each in self.machine.copies.values())
        return NodeReading(started=self.started, room=self.machine.room, copies=copies)

    async def start(self, ticket: Ticket) -> None:
        """As NodeControl.start, on this node."""
        await self.machine.gate()
        self._require_disk(ticket.domain)
        domain, name = self.world.scenario.domains[ticket.domain], ticket.domain
        used = sum(self.world.scenario.domains[each].memory for each in self.machine.copies)
        if used + domain.memory > self.machine.room:
            raise Refused(f"{self.name} has no room for {name}")
        self.world.fails("start", name)
        self.world.fails("start", f"{name}@{self.name}")
        self._starting.add(name)
        try:
            boot = f"{name}-{next(self._boots)}"
            try:
                owner = await orders.claim(self.store, ticket, boot)
                await self.clock.sleep(BOOT)
                if name in self.machine.copies:
                    raise Failed(f"{name} stands on {self.name} already")
                await self._still_mine(owner)
            except (StoreUnavailable, OutcomeUnknown):
                self._wanted.cut_short(boot)
                self.world.unstarted.append((self.world.now(), name))
                raise
            self.world.begin(self.machine, name, owner.boot)
        finally:
            self._starting.discard(name)

    async def _still_mine(self, owner: Owner) -> None:
        """Look once more before a domain runs. Raises Failed."""
        now = await gate.read(self.store, owner.domain)
        if now is None or now.revision != owner.revision:
            raise Failed(f"{owner.domain} was taken away while it was being started")

    def _require_disk(self, name: str) -> None:
        """As the daemon does before it claims a domain: refuse a disk that is a file of another node."""
        if self.world.lacks_disk(self.name, name):
            raise Refused(f"the disk of {name} is not on {self.name}")

    # ---- what users ask
    async def create(self, name: str, *, force: bool = False) -> None:
        """As Domains.create of the daemon. Raises VeeryError: nobody owns it then, or its owner is unknown."""
        await self.machine.gate()
        await self.heartbeat.require()
        await orders.require_undrained(self.store, self.name)
        if not force:
            await orders.require_well(self.store, self.name)
        if name in self.machine.copies or name in self._starting:
            raise Refused(f"{name} stands on {self.name} already")
        self._require_disk(name)
        self._starting.add(name)
        try:
            await gate.reclaim(self.store, name, to=self.name)
            owner = await gate.claim(self.store, name, self.name, f"{name}-{next(self._boots)}", None)
            await self.clock.sleep(BOOT)
            await self._still_mine(owner)
            self.world.begin(self.machine, name, owner.boot)
        finally:
            self._starting.discard(name)
        await self._wanted.say(name, wanted=True)

    async def destroy(self, name: str) -> None:
        """As Domains.destroy of the daemon."""
        await self.machine.gate()
        copy = self.machine.copies.get(name)
        if copy is None:
            raise Refused(f"{name} does not run on {self.name}")
        await self._wanted.say(name, wanted=False)
        await self.end(name, copy.boot)

    async def migrate(self, name: str, target: SimNode) -> None:
        """As Domains.migrate of the daemon, for a user: it does not come home afterwards."""
        await self.send(name, target)
        await orders.stay(self.store, name)

    async def end(self, domain: str, boot: str) -> None:
        """As NodeControl.end, on this node."""
        await self.machine.gate()
        await asyncio.sleep(0.2)
        await self.machine.gate()
        copy = self.machine.copies.get(domain)
        if copy is not None and copy.boot == boot:
            del self.machine.copies[domain]
        owner = await gate.read(self.store, domain)
        if owner is not None and (owner.node, owner.boot) == (self.name, boot):
            await self._wanted.give_back(owner)

    async def _reconcile(self) -> None:
        """A storage service that has started again knows nobody and lets nobody in, until the records tell it; while
        the store does not answer, by what it served last (storage/served.py)."""
        remembered = False
        while Role.STORAGE in self.machine.roles:
            await self.clock.sleep(1.0)
            if (self.machine.knows and not remembered) or not self.machine.target:
                continue
            try:
                async with self._door:
                    fences = await FENCES.all(self.store)
                    shut = {name for name, fence in fences.items() if fence.state is not FenceState.ADMITTING}
                    self.machine.denied, self.machine.knows = shut, True
            except (VeeryError, TimeoutError):
                if not self.machine.knows:
                    self.machine.knows = remembered = True
                    self.world.say(self.name, "its storage service has its access back as it was: the store is silent")
                continue
            names, remembered = ", ".join(sorted(shut)) or "nobody", False
            self.world.say(self.name, f"its storage service has its access back: {names} shut out")

    async def deny(self, node: str) -> str:
        """This storage node's part of a fence: what it read back afterwards."""
        await self.machine.gate()
        async with self._door:
            self._serves()
            self.machine.denied.add(node)
        await asyncio.sleep(0.02)
        return f"{self.name} lets it in no more"

    async def admit(self, node: str, revision: int) -> None:
        """As NodeControl.admit, on this storage node."""
        async with self._door:
            record = await FENCES.get(self.store, node)
            self._serves()
            if record is None or record.revision != revision or record.state is not FenceState.ADMITTING:
                raise Refused(f"{node} is not to be let in")
            self.machine.denied.discard(node)

    def _serves(self) -> None:
        if not self.machine.target:
            raise Failed(f"the storage service on {self.name} does not answer")
        if not self.machine.knows:
            raise Failed(f"the storage service on {self.name} has only just started")

    # ---- moves
    async def send(self, domain: str, target: SimNode) -> None:
        """Move `domain` away: the real gate (reserve, commit, drop), a copy that takes its time. The target is asked
        first: nothing is promised for one that does not answer."""
        copy = self.machine.copies.get(domain)
        if copy is None or copy.incoming or domain in self._sending:
            raise Refused(f"{domain} does not run on {self.name}")
        owner = await gate.read(self.store, domain)
        if owner is None or owner.node != self.name:
            raise Refused(f"{domain} does not belong to {self.name}")
        used = sum(self.world.scenario.domains[each].memory for each in target.machine.copies)
        if used + self.world.scenario.domains[domain].memory > target.machine.room:
            raise Refused(f"{target.name} has no room for {domain}")
        if not self.world.linked(self.name, target.name):
            raise Refused(f"{self.name} does not hear {target.name}")
        target._require_disk(domain)
        move = f"m{next(self._boots)}"
        try:
            promise = await gate.reserve(self.store, domain, move, self.name, target.name, revision=owner.revision)
        except OutcomeUnknown:
            await self._withdraw(domain, move)
            raise
        self._sending.add(domain)
        half = Copy(domain, copy.boot, 0, incoming=True, since=self.world.now())
        try:
            if target.machine.power:
                target.machine.copies[domain] = half
            await self._copy(domain, target)
            copy.running = False
            await self._commit(owner, promise, copy, half, target)
        except VeeryError:
            await self._undo(promise, half, target)
            copy.running = copy.running or half.incoming
            raise
        finally:
            half.flows = False
            self._sending.discard(domain)

    async def _undo(self, promise: Reservation, half: Copy, target: SimNode) -> None:
        """Take the promise away, and the half copy with it; nothing is left where COMMIT came first."""
        while True:
            try:
                await gate.drop(self.store, promise)
                break
            except (Failed, OutcomeUnknown):
                await self.clock.sleep(0.5)
        if half.incoming and target.machine.copies.get(half.domain) is half:
            del target.machine.copies[half.domain]

    async def _withdraw(self, domain: str, move: str) -> None:
        """Take away the promise that may have been made for `move`, as the real target does from its journal."""
        while True:
            try:
                promise = await gate.reservation(self.store, domain)
                if promise is not None and promise.move == move:
                    await gate.drop(self.store, promise)
                return
            except (Failed, OutcomeUnknown):
                await self.clock.sleep(0.5)

    async def _copy(self, domain: str, target: SimNode) -> None:
        """Memory flows for the domain's time; ends when the other side is gone, or the scenario wants it."""
        self.world.fails("move", domain)
        left, stalled = self.world.scenario.domains[domain].copy, 0.0
        while left > 0:
            await self.clock.sleep(0.25)
            if domain not in self.machine.copies:
                raise Failed(f"{domain} has ended while it was moved")
            if self.world.linked(self.name, target.name) and domain in target.machine.copies:
                left, stalled = left - 0.25, 0.0
                continue
            stalled += 0.25
            if stalled >= STALL:
                raise Failed(f"the move of {domain} stood still: {target.name} does not answer")

    async def _commit(self, owner: Owner, promise: Reservation, copy: Copy, half: Copy, target: SimNode) -> None:
        """COMMIT and FINISH; where the answer is lost, the gate is asked until it tells."""
        try:
            await gate.commit(self.store, owner, promise)
        except (Failed, OutcomeUnknown, Refused):
            while True:
                try:
                    now = await gate.drop(self.store, promise)
                    break
                except (Failed, OutcomeUnknown):
                    await self.clock.sleep(0.5)
            if now is None or now.node != target.name:
                if target.machine.copies.get(owner.domain) is half:
                    del target.machine.copies[owner.domain]
                raise Failed(f"the move of {owner.domain} was undone: it runs on {self.name}") from None
        self.machine.copies.pop(owner.domain, None)
        if target.machine.copies.get(owner.domain) is half and half.incoming and target.machine.well:
            self._arrives(half)

    def _arrives(self, half: Copy) -> None:
        """Half a copy is the domain from now on."""
        self.world.runs[half.domain] += 1
        half.number = self.world.runs[half.domain]
        half.incoming = False
        self.world.judge()


def boots() -> Iterator[int]:
    """Numbers for boots and moves."""
    return itertools.count(1)
