"""Events: what the brain did and found. The leader writes them to the store in batches and drops the oldest."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from veery.cluster.keys import EVENTS, Unreadable
from veery.cluster.store import Compacted, Delete, Put, Store, Unchanged
from veery.model.ha import Event

EVENTS_PER_WRITE = 50  # events in one transaction
KEEP_SLACK = 100  # events above `keep` before the oldest are dropped


class Journal:
    """Collects events and writes them; `keep` of them stay in the store."""

    def __init__(self, store: Store, *, keep: int = 2000) -> None:
        self._store, self._keep = store, keep
        self._waiting: list[Event] = []
        self._count: int | None = None  # events in the store, as far as this leader knows
        self._last = 0

    def add(self, event: Event) -> None:
        """Queue `event` for the next `flush`. If too many wait, the oldest are dropped."""
        self._waiting = [*self._waiting, event][-self._keep :]

    async def flush(self, guard: Unchanged) -> None:
        """Write the queued events while `guard` holds. Raises StoreUnavailable, or OutcomeUnknown: the next call writes
        them again under the same numbers."""
        if not self._waiting:
            return
        if self._count is None:
            self._count = len((await self._store.scan(EVENTS.prefix)).entries)
        batch = self._waiting[:EVENTS_PER_WRITE]
        operations: list[Put | Delete] = []
        number = self._last
        for event in batch:
            number = max(number + 1, int(event.at * 1_000_000))
            operations.append(EVENTS.put(f"{number:020}", event))
        done = await self._store.commit([guard], operations)
        self._last = number
        self._waiting = self._waiting[len(batch) :]
        if done.held:
            self._count += len(batch)
        if self._count > self._keep + KEEP_SLACK:
            await self._drop(guard)

    async def _drop(self, guard: Unchanged) -> None:
        entries = (await self._store.scan(EVENTS.prefix)).entries
        old = entries[: max(0, len(entries) - self._keep)]
        if old:
            await self._store.commit([guard], [Delete(entry.key) for entry in old[:KEEP_SLACK]])
        self._count = len(entries) - len(old[:KEEP_SLACK])


async def last(store: Store, count: int) -> tuple[Event, ...]:
    """Return the last `count` events, oldest first. Raises StoreUnavailable."""
    entries = (await store.scan(EVENTS.prefix)).entries
    found = []
    for entry in entries[max(0, len(entries) - count) :]:
        with contextlib.suppress(Unreadable):  # written by a newer veery
            found.append(EVENTS.value(entry))
    return tuple(found)


async def follow(store: Store) -> AsyncGenerator[Event, None]:
    """Yield every event from now on. Raises StoreUnavailable when it begins."""
    after = (await store.scan(EVENTS.prefix)).revision
    while True:
        try:
            async for change in store.watch(EVENTS.prefix, after):
                after = change.revision
                if change.entry is None:
                    continue
                with contextlib.suppress(Unreadable):
                    yield EVENTS.value(change.entry)
            return
        except Compacted:
            after = (await store.scan(EVENTS.prefix)).revision
