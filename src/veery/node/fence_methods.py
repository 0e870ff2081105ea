"""What this node tells the brain of itself, while it is well: how it can be fenced, and that its daemon is back."""

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

RETRY = 1.0
LOOK = 10.0  # seconds between two looks at what stands there


class FenceMethodsWriter:
    """One a hypervisor; `run` is its task."""

    def __init__(
        self, node: str, store: Store, means: Callable[[], FenceMethods], clock: Clock, *, started: float
    ) -> None:
        """`node` is this one's name; `means` tells them as they are now; `started` as in our Presence."""
        self._node, self._store, self._means, self._clock, self._started = node, store, means, clock, started

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                if not await orders.back(self._store, self._node, self._started):
                    await self._clock.sleep(RETRY)
                    continue
                means = self._means()
                if await MEANS.get(self._store, self._node) != means:
                    await self._store.commit([], [MEANS.put(self._node, means)])
            except VeeryError as error:
                log.debug("not told to the brain: %s", error.message)
                await self._clock.sleep(RETRY)
                continue
            await self._clock.sleep(LOOK)
