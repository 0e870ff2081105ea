"""Shutdown requests that the guest has not followed yet.

A guest does not notice its power button while it boots, and a guest without a program for it never does. So the button
is pressed again while the guest may be booting. A request that is not followed lapses: the domain is wanted again, and
its policy applies as before."""

from __future__ import annotations

import logging
from collections.abc import Callable

from veery.cluster.keys import POLICIES
from veery.cluster.store import Store
from veery.errors import VeeryError
from veery.ha import orders
from veery.host.clock import Clock
from veery.hypervisor.base import Driver
from veery.model.domain import DomainReading, DomainState
from veery.model.ha import SHUTDOWN_LAPSE_S, HaRecord

log = logging.getLogger(__name__)

BOOT_S = 120.0
"""A guest that began to boot less than this ago may not notice its power button yet."""
LIVE = (DomainState.RUNNING, DomainState.BLOCKED)


class Stopping:
    """The open shutdown requests of a node. The caretaker calls `look` every few seconds."""

    def __init__(self, driver: Driver, store: Store, clock: Clock) -> None:
        """Build it. It does nothing before `look`."""
        self._driver, self._store, self._clock = driver, store, clock
        self._asked: dict[str, float] = {}  # by UUID, epoch seconds; also for domains without a policy

    def asked(self, uuid: str) -> float:
        """Note that the guest is asked to shut down now; return the time, in epoch seconds."""
        self._asked[uuid] = self._clock.epoch()
        return self._asked[uuid]

    async def followed(self, reading: DomainReading) -> None:
        """Forget the request: the guest has powered off, and its file tells to start it again. Raises StoreUnavailable,
        OutcomeUnknown."""
        self._asked.pop(reading.uuid, None)
        policy = await POLICIES.get(self._store, reading.name)
        if policy is not None and policy.stopping:
            await orders.lapse(self._store, reading.name, policy.stopping)

    async def look(self, locked: Callable[[str], bool]) -> None:
        """Ask guests again that may be booting, and end requests that are too old. Domains that are `locked` are left
        alone. Raises StoreUnavailable, OutcomeUnknown."""
        here = await self._driver.list()
        self._asked = {each.uuid: self._asked[each.uuid] for each in here if each.uuid in self._asked}
        policies = await POLICIES.readable(self._store)
        for reading in here:
            if reading.state not in LIVE or locked(reading.name):
                continue
            asked = self._since(reading, policies.get(reading.name))
            if not asked:
                continue
            now = self._clock.epoch()
            if now - asked > SHUTDOWN_LAPSE_S:
                log.warning("domain=%s did not shut down within %g s: wanted again", reading.name, SHUTDOWN_LAPSE_S)
                self._asked.pop(reading.uuid, None)
                await orders.lapse(self._store, reading.name, asked)
            elif now - reading.started < BOOT_S:
                await self._press(reading)

    def _since(self, reading: DomainReading, policy: HaRecord | None) -> float:
        """Return when the guest was asked; 0.0 if it was not, or if the request was withdrawn."""
        if reading.started > self._asked.get(reading.uuid, reading.started):
            self._asked.pop(reading.uuid, None)  # a later instance: it was not asked
        if policy is None:
            return self._asked.get(reading.uuid, 0.0)
        if policy.wanted:
            self._asked.pop(reading.uuid, None)
            return 0.0
        return policy.stopping or self._asked.get(reading.uuid, 0.0)

    async def _press(self, reading: DomainReading) -> None:
        try:
            await self._driver.shutdown(reading.uuid)
        except VeeryError as error:
            log.debug("domain=%s could not be asked again: %s", reading.name, error.message)
