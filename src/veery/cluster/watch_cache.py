"""Cache of the whole store, fed by one watch, so that repeated reads of all keys cost the store very little."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType

from veery.cluster.store import Change, Compacted, Entry, Snapshot, Store
from veery.host.tasks import stop

WATCH_TIMEOUT_S = 0.3  # `current` waits this long for the watch; then it reads the whole store
LATE_READS_MAX = 3  # full reads in a row for which the watch may be late before it is restarted

NONE: Mapping[str, Entry] = MappingProxyType({})


class WatchCache:
    """The store's entries at one revision. The caller runs `run` as a task.

    Without `run`, or while its watch is late, `current` reads the whole store: slower, never wrong."""

    def __init__(self, store: Store, unseen: tuple[str, ...] = ()) -> None:
        """The cache leaves out keys that begin with one of `unseen`."""
        self._store, self._unseen = store, unseen
        self._rooms: dict[str, dict[str, Entry]] = {}  # by the key's part up to and with the first '/'
        self._base = 0  # the revision of the last snapshot; changes before it are old
        self._restart = asyncio.Event()  # a snapshot was taken: the watch restarts from there
        self._news = asyncio.Event()
        self._late = 0
        self._turn = asyncio.Lock()
        self._generation = store.generation()
        self.revision = 0

    def under(self, prefix: str) -> Mapping[str, Entry]:
        """Return the entries with `prefix` ("owner/"), by key. The result is valid until the next wait."""
        return self._rooms.get(prefix, NONE)

    def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None."""
        return self._rooms.get(_room(key), NONE).get(key)

    async def run(self) -> None:
        """Follow the store until cancelled. A broken or late watch restarts, perhaps at another member."""
        async with asyncio.TaskGroup() as tasks:
            following: asyncio.Task[None] | None = None
            while True:
                await self._restart.wait()
                self._restart.clear()
                if following is not None:
                    await stop(following)
                following = tasks.create_task(self._follow(), name="watch of the store")

    async def current(self) -> None:
        """Return once the cache has everything that was in the store at the call. Each call makes one linearizable
        read, so it notices a dead store. Raises StoreUnavailable."""
        async with self._turn:
            await self._current()

    async def _current(self) -> None:
        before = self.revision
        now = await self._store.revision()
        if now < before or self._generation != self._store.generation():
            # It is another store, or one restored from a backup: the cached entries are void.
            self.revision, self._generation, before = 0, self._store.generation(), 0
        elif before and await self._reaches(now):
            return
        snapshot = await self._store.scan("")
        self._late += 1
        if not self.revision or self._late >= LATE_READS_MAX:
            self._restart.set()
            self._late = 0
        if snapshot.revision > self.revision:
            self._take(snapshot)

    async def _reaches(self, revision: int) -> bool:
        """Return whether the watch has delivered everything up to `revision`; wait a short time for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                while 0 < self.revision < revision:
                    self._news.clear()
                    await self._news.wait()
        return self.revision >= revision

    async def _follow(self) -> None:
        try:
            async with contextlib.aclosing(self._store.watch("", self.revision)) as changes:
                async for change in changes:  # the changes of one revision come without a wait between them
                    self._apply(change)
        except Compacted:
            self.revision = 0
            self._news.set()

    def _take(self, snapshot: Snapshot) -> None:
        self._rooms = {}
        for entry in snapshot.entries:
            self._keep(entry)
        self._base = self.revision = snapshot.revision

    def _apply(self, change: Change) -> None:
        if change.revision <= self._base or not self.revision:
            return
        if change.entry is not None:
            self._keep(change.entry)
        else:
            self._rooms.get(_room(change.key), {}).pop(change.key, None)
        self.revision = change.revision
        self._late = 0  # only here: while nothing changes, a dead watch does no harm
        self._news.set()

    def _keep(self, entry: Entry) -> None:
        if not entry.key.startswith(self._unseen):
            self._rooms.setdefault(_room(entry.key), {})[entry.key] = entry


def _room(key: str) -> str:
    first, slash, _ = key.partition("/")
    return first + slash if slash else ""
