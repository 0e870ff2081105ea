"""A copy of the whole store, kept by one watch: who looks at all of it again and again asks the store for next to
nothing while nothing changes, however much there is in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType

from veery.cluster.store import Change, Compacted, Entry, Snapshot, Store
from veery.host.tasks import stop

LATE = 0.3  # seconds that a look waits for the watch; then the store is read whole
PATIENCE = 3  # looks for which a watch may be late without a word of it, before another is begun

NONE: Mapping[str, Entry] = MappingProxyType({})


class WatchCache:
    """The store's entries at one revision. `run` is somebody's task.

    Without `run`, or while its watch is late, `current` reads the store whole: slower, never wrong."""

    def __init__(self, store: Store, unseen: tuple[str, ...] = ()) -> None:
        """Keys that begin with one of `unseen` are not kept."""
        self._store, self._unseen = store, unseen
        self._rooms: dict[str, dict[str, Entry]] = {}  # by the key's part up to the first '/', that included
        self._base = 0  # the revision of the last snapshot; what the watch tells of earlier ones is old
        self._anew = asyncio.Event()  # a snapshot was taken: the watch begins from there
        self._news = asyncio.Event()
        self._late = 0
        self._turn = asyncio.Lock()
        self._generation = store.generation()
        self.revision = 0

    def under(self, prefix: str) -> Mapping[str, Entry]:
        """The entries whose keys begin with `prefix` ("owner/"), by key. Valid until the next wait."""
        return self._rooms.get(prefix, NONE)

    def get(self, key: str) -> Entry | None:
        """One entry."""
        return self._rooms.get(_room(key), NONE).get(key)

    async def run(self) -> None:
        """Follow the store, for ever. A watch that cannot go on, or lags, begins anew, perhaps at another member."""
        async with asyncio.TaskGroup() as tasks:
            following: asyncio.Task[None] | None = None
            while True:
                await self._anew.wait()
                self._anew.clear()
                if following is not None:
                    await stop(following)
                following = tasks.create_task(self._follow(), name="mirror's watch")

    async def current(self) -> None:
        """Returns when everything is here that was in the store when this was called. Raises StoreUnavailable: one
        linearizable read is made each time, so a store that is dead is noticed here."""
        async with self._turn:
            await self._current()

    async def _current(self) -> None:
        before = self.revision
        now = await self._store.revision()
        if now < before or self._generation != self._store.generation():
            # Another store, or one restored from a backup: nothing that was seen is true.
            self.revision, self._generation, before = 0, self._store.generation(), 0
        elif before and await self._reaches(now):
            return
        snapshot = await self._store.scan("")
        self._late += 1
        if not self.revision or self._late >= PATIENCE:
            self._anew.set()
            self._late = 0
        if snapshot.revision > self.revision:
            self._take(snapshot)

    async def _reaches(self, revision: int) -> bool:
        """Whether the watch has told of everything up to `revision`, now or soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE):
                while 0 < self.revision < revision:
                    self._news.clear()
                    await self._news.wait()
        return self.revision >= revision

    async def _follow(self) -> None:
        try:
            async with contextlib.aclosing(self._store.watch("", self.revision)) as changes:
                async for change in changes:  # those of one revision come without a wait between them
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
        self._late = 0  # only here: while nothing changes a dead watch is as good as a living one
        self._news.set()

    def _keep(self, entry: Entry) -> None:
        if not entry.key.startswith(self._unseen):
            self._rooms.setdefault(_room(entry.key), {})[entry.key] = entry


def _room(key: str) -> str:
    first, slash, _ = key.partition("/")
    return first + slash if slash else ""
