"""Trust in the store: the check that it is still the store that this node knows.

A store that was restored from a backup answers as before, but with older owner keys. Acting on them would start a
second copy of a domain, and destroy the right one. Each node remembers the store in STATE/store.json: etcd's cluster
id, the key `incarnation`, and the highest revision seen. If an answer does not match, every call raises StoreRestored,
as if the store did not answer. The first node that finds a mismatch writes its doubt into the key `incarnation`. Every
transaction has that key as a condition, so nodes that cannot find the mismatch themselves stop as well.

`veery cluster adopt` (veery.cluster.adopt) resolves the doubt: it writes a new incarnation.

A power loss of the machine loses a revision that was seen but not yet written. Its domains are lost with it. As a
result this node alone may not notice a restore to a point within the last WRITE_INTERVAL_S seconds. A crash of the
daemon alone loses nothing that was written."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from veery.cluster.keys import EVENTS, INCARNATION, INCARNATIONS, Unreadable
from veery.cluster.store import Delete, Entry, Put, StoreRestored
from veery.errors import Failed, VeeryError
from veery.host.clock import Clock
from veery.host.files import clear_partial, write_atomic
from veery.host.log import decision
from veery.model import codec
from veery.model.cluster import Incarnation
from veery.model.ha import Event, Level

log = logging.getLogger(__name__)

ADOPT_HINT = "veery cluster adopt --plan shows where the domains run; see docs/recovery.md"
WRITE_INTERVAL_S = 2.0  # between two writes of the highest revision
LOOK_INTERVAL_S = 2.0  # between two reads of the incarnation
DOUBT_INTERVAL_S = 1.0  # the same while the store is doubted
FRESH_S = 4.0  # for this time the last reading of the doubt in the store counts


class Standing(StrEnum):
    """This node's judgement of the store that answers."""

    UNKNOWN = "unknown"  # this daemon has no answer from it yet
    FITS = "fits"  # it is the store that this node knows
    RESTORED = "restored"  # it went back, or is another store: nothing that it says is acted on


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A node's memory of the store: STATE/store.json. `cluster`: etcd's cluster id. `incarnation`: the last known id,
    "" if the store had none. `before`: the ids of its predecessors."""

    cluster: str
    incarnation: str
    revision: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One reading of the store: its cluster id, its revision and its incarnation."""

    cluster: str
    revision: int
    incarnation: Incarnation | None


@dataclass(frozen=True, slots=True)
class Sent:
    """The state known when a request was sent: linearizable answers are never older than that."""

    generation: int
    revision: int

    def after(self, operations: Sequence[Put | Delete], *, done: bool) -> Sent:
        """Return what the answer to a transaction must reach: a transaction that wrote something has its own
        revision."""
        wrote = done and any(isinstance(each, Put) for each in operations)
        return Sent(self.generation, self.revision + 1) if wrote else self


class Memory(Protocol):
    """Storage in which `Seen` outlives the daemon."""

    def load(self) -> Seen | None:
        """Return the last saved value, or None."""
        ...

    async def save(self, seen: Seen) -> None:
        """Write `seen`; it is on the disk when this returns. Raises OSError."""
        ...


class SeenFile:
    """The production `Memory`: one small file."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist."""
        self._path = path

    def load(self) -> Seen | None:
        """Implement Memory.load; None for an unreadable file: the node then accepts the store as it is."""
        clear_partial(self._path)
        try:
            return codec.decode(self._path.read_bytes(), Seen)
        except FileNotFoundError:
            return None
        except (OSError, Failed) as error:
            log.error("%s cannot be read, so the store is accepted as it is: %s", self._path, error)
            return None

    async def save(self, seen: Seen) -> None:
        """Implement Memory.save."""
        await asyncio.to_thread(write_atomic, self._path, codec.encode(seen), sync=True)


def successor(seen: Seen, now: Incarnation | None) -> bool:
    """Return whether `now` succeeded the incarnation in `seen` by an adoption."""
    return now is not None and not now.doubt and seen.incarnation != now.id and seen.incarnation in now.before


