"""This node's watchdog: fed only while the node's lease holds, or the store is down for all (node/guard.py). What
others may believe of it stands in the store as armed/NODE.

The record is true whenever it is there: it is taken away before the first lease of each daemon, and before a watchdog
is disarmed; it is written once one is armed. Opening a watchdog is a feed, so it is opened under a lease only. A daemon
that ends without the store leaves it armed, to be opened by the next one in time, or to fire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from veery.cluster.keys import ARMED
from veery.cluster.store import Delete, Store
from veery.config.settings import WatchdogSettings
from veery.errors import Failed, Refused, VeeryError
from veery.host import watchdog
from veery.host.clock import Clock
from veery.model.fence import Armed

log = logging.getLogger(__name__)

FEED = 1.0  # seconds between two feeds
RETRY = 0.5
GOODBYE = 3.0  # seconds for the store to take the record away when the daemon ends


class WatchdogKeeper:
    """One a daemon; `run` is its task."""

    def __init__(
        self, node: str, store: Store, settings: WatchdogSettings, clock: Clock, *, may_feed: Callable[[], bool]
    ) -> None:
        """Nothing is armed before `run`; `may_feed` is asked before each feed."""
        self._node, self._store, self._settings, self._clock = node, store, settings, clock
        self._may_feed = may_feed
        self._declared = asyncio.Event()
        self.timeout = 0  # seconds, of one that is armed
        self.trouble = ""

    async def declared(self) -> None:
        """Return once the store says nothing of our watchdog that is not true: not before may this node be present."""
        await self._declared.wait()

    async def run(self) -> None:
        """For ever. Where the watchdog of the settings cannot be armed, `trouble` says why, and nobody counts on it."""
        await self._insist(None)
        self._declared.set()
        if not self._settings.device:
            return
        while not self._may_feed():
            await self._clock.sleep(RETRY)
        try:
            dog = watchdog.arm(self._settings.device, self._settings.timeout)
        except Refused as error:
            self.trouble = error.message
            log.error("no watchdog: %s", error.message)
            return
        self.timeout = dog.timeout
        log.info("watchdog %s armed: it fires %d s after its last feed", self._settings.device, dog.timeout)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed(dog), name="feed the watchdog")
                await self._insist(Armed(node=self._node, timeout=dog.timeout, device=self._settings.device))
        finally:
            self.timeout = 0
            await self._let_go(dog)

    async def _feed(self, dog: watchdog.Watchdog) -> None:
        before = True
        while True:
            fed = self._may_feed()
            if fed:
                try:
                    dog.feed()
                    self.trouble = ""
                except Failed as error:
                    self.trouble = error.message
            if fed is not before:
                log.log(logging.INFO if fed else logging.ERROR, "watchdog is %s", "fed again" if fed else "not fed")
            before = fed
            await self._clock.sleep(FEED)

    async def _insist(self, armed: Armed | None) -> None:
        while True:
            try:
                await self._record(armed)
                return
            except VeeryError as error:
                log.debug("watchdog: %s", error.message)
            await self._clock.sleep(RETRY)

    async def _record(self, armed: Armed | None) -> None:
        change = ARMED.put(self._node, armed) if armed else Delete(ARMED.key(self._node))
        await self._store.commit([], [change])

    async def _let_go(self, dog: watchdog.Watchdog) -> None:
        """Disarm it once nobody counts on it any more; else leave it armed."""
        try:
            async with asyncio.timeout(GOODBYE):
                await self._record(None)
            dog.disarm()
        except (VeeryError, TimeoutError, Refused) as error:
            log.warning("watchdog stays armed: %s", error or "no answer of the store")
            dog.abandon()
