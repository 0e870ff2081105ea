"""Looks after the domains of this node without orders.

It takes over domains that run, follows on_poweroff, on_reboot and on_crash when a domain ends by itself, and releases
the names of domains that are gone."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import replace

from veery.cluster import owner as owners
from veery.cluster.keys import DISARMED, DOMAINS, FENCES, OWNERS, POLICIES, Unreadable
from veery.cluster.trust import Trust
from veery.errors import Refused, VeeryError
from veery.host.shortage import is_shortage
from veery.migrate.base import MoveContext
from veery.model import newer
from veery.model.cluster import DomainRecord, Owner
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, DomainState, OnEvent
from veery.model.ha import Policy
from veery.node.domains import Domains, ended_name

log = logging.getLogger(__name__)

TIDY_INTERVAL_S = 5.0  # seconds between two checks of the owner keys
RETRY_INTERVAL_S = 1.0
SHORT_LIFE_S = 60.0  # a domain that ends sooner after its start is restarted more and more slowly
PAUSE_MAX_S = 20.0  # shorter than the time for which a user's order waits for the lock
LIVE = (DomainState.RUNNING, DomainState.BLOCKED)
FAULTS = frozenset({DomainEnd.CRASH, DomainEnd.WATCHDOG, DomainEnd.DIED})
RESTARTS = frozenset({OnEvent.RESTART, OnEvent.COREDUMP_RESTART, OnEvent.SOFT_RESET, OnEvent.RENAME_RESTART})


def answer(spec: DomainSpec, end: DomainEnd) -> OnEvent:
    """Return what the domain file says to do about `end`."""
    return {
        DomainEnd.POWEROFF: spec.on_poweroff,
        DomainEnd.REBOOT: spec.on_reboot,
        DomainEnd.CRASH: spec.on_crash,
        DomainEnd.WATCHDOG: spec.on_watchdog,
        DomainEnd.DIED: spec.on_crash,
    }[end]


def _wish(spec: DomainSpec, end: DomainEnd) -> OnEvent:
    wish = answer(spec, end)
    log.info("domain=%s end=%s answer=%s", spec.name, end.value, wish.value)
    if wish in (OnEvent.COREDUMP_DESTROY, OnEvent.COREDUMP_RESTART):
        log.warning("domain=%s: no core dump, this driver cannot write one", spec.name)
    return wish


def pause_before(quick_ends: int) -> float:
    """Return the seconds to wait before a restart after so many short lives in a row: 0, 1, 2, 4 ... up to 20."""
    return min(2.0 ** (quick_ends - 1), PAUSE_MAX_S) if quick_ends else 0.0


class Caretaker:
    """The caretaker of a node. The daemon owns the task of `run`."""

    def __init__(self, context: MoveContext, domains: Domains, trust: Trust) -> None:
        """Build the caretaker. It does nothing before `run`."""
        self._context, self._domains, self._trust = context, domains, trust
        self._quick_ends: defaultdict[str, int] = defaultdict(int)
        self._restarted: dict[str, float] = {}  # domain: when the caretaker last restarted it
        self._missing: set[tuple[str, int]] = set()
        self._unread: tuple[str, ...] = ()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tidy_for_ever(), name="tidy")
            async for event in self._context.driver.events():
                tasks.create_task(self._handle(event), name=f"event {event.uuid}")

    # ---- a domain ended by itself

    async def _handle(self, event: DomainEvent) -> None:
        """Retry until the event is handled: another order may hold the domain, or the store may be absent."""
        act = self._died if event.end is DomainEnd.DIED else self._stopped
        said = ""
        while True:
            try:
                if await act(event):
                    return
            except VeeryError as error:
                if error.message != said:
                    log.warning("domain=%s end=%s waits: %s", event.uuid, event.end.value, error.message)
                said = error.message
            except (OSError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                log.warning("domain=%s end=%s waits: %s", event.uuid, event.end.value, error)
            await self._context.clock.sleep(RETRY_INTERVAL_S)

    async def _stopped(self, event: DomainEvent) -> bool:
        """Follow the domain file after the guest ended while its process remains. Return True if that is done."""
        try:
            name = (await self._domains.find(event.uuid)).name
        except Refused:
            return True  # meanwhile it was destroyed or moved away
        if self._domains.locks.locked(name, arriving=True):
            return False
        async with self._domains.locks.hold(name, arriving=True):
            try:
                reading = await self._domains.find(event.uuid)
            except Refused:
                return True
            if reading.name != name:
                return False
            if reading.state not in (DomainState.SHUTDOWN, DomainState.CRASHED):
                return True  # it runs again
            owner = await owners.read(self._context.store, name)
            if owner is None or owner.node != self._context.node:
                return True  # it was set aside, or it is another node's: see _adopt
            spec, _ = await self._context.driver.spec(reading.uuid)
            await self._answer(reading, spec, event.end, owner)
        return True

    async def _answer(self, reading: DomainReading, spec: DomainSpec, end: DomainEnd, owner: Owner) -> None:
        wish = _wish(spec, end)
        if wish is OnEvent.PRESERVE:
            return
        if end in FAULTS and await self._brain_recovers(spec.name):
            await self._domains.end(reading)
            return
        if wish not in RESTARTS:
            if end is DomainEnd.POWEROFF:  # on purpose, from inside the guest
                await self._domains.wanted.say(spec.name, wanted=False)
            await self._domains.end(reading)
            return
        if end is DomainEnd.POWEROFF:
            await self._domains.stopping.followed(reading)
        await self._pause_before_restart(spec.name)
        keep = wish is OnEvent.RENAME_RESTART
        if keep:  # the old instance stays under another name; it never runs again, so it needs no owner
            await self._context.driver.rename(reading.uuid, ended_name(reading))
        await self._start(owner, self._domains.restart(reading, spec, keep=keep))

    async def _died(self, event: DomainEvent) -> bool:
        """Handle a domain whose process and driver state are gone; its record tells what to do. Return True if that is
        done."""
        records, bad = await DOMAINS.sifted(self._context.store)
        spec = next((record.spec for record in records.values() if record.spec.uuid == event.uuid), None)
        if spec is None:
            for error in bad.values():  # an unreadable record may be its own
                raise error
            return True
        if self._domains.locks.locked(spec.name):
            return False
        async with self._domains.locks.hold(spec.name):
            await self._domains.attacher.sweep()
            owner = await owners.read(self._context.store, spec.name)
            here = any(spec.name == reading.name for reading in await self._context.driver.list())
            if here or owner is None or owner.node != self._context.node:
                return True
            if await self._brain_recovers(spec.name):
                log.warning("domain=%s died: its name is released, so that the brain can start it again", spec.name)
                await self._domains.wanted.give_back(owner)
            elif _wish(spec, event.end) in RESTARTS:
                await self._pause_before_restart(spec.name)
                await self._start(owner, self._domains.revive(spec))
            else:
                await self._domains.wanted.give_back(owner)
        return True

    async def _brain_recovers(self, name: str) -> bool:
        """Return True if the brain starts `name` again after it has died: here or elsewhere, with pauses, and a limited
        number of times."""
        policy = await POLICIES.get(self._context.store, name)
        if policy is None or policy.policy is not Policy.RESTART or not policy.wanted:
            return False
        return await self._context.store.get(DISARMED) is None

    async def _pause_before_restart(self, name: str) -> None:
        """Pause before a restart if the earlier restarts did not last."""
        now = self._context.clock.now()
        lived = now - self._restarted.get(name, -SHORT_LIFE_S)
        quick = self._quick_ends[name] = 0 if lived >= SHORT_LIFE_S else self._quick_ends[name] + 1
        if quick:
            pause = pause_before(quick)
            log.warning("domain=%s ended %d times soon after its start: restart in %g s", name, quick, pause)
            await self._context.clock.sleep(pause)
        self._restarted[name] = self._context.clock.now()

    async def _start(self, owner: Owner, restart: Awaitable[object]) -> None:
        try:
            await restart
        except VeeryError as error:
            log.error("domain=%s could not be restarted: %s", owner.domain, error.message)
            if owner.domain not in {reading.name for reading in await self._context.driver.list()}:
                await self._domains.wanted.give_back(owner)

    # ---- owner keys and instances must agree

    async def _tidy_for_ever(self) -> None:
        while True:
            try:
                await self._adopt()
                await self._give_back()
                await self._domains.attacher.sweep()
                await self._domains.press_again()
            except VeeryError as error:
                log.warning("owner keys could not be checked: %s", error.message)
            except (OSError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                log.warning("owner keys could not be checked: %s", error)
            await self._context.clock.sleep(1.0 if self._missing else TIDY_INTERVAL_S)

    async def _adopt(self) -> None:
        """Claim domains that run here without an owner, and end copies of domains that another node owns."""
        for reading in await self._context.driver.list():
            if self._domains.locks.locked(reading.name) or reading.state in (DomainState.SHUTDOWN, DomainState.CRASHED):
                continue
            try:
                await self._look_at(reading)
            except (Refused, Unreadable) as error:
                log.debug("domain=%s is left alone: %s", reading.name, error.message)

    async def _look_at(self, reading: DomainReading) -> None:
        owner = await owners.read(self._context.store, reading.name)
        if owner is not None and owner.node == self._context.node:
            return
        async with self._domains.held(reading.uuid):
            owner = await owners.read(self._context.store, reading.name)
            if owner is None and reading.state is not DomainState.INCOMING and not await self._fenced():
                await self._claim(reading)
            elif owner is not None and reading.state in LIVE and not await self._fenced():
                # A key is taken from a node only under its fence, or by a move from it, which this node would know.
                self._trust.suspect(
                    f"{reading.name} runs here, but its owner key names {owner.node}, and this node is not fenced"
                )
            elif owner is None or owner.node != self._context.node:
                whose = owner.node if owner else "no node"
                log.error("domain=%s destroyed here: its owner is %s", reading.name, whose)
                await self._domains.end(reading)

    async def _fenced(self) -> bool:
        """Return True if this node is fenced. Then a domain that ran here may have run and ended elsewhere."""
        return await FENCES.get(self._context.store, self._context.node) is not None

    async def _claim(self, reading: DomainReading) -> None:
        spec, _ = await self._context.driver.spec(reading.uuid)
        log.warning("domain=%s runs here without an owner: claimed by this node", reading.name)
        boot = reading.uuid.replace("-", "")[:16]
        before = await DOMAINS.get(self._context.store, reading.name)
        await owners.claim(
            self._context.store,
            reading.name,
            self._context.node,
            boot,
            newer.kept(DomainRecord(spec=replace(spec, name=reading.name), home=before.home if before else ""), before),
        )

    async def _give_back(self) -> None:
        """Release names that this node owns but whose domain is gone: the node went down with the domain, or an end was
        cut short.

        A name must be missing in two checks. _died handles a domain that just died, and may start it again."""
        missing = set()
        if unread := self._context.driver.unread():
            if unread != self._unread:
                log.error("no name is released while these records cannot be read: %s", "; ".join(unread))
            self._unread = unread
            return
        for name, owner in (await OWNERS.readable(self._context.store)).items():
            if owner.node != self._context.node or self._domains.locks.locked(name):
                continue
            # Read after the keys: a start claims its name, under the lock, before its domain exists.
            if name in {reading.name for reading in await self._context.driver.list()} or self._domains.locks.locked(
                name
            ):
                continue
            if (name, owner.revision) in self._missing:
                log.warning("domain=%s is no longer here: its name is released", name)
                await self._domains.wanted.give_back(owner)
            missing.add((name, owner.revision))
        self._missing = missing