def misfit(seen: Seen | None, sight: Sight) -> str:
    """Return in one sentence why the store in `sight` is not the one in `seen`; "" if it is. Pure."""
    now = sight.incarnation
    if now is not None and now.doubt:
        return now.doubt
    if seen is None or successor(seen, now):
        return ""
    if seen.incarnation and now is None:
        return "the store has lost its incarnation"
    if seen.incarnation and now is not None and now.id != seen.incarnation:
        return f"the store is incarnation {now.id}, this node knows {seen.incarnation}"
    if sight.cluster != seen.cluster:
        return f"etcd's cluster id is {sight.cluster}, this node knows {seen.cluster}"
    if sight.revision < seen.revision:
        return _back(sight.revision, seen.revision)
    return ""


class Trust:
    """The trust in the store. Each daemon has one, shared by all users of the store. `run` is its task."""

    def __init__(self, node: str, memory: Memory, clock: Clock) -> None:
        """`node` is this node's name. No request is sent before `run` or a first call to the store."""
        self.node, self._memory, self._clock = node, memory, clock
        self._seen = memory.load()
        self._saved = self._seen
        self._dirty = asyncio.Event()
        self._finding = ""  # this node's own doubt, until it is written into the store
        self._doubt_seen = clock.now() - FRESH_S  # when the doubt was last read from the store
        self.standing = Standing.UNKNOWN
        self.reason = ""
        self.generation = 0
        self.key = 0  # the revision of the key `incarnation`: the condition of every transaction

    @property
    def seen(self) -> Seen | None:
        """Return this node's memory of the store."""
        return self._seen

    @property
    def restored(self) -> bool:
        """Return whether the store is doubted: nothing that it says is acted on."""
        return self.standing is Standing.RESTORED

    def stands(self) -> bool:
        """Return whether the doubt was just read from the store: then no other node acts on the store either."""
        return self.restored and self._clock.now() - self._doubt_seen < FRESH_S

    def require(self) -> None:
        """Raise StoreRestored while the store is doubted."""
        if self.restored:
            raise StoreRestored(f"the store was restored or went back: {self.reason}", hint=ADOPT_HINT)

    def sent(self) -> Sent:
        """Return what the answer to the next request must reach. Raises StoreRestored."""
        self.require()
        return self.looked()

    def looked(self) -> Sent:
        """Return the same as `sent`, for a read of the incarnation, which is allowed at any standing."""
        return Sent(self.generation, self._seen.revision if self._seen else 0)

    def heard(self, sent: Sent, cluster: str, revision: int) -> None:
        """Check an answer. Raises StoreRestored if it does not match this node's memory of the store."""
        self.require()
        if sent.generation != self.generation:
            raise StoreRestored("the store was adopted during the request", hint="try again")
        if self._seen is not None and cluster != self._seen.cluster:
            self._find(f"etcd's cluster id is {cluster}, this node knows {self._seen.cluster}")
        elif revision < sent.revision:
            self._find(_back(revision, sent.revision))
        self.require()
        self._note(revision)

    def suspect(self, why: str) -> None:
        """Doubt the store because this node's own state contradicts it."""
        if self.standing is Standing.FITS:
            self._find(why)

    def expect(self, why: str) -> None:
        """Doubt the store from now on because an older one is about to replace it."""
        self._find(why)

    def look(self, sent: Sent, sight: Sight) -> None:
        """Judge a reading of the store: the only way into FITS."""
        if sent.generation != self.generation:
            return  # the request was sent before the last change of standing, so the reading is old
        if self.standing is Standing.FITS and sent.revision <= sight.revision < self.key:
            return  # two reads ran at once and this older one was answered last: the key was written after it
        seen, now = self._seen, sight.incarnation
        follows = seen is not None and successor(seen, now)
        why = misfit(_at(seen, sent.revision) if seen else None, sight)
        if now is not None and now.doubt:
            self._doubt_seen, self._finding = self._clock.now(), ""
            self._doubt(why)
        elif self._finding and not follows:
            return  # the doubt holds until it is written
        elif why:
            self._find(why)
        else:
            self._fit(sight, replaced=seen is None or follows or self.restored)

    def _fit(self, sight: Sight, *, replaced: bool) -> None:
        now, seen = sight.incarnation, self._seen
        if replaced and seen is not None:
            self.generation += 1
            log.warning(decision("store.fits", incarnation=now.id if now else "-", revision=sight.revision))
        self.standing, self.reason, self._finding = Standing.FITS, "", ""
        self.key = now.revision if now else 0
        name, before = (now.id, now.before) if now else ("", ())
        if replaced or seen is None or seen.incarnation != name:
            least = 0 if replaced or seen is None else seen.revision
            revision = max(sight.revision, least)
            self._seen = Seen(cluster=sight.cluster, incarnation=name, revision=revision, before=before)
            self._dirty.set()
        self._note(sight.revision)

    def _find(self, why: str) -> None:
        """Doubt the store by this node's own finding."""
        self._finding = why
        self._doubt(why)

    def _doubt(self, why: str) -> None:
        if not self.restored:
            self.generation += 1
            self.standing = Standing.RESTORED
            log.error(decision("store.restored", node=self.node, reason=why))
        self.reason = why

    def _note(self, revision: int) -> None:
        if self._seen is not None and revision > self._seen.revision:
            self._seen = _at(self._seen, revision)
            self._dirty.set()

    # ---- over time
    async def run(self, look: Callable[[], Awaitable[None]], mark: Callable[[str], Awaitable[None]]) -> None:
        """Read the incarnation at intervals, write this node's finding into the store, and its memory into the file.

        Runs until cancelled. `look` reads the store and calls this object's `look`; `mark` writes the finding."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(), name="highest revision")
            while True:
                try:
                    await look()
                    if self._finding:
                        await mark(self._finding)
                except (VeeryError, TimeoutError) as error:
                    log.debug("the incarnation is not known: %s", error)
                await self._clock.sleep(DOUBT_INTERVAL_S if self.restored else LOOK_INTERVAL_S)

    async def _keep(self) -> None:
        logged = ""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            seen = self._seen
            if seen is not None and seen != self._saved:
                try:
                    await self._memory.save(seen)
                    self._saved, logged = seen, ""
                except OSError as error:
                    if str(error) != logged:
                        log.error("cannot write the highest revision of the store: %s", error)
                    logged = str(error)
                    self._dirty.set()
            await self._clock.sleep(WRITE_INTERVAL_S)


def _at(seen: Seen, revision: int) -> Seen:
    return Seen(cluster=seen.cluster, incarnation=seen.incarnation, revision=revision, before=seen.before)


def _back(revision: int, seen: int) -> str:
    return f"the store is at revision {revision}, this node has seen {seen}"


def sight(cluster: str, revision: int, entry: Entry | None) -> Sight:
    """Return a reading of the store with `entry` at the key `incarnation`. An unreadable entry is a doubt."""
    try:
        now = INCARNATIONS.value(entry) if entry else None
    except Unreadable as error:
        now = Incarnation(id="", doubt=error.message, revision=entry.revision if entry else 0)
    return Sight(cluster=cluster, revision=revision, incarnation=now)


def doubt(entry: Entry | None, node: str, why: str, epoch: float) -> list[Put | Delete]:
    """Return the operations that record the doubt of `node`, for all nodes to read. `entry` is the present entry of
    the key `incarnation`. The list is empty if a doubt is recorded already."""
    now = sight("", 0, entry).incarnation
    if now is not None and now.doubt:
        return []
    base = now or Incarnation(id=secrets.token_hex(8))
    reason = f"{node}: {why}"
    event = Event(
        at=epoch,
        level=Level.ALARM,
        what="store-restored",
        subject="cluster",
        text=f"the store went back, nothing is done by itself: {reason}; next: veery cluster adopt --plan",
        by=node,
    )
    return [
        INCARNATIONS.put(INCARNATION, dataclasses.replace(base, doubt=reason, by=node)),
        EVENTS.put(f"{int(epoch * 1_000_000):020}", event),
    ]
