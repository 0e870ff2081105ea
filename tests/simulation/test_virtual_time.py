"""Virtual time goes on, whatever falls on one moment."""

from __future__ import annotations

import asyncio

import pytest

from veery.cluster.memory import MemoryStore
from veery.ha.simulation.clock import TrueClock, run
from veery.host.tasks import stop


async def _watch(store: MemoryStore) -> None:
    async for _ in store.watch("", 0):
        pass


@pytest.mark.timeout(60)
def test_a_lease_that_ends_within_the_clocks_resolution_does_not_stop_time() -> None:
    async def story() -> float:
        store = MemoryStore(TrueClock())
        await store.grant(1)
        await asyncio.sleep(1 - 5e-10)  # what is due at 1 is taken for due from here on
        watchers = []
        for _ in range(12):  # not in step: one of them always has something to do
            watchers.append(asyncio.create_task(_watch(store)))
            await asyncio.sleep(0)
        await asyncio.sleep(1)
        await stop(*watchers)
        return asyncio.get_running_loop().time()

    assert run(story()) == pytest.approx(2)
