"""The store: a small, strongly ordered map that the whole cluster shares.

Methods are sorted by what they must guarantee. Keys are relative ("owner/busybox"); the implementation adds
its own prefix. Two implementations pass the same contract suite (tests/contract/test_store.py):
`etcd.EtcdStore` (etcd's v3 API) and `memory.MemoryStore` (ships; virtual time, thousands of nodes)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from veery.errors import Failed


class StoreUnavailable(Failed):
    """The store gave no answer within its deadline; for a read or a lease nothing has changed."""


class StoreRestored(StoreUnavailable):
    """The store answers, and it is not the one that this node knows: it was restored from a backup, or its members
    differ. What it says is not acted on. See veery.cluster.trust."""


class Compacted(Failed):
    """A watch asked for changes that the store no longer keeps: scan again, and watch from there."""

    def __init__(self, prefix: str, after: int) -> None:
        super().__init__(f"compacted: changes of {prefix!r} after revision {after} are gone", hint="scan again")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it stands. `revision` is that of its last change, `created` that of its creation."""

    key: str
    value: bytes
    revision: int
    created: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys under a prefix, at one revision of the whole store, sorted by key."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A condition: `key` was last changed at `revision`; 0 means: `key` does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """An operation: set `key`; bound to `lease` when that is not 0."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """An operation: remove `key`; with `prefix`, every key that begins with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome of a transaction: whether its conditions held, and the store's revision after it."""

    held: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch: `entry` is None where the key was removed (`revision` is the change's)."""

    key: str
    entry: Entry | None
    revision: int


class Store(Protocol):
    """What the cluster's memory promises. Every call ends within its own deadline (seconds, set when built)."""

    async def get(self, key: str) -> Entry | None:
        """The key as it stands now (linearizable). Raises StoreUnavailable."""
        ...

    async def revision(self) -> int:
        """The store's revision now (linearizable), at next to no cost. Raises StoreUnavailable."""
        ...

    async def scan(self, prefix: str) -> Snapshot:
        """All keys under `prefix` at one revision (linearizable). Raises StoreUnavailable."""
        ...

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """Do all `operations` if all `conditions` hold, at one revision; else do nothing and say so.

        Raises StoreUnavailable when it surely was not sent or not taken, OutcomeUnknown when the answer was
        lost: it may or may not have been done; Failed when the operations are impossible (a key named twice,
        a lease that has ended, a full store): nothing was done."""
        ...

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """Every change under `prefix` with a revision above `after`, in order, none left out, for ever:
        it reconnects by itself. Those of one revision come together: who waits for nothing else between two of
        them has seen all or none. Raises Compacted when `after` is too old: scan again."""
        ...

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; its id. Raises StoreUnavailable."""
        ...

    async def keep(self, lease: int) -> float:
        """Renew `lease`; the seconds it is good for from the moment the call was made, 0 if it has ended.
        A hint: whoever holds it judges by its own monotonic clock. Raises StoreUnavailable."""
        ...

    async def revoke(self, lease: int) -> None:
        """End `lease` and remove the keys bound to it. Raises StoreUnavailable."""
        ...

    def generation(self) -> int:
        """How often the store was found to be another one than before. What was read at an earlier generation is
        void: a watch that was begun then raises Compacted."""
        ...

    async def close(self) -> None:
        """Let go of connections; watches end."""
        ...
