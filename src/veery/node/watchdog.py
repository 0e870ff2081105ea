"""The watchdog of this node. It is fed only while the node's lease is valid, or while the store is down for all
(node/guard.py). The record armed/NODE in the store tells others what they may rely on.

That record is true whenever it exists. It is deleted before the first lease of each daemon and before a watchdog is
disarmed. It is written after one is armed.

Opening a watchdog feeds it, so it is opened under a lease only. A daemon that ends without the store leaves it armed:
the next daemon opens it in time, or it fires."""

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

FEED_INTERVAL_S = 1.0  # seconds between two feeds
RETRY_INTERVAL_S = 0.5
GOODBYE_TIMEOUT_S = 3.0  # seconds for the store to delete the record when the daemon ends


class WatchdogKeeper:
    """Feeds the watchdog of this node. The daemon owns the task of `run`."""

    def __init__(
        self, node: str, store: Store, settings: WatchdogSettings, clock: Clock, *, may_feed: Callable[[], bool]
    ) -> None:
        """Build it. Nothing is armed before `run`. `may_feed` is called before each feed."""
        self._node, self._store, self._settings, self._clock = node, store, settings, clock
        self._may_feed = may_feed
        self._declared = asyncio.Event()
        self.timeout = 0  # seconds, while one is armed
        self.trouble = ""

    async def declared(self) -> None:
        """Return when the store holds no wrong record about this node's watchdog. Before that this node must not be
        present."""
        await self._declared.wait()

    async def run(self) -> None:
        """Arm and feed the watchdog until cancelled. If it cannot be armed, `trouble` says why, and no node relies on
        it."""
        await self._insist(None)
        self._declared.set()
        if not self._settings.device:
            return
        while not self._may_feed():
            await self._clock.sleep(RETRY_INTERVAL_S)
        try:
            dog = watchdog.arm(self._settings.device, self._settings.timeout)
        except Refused as error:
            self.trouble = error.message
            log.error("the watchdog could not be armed: %s", error.message)
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
                log.log(
                    logging.INFO if fed else logging.ERROR,
                    "the watchdog is %s",
                    "fed again" if fed else "no longer fed",
                )
            before = fed
            await self._clock.sleep(FEED_INTERVAL_S)

    async def _insist(self, armed: Armed | None) -> None:
        while True:
            try:
                await self._record(armed)
                return
            except VeeryError as error:
                log.debug("watchdog: %s", error.message)
            await self._clock.sleep(RETRY_INTERVAL_S)

    async def _record(self, armed: Armed | None) -> None:
        change = ARMED.put(self._node, armed) if armed else Delete(ARMED.key(self._node))
        await self._store.commit([], [change])

    async def _let_go(self, dog: watchdog.Watchdog) -> None:
        """Disarm the watchdog if its record could be deleted; otherwise leave it armed."""
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._record(None)
            dog.disarm()
        except (VeeryError, TimeoutError, Refused) as error:
            log.warning("the watchdog stays armed: %s", error or "the store did not answer")
            dog.abandon()
