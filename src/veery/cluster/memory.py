"""A store in memory: what simulations and tests run on, by virtual time when given such a clock.

It keeps the same promises as etcd's (tests/contract/test_store.py). Its faults are ordered, not left to chance:
`set_available` cuts this view off, `set_quorum` takes its quorum away, `lose_next_answer` loses one commit's answer."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from veery.cluster.keys import INCARNATION
from veery.cluster.store import (
    Change,
    Committed,
    Compacted,
    Delete,
    Entry,
    Put,
    Snapshot,
    StoreRestored,
    StoreUnavailable,
    Unchanged,
)
from veery.cluster.trust import Sent, Standing, Trust, doubt, sight
from veery.errors import Failed, OutcomeUnknown
from veery.host.clock import Clock

LEAST = 2e-9  # seconds: a loop takes what is nearer than its clock can tell for due, and virtual time would stand still


@dataclass(slots=True)
class _Lease:
    ttl: int
    ends: float


@dataclass(slots=True)
class _Data:
    """What all views of one store share."""

    clock: Clock
    entries: dict[str, Entry] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    leases: dict[int, _Lease] = field(default_factory=dict)
    watchers: dict[asyncio.Event, None] = field(default_factory=dict)  # in order: a simulation is to go the same way
    revision: int = 1
    compacted: int = 0
    last_lease: int = 0
    cluster: str = "memory"

    def wake(self) -> None:
        for event in self.watchers:
            event.set()

    def apply(self, operations: Sequence[Put | Delete]) -> None:
        """Do `operations` at one new revision; none is used up where nothing changes."""
        revision, changes = self.revision + 1, []
        for operation in operations:
            if isinstance(operation, Put):
                old = self.entries.get(operation.key)
                created = old.created if old else revision
                entry = Entry(operation.key, operation.value, revision, created, operation.lease)
                self.entries[operation.key] = entry
                changes.append(Change(operation.key, entry, revision))
                continue
            for key in self.matching(operation):
                del self.entries[key]
                changes.append(Change(key, None, revision))
        if changes:
            self.revision = revision
            self.history += changes
            self.wake()

    def matching(self, operation: Delete) -> list[str]:
        if operation.prefix:
            return sorted(key for key in self.entries if key.startswith(operation.key))
        return [operation.key] if operation.key in self.entries else []

    def expire(self) -> None:
        """End the leases whose time has come."""
        now = self.clock.now()
        for lease in [number for number, each in self.leases.items() if each.ends <= now]:
            self.end(lease)

    def end(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None:
            self.apply([Delete(key) for key, entry in self.entries.items() if entry.lease == lease])

    def check(self, operations: Sequence[Put | Delete]) -> None:
        """Raise Failed where etcd would refuse: a key put twice, or put and removed; a lease that is not there."""
        keys: set[str] = set()
        for put in operations:
            if isinstance(put, Put):
                if put.key in keys:
                    raise Failed(f"the store refuses: {put.key} is named twice in one transaction")
                keys.add(put.key)
                if put.lease and put.lease not in self.leases:
                    raise Failed("the store refuses: the lease has ended")
        for gone in operations:
            if isinstance(gone, Delete) and any(
                key == gone.key or (gone.prefix and key.startswith(gone.key)) for key in keys
            ):
                raise Failed(f"the store refuses: {gone.key} is named twice in one transaction")


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of the data as it was, for `MemoryStore.restore`."""

    entries: dict[str, Entry]
    leases: dict[int, int]  # and how long each lasts
    revision: int


