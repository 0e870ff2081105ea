"""Being woken by changes in the store."""

from __future__ import annotations

import asyncio
import logging

import pytest

from veery.cluster import changes
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Put, Snapshot, StoreUnavailable
from veery.host.clock import RealClock
from veery.host.tasks import stop

PATIENCE_S = 30.0


class Away(MemoryStore):
    """A store that does not answer while `away`."""

    away = False
    asked = 0

    async def scan(self, prefix: str) -> Snapshot:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("the store does not answer")
        return await super().scan(prefix)


async def test_each_change_wakes_and_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    store, changed = Away(RealClock()), asyncio.Event()
    store.away = True
    with caplog.at_level(logging.WARNING):
        waking = asyncio.create_task(changes.wake(changed, store, "thing/"))
        async with asyncio.timeout(PATIENCE_S):
            while store.asked < 3:
                await asyncio.sleep(0.05)
        assert not changed.is_set()
        assert [record.message for record in caplog.records] == ["watch of thing/ restarts: the store does not answer"]
        store.away = False
        await asyncio.wait_for(changed.wait(), PATIENCE_S)
        await asyncio.sleep(0.1)
        changed.clear()
        await store.commit([], [Put("thing/a", b"1")])
        await asyncio.wait_for(changed.wait(), PATIENCE_S)
    await stop(waking)
