"""Reports to the brain how this node can be fenced, and that its daemon is back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from veery.cluster.keys import MEANS
from veery.cluster.store import Store
from veery.errors import VeeryError
from veery.ha import orders
from veery.host.clock import Clock
from veery.model.ha import FenceMethods

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 1.0
CHECK_INTERVAL_S = 10.0  # seconds between two checks of the record


class FenceMethodsWriter:
    """Keeps the record of this hypervisor's fence methods up to date. The daemon owns the task of `run`."""

    def __init__(
        self, node: str, store: Store, means: Callable[[], FenceMethods], clock: Clock, *, started: float
    ) -> None:
        """`node` is the name of this node. `means` returns its fence methods now. `started`: as in its Presence."""
        self._node, self._store, self._means, self._clock, self._started = node, store, means, clock, started

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                if not await orders.back(self._store, self._node, self._started):
                    await self._clock.sleep(RETRY_INTERVAL_S)
                    continue
                means = self._means()
                if await MEANS.get(self._store, self._node) != means:
                    await self._store.commit([], [MEANS.put(self._node, means)])
            except VeeryError as error:
                log.debug("fence methods are not recorded yet: %s", error.message)
                await self._clock.sleep(RETRY_INTERVAL_S)
                continue
            await self._clock.sleep(CHECK_INTERVAL_S)
