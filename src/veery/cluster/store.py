"""The store: a small, strongly ordered map that the whole cluster shares.

The methods are sorted by their guarantees. Keys are relative ("owner/busybox"); the implementation adds its own
prefix. Two implementations pass the same contract suite (tests/contract/test_store.py): `etcd.EtcdStore` (etcd's v3
API) and `memory.MemoryStore` (in the package; for virtual time and thousands of nodes)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from veery.errors import Failed, Unavailable


class StoreUnavailable(Unavailable):
    """Raised when the store gave no answer within its deadline; for a read or a lease nothing has changed."""


class StoreRestored(StoreUnavailable):
    """Raised when the store that answers is not the one that this node knows: it was restored from a backup, or its
    members differ. Nothing that it says is acted on. See veery.cluster.trust."""


class Compacted(Failed):
    """Raised when a watch needs changes that the store no longer keeps: scan again, and watch from there."""

    def __init__(self, prefix: str, after: int) -> None:
        super().__init__(f"compacted: changes of {prefix!r} after revision {after} are gone", hint="scan again")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key and its value. `revision` is the revision of its last change, `created` that of its creation."""

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
    """An operation: set `key`, bound to `lease` if that is not 0."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """An operation: delete `key`; with `prefix`, every key that begins with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome of a transaction: whether its conditions held, and the store's revision after it."""

    held: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch: `entry` is None if the key was deleted (`revision` is the change's)."""

    key: str
    entry: Entry | None
    revision: int


class Store(Protocol):
    """The contract of the cluster's store. Every call ends within its own deadline (seconds, set at construction)."""

    async def get(self, key: str) -> Entry | None:
        """Return the present entry of `key`, or None (linearizable). Raises StoreUnavailable."""
        ...

    async def revision(self) -> int:
        """Return the store's present revision (linearizable); this is cheap. Raises StoreUnavailable."""
        ...

    async def scan(self, prefix: str) -> Snapshot:
        """Return all keys under `prefix` at one revision (linearizable). Raises StoreUnavailable."""
        ...

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """Do all `operations` at one revision if all `conditions` hold; otherwise do nothing. The result tells which.

        Raises StoreUnavailable if the request was not sent or not taken. Raises OutcomeUnknown if the answer was lost:
        it may or may not have been done. Raises Failed if the operations are impossible (a key named twice, an ended
        lease, a full store): nothing was done."""
        ...

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """Yield every change under `prefix` with a revision above `after`, in order and without gaps. The watch
        reconnects by itself and has no end. The changes of one revision come without a wait between them: a reader
        that waits for nothing else has seen all of them or none. Raises Compacted if `after` is too old: scan again."""
        ...

    async def grant(self, ttl: int) -> int:
        """Make a lease of `ttl` seconds; return its id. Raises StoreUnavailable."""
        ...

    async def keep(self, lease: int) -> float:
        """Renew `lease`; return the seconds for which it is valid from the moment of the call, 0 if it has ended.
        The value is a hint: the holder judges by its own monotonic clock. Raises StoreUnavailable."""
        ...

    async def revoke(self, lease: int) -> None:
        """End `lease` and delete the keys bound to it. Raises StoreUnavailable."""
        ...

    def generation(self) -> int:
        """Return how often this node found that the store is another one than before. Values read at an earlier
        generation are void: a watch from that time raises Compacted."""
        ...

    async def close(self) -> None:
        """Close the connections; watches end."""
        ...
