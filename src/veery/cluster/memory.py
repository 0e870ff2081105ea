"""A store in memory for simulations and tests; with a virtual clock it runs in virtual time.

It passes the same contract as the store in etcd (tests/contract/test_store.py). The caller orders its faults:
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

# A loop treats a shorter wait as due, below its clock's resolution; virtual time would then not advance.
SHORTEST_WAIT_S = 2e-9


@dataclass(slots=True)
class _Lease:
    ttl: int
    ends: float


@dataclass(slots=True)
class _Data:
    """The data that all views of one store share."""

    clock: Clock
    entries: dict[str, Entry] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    leases: dict[int, _Lease] = field(default_factory=dict)
    watchers: dict[asyncio.Event, None] = field(default_factory=dict)  # ordered: a simulation must be repeatable
    revision: int = 1
    compacted: int = 0
    last_lease: int = 0
    cluster: str = "memory"

    def wake(self) -> None:
        for event in self.watchers:
            event.set()

    def apply(self, operations: Sequence[Put | Delete]) -> None:
        """Apply `operations` at one new revision; if nothing changes, the revision stays."""
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
        """End the leases that have expired."""
        now = self.clock.now()
        for lease in [number for number, each in self.leases.items() if each.ends <= now]:
            self.end(lease)

    def end(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None:
            self.apply([Delete(key) for key, entry in self.entries.items() if entry.lease == lease])

    def check(self, operations: Sequence[Put | Delete]) -> None:
        """Raise Failed where etcd would refuse: a key put twice, or put and deleted; a lease that does not exist."""
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
    """A copy of the data, for `MemoryStore.restore`."""

    entries: dict[str, Entry]
    leases: dict[int, int]  # the TTL of each lease, seconds
    revision: int


class MemoryStore:
    """A `Store` whose leases expire by `clock`. `view` gives a second node its own access to the same data."""

    def __init__(self, clock: Clock) -> None:
        self._data = _Data(clock)
        self._trust: Trust | None = None
        self._available = True
        self._quorum = True
        self._closed = False
        self._lose: bool | None = None

    def view(self, trust: Trust | None = None) -> MemoryStore:
        """Return another node's view of the same data, which is cut off and closed on its own. `trust`: that node's."""
        other = MemoryStore(self._data.clock)
        other._data, other._trust = self._data, trust
        return other

    def backup(self) -> Backup:
        """Return a copy of the present data."""
        data = self._data
        return Backup(dict(data.entries), {number: each.ttl for number, each in data.leases.items()}, data.revision)

    def restore(self, backup: Backup, *, cluster: str = "") -> None:
        """Put the data back as a restored etcd has them: each lease begins again. `cluster`: the new cluster id, if
        any."""
        data, now = self._data, self._data.clock.now()
        data.entries, data.revision = dict(backup.entries), backup.revision
        data.leases = {number: _Lease(ttl, now + ttl) for number, ttl in backup.leases.items()}
        data.history, data.compacted = [], 0
        data.cluster = cluster or data.cluster
        data.wake()

    async def look(self) -> None:
        """Have the view's trust judge the store's present state. Raises StoreUnavailable."""
        if self._trust is not None:
            await self._reach()
            self._judge(self._trust)

    async def mark(self, trust: Trust, why: str, epoch: float) -> None:
        """Write the doubt `why` into the store. Raises StoreUnavailable."""
        await self._reach()
        data = self._data
        data.apply(doubt(data.entries.get(INCARNATION), trust.node, why, epoch))

    def set_available(self, available: bool) -> None:
        """Cut this view off (every call raises StoreUnavailable, watches fall silent), or connect it again."""
        self._available = available
        self._data.wake()

    def set_quorum(self, quorum: bool) -> None:
        """Take this view's quorum away, or give it back. Without quorum a read raises StoreUnavailable. A commit is not
        done and raises OutcomeUnknown: a real member accepts a write that it cannot carry out."""
        self._quorum = quorum

    def lose_next_answer(self, *, done: bool) -> None:
        """Make the next commit raise OutcomeUnknown, either after it was tried (`done`) or without a try."""
        self._lose = done

    def compact(self, revision: int) -> None:
        """Forget all changes up to `revision`."""
        self._data.compacted = max(self._data.compacted, revision)
        self._data.history = [change for change in self._data.history if change.revision > revision]

    async def get(self, key: str) -> Entry | None:
        """Implement Store.get."""
        sent = await self._ask()
        self._heard(sent)
        return self._data.entries.get(key)

    async def revision(self) -> int:
        """Implement Store.revision."""
        sent = await self._ask()
        if self._trust is not None:
            self._judge(self._trust)
        self._heard(sent)
        return self._data.revision

    async def scan(self, prefix: str) -> Snapshot:
        """Implement Store.scan."""
        self._heard(await self._ask())
        data = self._data
        return Snapshot(
            tuple(entry for key, entry in sorted(data.entries.items()) if key.startswith(prefix)), data.revision
        )

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """Implement Store.commit."""
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
        """Return True if the incarnation is the one that `trust` knows: a condition of each transaction. Raises
        StoreRestored if it is not; nothing was done."""
        if self._revision(INCARNATION) == trust.key:
            return True
        before = trust.generation
        self._judge(trust)
        trust.require()
        if trust.generation != before:
            raise StoreRestored("the store was adopted meanwhile", hint="try again")
        return True

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """Implement Store.watch."""
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
        """Implement Store.grant."""
        await self._ask()
        data = self._data
        data.last_lease += 1
        data.leases[data.last_lease] = _Lease(ttl, data.clock.now() + ttl)
        data.wake()
        return data.last_lease

    async def keep(self, lease: int) -> float:
        """Implement Store.keep."""
        await self._ask()
        found = self._data.leases.get(lease)
        if found is None:
            return 0.0
        found.ends = self._data.clock.now() + found.ttl
        return float(found.ttl)

    async def revoke(self, lease: int) -> None:
        """Implement Store.revoke."""
        await self._ask()
        self._data.end(lease)

    def generation(self) -> int:
        """Implement Store.generation."""
        return self._trust.generation if self._trust else 0

    async def close(self) -> None:
        """Implement Store.close."""
        self._closed = True
        self._data.wake()

    async def _reach(self) -> None:
        """Behave like a call to a remote store: let other tasks run, and raise StoreUnavailable if it is cut off."""
        await asyncio.sleep(0)
        if not self._available or not self._quorum or self._closed:
            raise StoreUnavailable("the store does not answer", hint="this view of the store is cut off")
        self._data.expire()

    async def _ask(self) -> Sent | None:
        """Do the same as `_reach`, and return what the answer must reach. Also raises StoreRestored."""
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
        """Return when a key changed, or when the next lease expires."""
        data = self._data
        ends = min((lease.ends for lease in data.leases.values()), default=None)
        if ends is None or not self._available:
            await event.wait()
            return
        left = ends - data.clock.now()
        waits = [
            asyncio.ensure_future(event.wait()),
            asyncio.ensure_future(data.clock.sleep(max(left, SHORTEST_WAIT_S) if left > 0 else 0.0)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