class MemoryStore:
    """A `Store` whose leases are judged by `clock`. `view` gives a second node its own access to the same data."""

    def __init__(self, clock: Clock) -> None:
        self._data = _Data(clock)
        self._trust: Trust | None = None
        self._available = True
        self._quorum = True
        self._closed = False
        self._lose: bool | None = None

    def view(self, trust: Trust | None = None) -> MemoryStore:
        """The same data, seen by another node: cut off and closed on its own. `trust`: that node's."""
        other = MemoryStore(self._data.clock)
        other._data, other._trust = self._data, trust
        return other

    def backup(self) -> Backup:
        """The data as they are now."""
        data = self._data
        return Backup(dict(data.entries), {number: each.ttl for number, each in data.leases.items()}, data.revision)

    def restore(self, backup: Backup, *, cluster: str = "") -> None:
        """Put the data back as they were, as a restored etcd has them: each lease begins anew. `cluster`: the new
        cluster id, if it gets one."""
        data, now = self._data, self._data.clock.now()
        data.entries, data.revision = dict(backup.entries), backup.revision
        data.leases = {number: _Lease(ttl, now + ttl) for number, ttl in backup.leases.items()}
        data.history, data.compacted = [], 0
        data.cluster = cluster or data.cluster
        data.wake()

    async def look(self) -> None:
        """Have the view's trust judge the store as it is. Raises StoreUnavailable."""
        if self._trust is not None:
            await self._reach()
            self._judge(self._trust)

    async def mark(self, trust: Trust, why: str, epoch: float) -> None:
        """Write the doubt `why` into the store. Raises StoreUnavailable."""
        await self._reach()
        data = self._data
        data.apply(doubt(data.entries.get(INCARNATION), trust.node, why, epoch))

    def set_available(self, available: bool) -> None:
        """Cut this view off from the data (every call raises StoreUnavailable, watches fall silent), or let it back."""
        self._available = available
        self._data.wake()

    def set_quorum(self, quorum: bool) -> None:
        """Take this view's quorum away, or give it back. Without it a read raises StoreUnavailable, and a commit, which
        is not done, OutcomeUnknown: so a store behaves whose member takes a write that it cannot carry out."""
        self._quorum = quorum

    def lose_next_answer(self, *, done: bool) -> None:
        """Let the next commit raise OutcomeUnknown, after having been tried (`done`) or not."""
        self._lose = done

    def compact(self, revision: int) -> None:
        """Forget all changes up to `revision`."""
        self._data.compacted = max(self._data.compacted, revision)
        self._data.history = [change for change in self._data.history if change.revision > revision]

    async def get(self, key: str) -> Entry | None:
        """As Store.get."""
        sent = await self._ask()
        self._heard(sent)
        return self._data.entries.get(key)

    async def revision(self) -> int:
        """As Store.revision."""
        sent = await self._ask()
        if self._trust is not None:
            self._judge(self._trust)
        self._heard(sent)
        return self._data.revision

    async def scan(self, prefix: str) -> Snapshot:
        """As Store.scan."""
        self._heard(await self._ask())
        data = self._data
        return Snapshot(
            tuple(entry for key, entry in sorted(data.entries.items()) if key.startswith(prefix)), data.revision
        )

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """As Store.commit."""
        if not self._quorum:
            await asyncio.sleep(0)
            raise OutcomeUnknown("the store's answer was lost")
        sent = await self._ask()
        lose, self._lose = self._lose, None
        if lose is False:
            raise OutcomeUnknown("the store's answer was lost")
        data = self._data
        data.check(operations)
        held = all(self._revision(each.key) == each.revision for each in conditions)
        if held and (self._trust is None or self._same(self._trust)):
            data.apply(operations)
        if lose:
            raise OutcomeUnknown("the store's answer was lost")
        try:
            self._heard(sent.after(operations, done=held) if sent else None)
        except StoreRestored as error:
            raise (OutcomeUnknown(error.message, hint=error.hint) if held else error) from error
        return Committed(held, data.revision)

    def _same(self, trust: Trust) -> bool:
        """Whether the incarnation is the one that `trust` knows, as a condition of each transaction. Raises
        StoreRestored where it is not: nothing was done."""
        if self._revision(INCARNATION) == trust.key:
            return True
        before = trust.generation
        self._judge(trust)
        trust.require()
        if trust.generation != before:
            raise StoreRestored("the store was adopted meanwhile", hint="try again")
        return True

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """As Store.watch."""
        data, event, generation = self._data, asyncio.Event(), self.generation()
        data.watchers[event] = None
        try:
            while not self._closed:
                event.clear()
                if self._available:
                    data.expire()
                    if after < data.compacted or generation != self.generation():
                        raise Compacted(prefix, after)
                    start = bisect.bisect_right(data.history, after, key=lambda change: change.revision)
                    news, after = data.history[start:], max(after, data.revision)
                    for change in news:
                        if change.key.startswith(prefix):
                            yield change
                    if data.revision > after:
                        continue
                await self._news(event)
        finally:
            data.watchers.pop(event, None)

    async def grant(self, ttl: int) -> int:
        """As Store.grant."""
        await self._ask()
        data = self._data
        data.last_lease += 1
        data.leases[data.last_lease] = _Lease(ttl, data.clock.now() + ttl)
        data.wake()
        return data.last_lease

    async def keep(self, lease: int) -> float:
        """As Store.keep."""
        await self._ask()
        found = self._data.leases.get(lease)
        if found is None:
            return 0.0
        found.ends = self._data.clock.now() + found.ttl
        return float(found.ttl)

    async def revoke(self, lease: int) -> None:
        """As Store.revoke."""
        await self._ask()
        self._data.end(lease)

    def generation(self) -> int:
        """As Store.generation."""
        return self._trust.generation if self._trust else 0

    async def close(self) -> None:
        """As Store.close."""
        self._closed = True
        self._data.wake()

    async def _reach(self) -> None:
        """What a call to a store some way off does first: others run meanwhile, and it may fail."""
        await asyncio.sleep(0)
        if not self._available or not self._quorum or self._closed:
            raise StoreUnavailable("the store does not answer", hint="this view of it is cut off")
        self._data.expire()

    async def _ask(self) -> Sent | None:
        """As `_reach`; what the answer must reach. Raises StoreRestored too."""
        await self._reach()
        if self._trust is None:
            return None
        if self._trust.standing is Standing.UNKNOWN:
            self._judge(self._trust)
        return self._trust.sent()

    def _heard(self, sent: Sent | None) -> None:
        if self._trust is not None and sent is not None:
            self._trust.heard(sent, self._data.cluster, self._data.revision)

    def _judge(self, trust: Trust) -> None:
        data = self._data
        trust.look(trust.looked(), sight(data.cluster, data.revision, data.entries.get(INCARNATION)))

    def _revision(self, key: str) -> int:
        entry = self._data.entries.get(key)
        return entry.revision if entry else 0

    async def _news(self, event: asyncio.Event) -> None:
        """Return when something was changed, or when the next lease runs out."""
        data = self._data
        ends = min((lease.ends for lease in data.leases.values()), default=None)
        if ends is None or not self._available:
            await event.wait()
            return
        left = ends - data.clock.now()
        waits = [
            asyncio.ensure_future(event.wait()),
            asyncio.ensure_future(data.clock.sleep(max(left, LEAST) if left > 0 else 0.0)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
