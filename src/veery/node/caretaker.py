"""Looks after the domains of this node while nobody gives orders: takes over those that run, does what on_poweroff,
on_reboot and on_crash say when one ends by itself, and gives back names whose domain is gone."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import replace

from veery.cluster import owner as owners
from veery.cluster.keys import OWNERS
from veery.errors import Refused, VeeryError
from veery.migrate.base import Ground
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, DomainState, OnEvent
from veery.node.domains import Domains

log = logging.getLogger(__name__)

TIDY = 5.0  # seconds between two looks at the owner keys
RETRY = 1.0
QUICK = 60.0  # a domain that ends sooner than this after its start is restarted ever more slowly
PAUSE_MAX = 30.0


def answer(spec: DomainSpec, end: DomainEnd) -> OnEvent:
    """What the domain file says to do about `end`."""
    return {
        DomainEnd.POWEROFF: spec.on_poweroff,
        DomainEnd.REBOOT: spec.on_reboot,
        DomainEnd.CRASH: spec.on_crash,
        DomainEnd.WATCHDOG: spec.on_watchdog,
        DomainEnd.DIED: spec.on_crash,
    }[end]


def pause_before(lived: float, quick_ends: int) -> float:
    """Seconds to wait before a restart: none after a life of a minute, else 1, 2, 4 ... up to 30."""
    return 0.0 if lived >= QUICK else min(2.0**quick_ends, PAUSE_MAX)


class Caretaker:
    """One a node; `run` is its task."""

    def __init__(self, ground: Ground, domains: Domains) -> None:
        """Nothing is done before `run`."""
        self._ground, self._domains = ground, domains
        self._quick_ends: defaultdict[str, int] = defaultdict(int)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tidy_for_ever(), name="tidy")
            async for event in self._ground.driver.events():
                tasks.create_task(self._handle(event), name=f"event {event.uuid}")

    # ---- a domain ended by itself

    async def _handle(self, event: DomainEvent) -> None:
        while True:
            try:
                reading = await self._domains.find(event.uuid)
                if not self._domains.locked(reading.name):
                    async with self._domains.held(event.uuid) as held:
                        await self._answer(held, event.end)
                    return
            except Refused:
                return  # destroyed or moved away meanwhile
            except VeeryError as error:
                log.error("domain=%s end=%s not handled yet: %s", event.uuid, event.end, error.message)
            await self._ground.clock.sleep(RETRY)

    async def _answer(self, reading: DomainReading, end: DomainEnd) -> None:
        """Do as the file says. The caller holds the domain."""
        await self._domains.ours(reading.name)
        if end is not DomainEnd.DIED and reading.state not in (DomainState.SHUTDOWN, DomainState.CRASHED):
            return  # it lives again
        spec, _ = await self._ground.driver.spec(reading.uuid)
        wish = answer(spec, end)
        log.info("domain=%s end=%s answer=%s", reading.name, end.value, wish.value)
        if wish is OnEvent.PRESERVE and end is not DomainEnd.DIED:
            return
        if wish in (OnEvent.RESTART, OnEvent.COREDUMP_RESTART, OnEvent.SOFT_RESET, OnEvent.RENAME_RESTART):
            await self._restart(reading, spec, keep=wish is OnEvent.RENAME_RESTART and end is not DomainEnd.DIED)
        else:
            await self._domains.end(reading)

    async def _restart(self, reading: DomainReading, spec: DomainSpec, *, keep: bool) -> None:
        lived = self._ground.clock.epoch() - reading.started
        quick = self._quick_ends[reading.name]
        self._quick_ends[reading.name] = 0 if lived >= QUICK else quick + 1
        pause = pause_before(lived, quick) if quick else 0.0
        if pause:
            log.warning("domain=%s ended %d times soon after its start: restart in %g s", reading.name, quick, pause)
            await self._ground.clock.sleep(pause)
        if keep:
            await self._set_aside(reading)
        try:
            await self._domains.restart(reading, spec, keep=keep)
        except VeeryError as error:
            log.error("domain=%s does not restart: %s", reading.name, error.message)
            owner = await self._domains.ours(reading.name)
            await owners.release(self._ground.store, owner)

    async def _set_aside(self, reading: DomainReading) -> None:
        """rename-restart: the old run stays, paused, as NAME-ended-DOMID; it never runs again, so it needs no owner."""
        await self._ground.driver.rename(reading.uuid, f"{reading.name}-ended-{reading.domid}")

    # ---- names and runs fit together

    async def _tidy_for_ever(self) -> None:
        while True:
            try:
                await self._adopt()
                await self._give_back()
            except VeeryError as error:
                log.warning("owner keys not looked at: %s", error.message)
            await self._ground.clock.sleep(TIDY)

    async def _adopt(self) -> None:
        """A domain that runs here must be ours; the copy of another's must not run (safety sentence 1)."""
        for reading in await self._ground.driver.list():
            if self._domains.locked(reading.name) or reading.state in (DomainState.SHUTDOWN, DomainState.CRASHED):
                continue
            owner = await owners.read(self._ground.store, reading.name)
            if owner is not None and owner.node == self._ground.node:
                continue
            try:
                async with self._domains.held(reading.uuid):
                    owner = await owners.read(self._ground.store, reading.name)
                    if owner is None and reading.state is not DomainState.INCOMING:
                        await self._claim(reading)
                    elif owner is None or owner.node != self._ground.node:
                        whose = owner.node if owner else "nobody"
                        log.error("domain=%s destroyed here: its owner is %s", reading.name, whose)
                        await self._domains.end(reading)
            except Refused:
                continue

    async def _claim(self, reading: DomainReading) -> None:
        spec, _ = await self._ground.driver.spec(reading.uuid)
        log.warning("domain=%s runs here and nobody owns it: claimed", reading.name)
        boot = reading.uuid.replace("-", "")[:16]
        await owners.claim(
            self._ground.store,
            reading.name,
            self._ground.node,
            boot,
            DomainRecord(spec=replace(spec, name=reading.name)),
        )

    async def _give_back(self) -> None:
        """Names that we own and whose domain is gone: it ended, or this node went down with it."""
        for name, owner in (await OWNERS.all(self._ground.store)).items():
            if owner.node != self._ground.node or self._domains.locked(name):
                continue
            # Read after the keys were: a start claims its name, under the lock, before its domain is here.
            if name in {reading.name for reading in await self._ground.driver.list()} or self._domains.locked(name):
                continue
            log.warning("domain=%s is not here any more: name given back", name)
            self._quick_ends.pop(name, None)
            await owners.release(self._ground.store, owner)
