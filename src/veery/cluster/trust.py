"""Whether the store is still the one that this node knows.

A store that was restored from a backup answers as before, with older owner keys: obeying them would start a second copy
of a domain, and destroy the right one. Each node remembers, in STATE/store.json, which store it knew (etcd's cluster id
and the key `incarnation`) and the highest revision it has seen there. Where an answer does not fit, the store counts as
one that does not answer: every call raises StoreRestored. The first node that finds this writes its doubt into the key
`incarnation`. Every transaction has that key as a condition, so nodes that cannot tell by themselves stop as well.

The way out is `veery cluster adopt` (veery.cluster.adopt), which writes a new incarnation.

A revision that was seen and not yet written down is lost when the machine loses power. Its domains are lost with it;
what remains is that this node alone may not notice a restore to a point within the last WRITE_INTERVAL_S seconds. A
crash of the daemon alone loses nothing that was written."""

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

ADOPT = "veery cluster adopt --plan shows what runs where; docs/recovery.md"
WRITE_INTERVAL_S = 2.0  # between two writes of the highest revision
LOOK_INTERVAL_S = 2.0  # between two looks at the incarnation
DOUBT_INTERVAL_S = 1.0  # the same while the store is doubted
FRESH_S = 4.0  # for which a sight of the doubt in the store counts


class Standing(StrEnum):
    """How this node stands to the store that answers."""

    UNKNOWN = "unknown"  # this daemon has had no answer of it yet
    FITS = "fits"  # it is the one that this node knows
    RESTORED = "restored"  # it went back, or is another one: nothing it says is acted on


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node remembers of the store: STATE/store.json. `cluster`: etcd's cluster id; `incarnation`: the id of the
    last one known, "" where the store had none; `before`: the ids that this one came after."""

    cluster: str
    incarnation: str
    revision: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look at the store: its cluster id, its revision, and the incarnation that stands in it."""

    cluster: str
    revision: int
    incarnation: Incarnation | None


@dataclass(frozen=True, slots=True)
class Sent:
    """What was known when a question was sent: linearizable answers are never older than that."""

    generation: int
    revision: int

    def after(self, operations: Sequence[Put | Delete], *, done: bool) -> Sent:
        """What the answer to a transaction must reach: one that was done and wrote something has a revision of its
        own."""
        wrote = done and any(isinstance(each, Put) for each in operations)
        return Sent(self.generation, self.revision + 1) if wrote else self


class Memory(Protocol):
    """Where `Seen` outlives the daemon."""

    def load(self) -> Seen | None:
        """What was saved last."""
        ...

    async def save(self, seen: Seen) -> None:
        """Keep it; on the disk when this returns. Raises OSError."""
        ...


class SeenFile:
    """The real `Memory`: one small file."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist."""
        self._path = path

    def load(self) -> Seen | None:
        """As Memory.load; None for a file that cannot be read: the node then takes the store as it finds it."""
        clear_partial(self._path)
        try:
            return codec.decode(self._path.read_bytes(), Seen)
        except FileNotFoundError:
            return None
        except (OSError, Failed) as error:
            log.error("%s cannot be read, the store is taken as it is: %s", self._path, error)
            return None

    async def save(self, seen: Seen) -> None:
        """As Memory.save."""
        await asyncio.to_thread(write_atomic, self._path, codec.encode(seen), sync=True)


def successor(seen: Seen, now: Incarnation | None) -> bool:
    """Whether `now` came after the incarnation that `seen` knows, by an adoption."""
    return now is not None and not now.doubt and seen.incarnation != now.id and seen.incarnation in now.before


def misfit(seen: Seen | None, sight: Sight) -> str:
    """Why the store in `sight` is not the one that `seen` knows, in one sentence; "" where it is. Pure."""
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
    """One a daemon, shared by everything that speaks to the store. `run` is its task."""

    def __init__(self, node: str, memory: Memory, clock: Clock) -> None:
        """`node` is this one's name; nothing is asked before `run` or a first call to the store."""
        self.node, self._memory, self._clock = node, memory, clock
        self._seen = memory.load()
        self._saved = self._seen
        self._dirty = asyncio.Event()
        self._finding = ""  # our own, while it is not yet written into the store
        self._stands = clock.now() - FRESH_S  # when the doubt was last seen to stand in the store
        self.standing = Standing.UNKNOWN
        self.reason = ""
        self.generation = 0
        self.key = 0  # the revision of the key `incarnation`: the condition of every transaction

    @property
    def seen(self) -> Seen | None:
        """What this node knows of the store."""
        return self._seen

    @property
    def restored(self) -> bool:
        """Whether nothing that the store says is acted on."""
        return self.standing is Standing.RESTORED

    def stands(self) -> bool:
        """Whether the store was just seen to have the doubt in it: nobody else acts on what it says either."""
        return self.restored and self._clock.now() - self._stands < FRESH_S

    def require(self) -> None:
        """Raises StoreRestored while the store is doubted."""
        if self.restored:
            raise StoreRestored(f"the store was restored or went back: {self.reason}", hint=ADOPT)

    def sent(self) -> Sent:
        """Before a question: what its answer must reach. Raises StoreRestored."""
        self.require()
        return self.looked()

    def looked(self) -> Sent:
        """As `sent`, for a look at the incarnation, which is made whatever the standing."""
        return Sent(self.generation, self._seen.revision if self._seen else 0)

    def heard(self, sent: Sent, cluster: str, revision: int) -> None:
        """After the answer. Raises StoreRestored where it does not fit."""
        self.require()
        if sent.generation != self.generation:
            raise StoreRestored("the store was adopted while it was asked", hint="try again")
        if self._seen is not None and cluster != self._seen.cluster:
            self._find(f"etcd's cluster id is {cluster}, this node knows {self._seen.cluster}")
        elif revision < sent.revision:
            self._find(_back(revision, sent.revision))
        self.require()
        self._note(revision)

    def suspect(self, why: str) -> None:
        """What this node found on itself does not go with what the store says: the store is doubted."""
        if self.standing is Standing.FITS:
            self._find(why)

    def expect(self, why: str) -> None:
        """The store is about to be replaced by an older one: it is doubted from now on."""
        self._find(why)

    def look(self, sent: Sent, sight: Sight) -> None:
        """Judge what was seen of the store: the only way into FITS."""
        if sent.generation != self.generation:
            return  # it was asked before the last change, and tells of what was
        if self.standing is Standing.FITS and sent.revision <= sight.revision < self.key:
            return  # two looks were under way, and this older one was answered last: the key was written after it
        seen, now = self._seen, sight.incarnation
        follows = seen is not None and successor(seen, now)
        why = misfit(_at(seen, sent.revision) if seen else None, sight)
        if now is not None and now.doubt:
            self._stands, self._finding = self._clock.now(), ""
            self._doubt(why)
        elif self._finding and not follows:
            return  # it holds until it is written down
        elif why:
            self._find(why)
        else:
            self._fit(sight, anew=seen is None or follows or self.restored)

    def _fit(self, sight: Sight, *, anew: bool) -> None:
        now, seen = sight.incarnation, self._seen
        if anew and seen is not None:
            self.generation += 1
            log.warning(decision("store.fits", incarnation=now.id if now else "-", revision=sight.revision))
        self.standing, self.reason, self._finding = Standing.FITS, "", ""
        self.key = now.revision if now else 0
        name, before = (now.id, now.before) if now else ("", ())
        if anew or seen is None or seen.incarnation != name:
            least = 0 if anew or seen is None else seen.revision
            revision = max(sight.revision, least)
            self._seen = Seen(cluster=sight.cluster, incarnation=name, revision=revision, before=before)
            self._dirty.set()
        self._note(sight.revision)

    def _find(self, why: str) -> None:
        """Our own finding."""
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
        """For ever: look at the incarnation, write our finding into the store, and what was seen into the file.
        `look` asks the store and calls our `look`; `mark` has the store say our finding."""
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
        said = ""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            seen = self._seen
            if seen is not None and seen != self._saved:
                try:
                    await self._memory.save(seen)
                    self._saved, said = seen, ""
                except OSError as error:
                    if str(error) != said:
                        log.error("the highest revision of the store is not written: %s", error)
                    said = str(error)
                    self._dirty.set()
            await self._clock.sleep(WRITE_INTERVAL_S)


def _at(seen: Seen, revision: int) -> Seen:
    return Seen(cluster=seen.cluster, incarnation=seen.incarnation, revision=revision, before=seen.before)


def _back(revision: int, seen: int) -> str:
    return f"the store is at revision {revision}, this node has seen {seen}"


def sight(cluster: str, revision: int, entry: Entry | None) -> Sight:
    """A look at the store in which `entry` stands at the key `incarnation`. One that cannot be read is a doubt."""
    try:
        now = INCARNATIONS.value(entry) if entry else None
    except Unreadable as error:
        now = Incarnation(id="", doubt=error.message, revision=entry.revision if entry else 0)
    return Sight(cluster=cluster, revision=revision, incarnation=now)


def doubt(entry: Entry | None, node: str, why: str, epoch: float) -> list[Put | Delete]:
    """The operations by which `node` tells everybody that the store is not the one it knows; `entry` is what stands
    at the key `incarnation`. None where a doubt stands already."""
    now = sight("", 0, entry).incarnation
    if now is not None and now.doubt:
        return []
    base = now or Incarnation(id=secrets.token_hex(8))
    told = f"{node}: {why}"
    event = Event(
        at=epoch,
        level=Level.ALARM,
        what="store-restored",
        subject="cluster",
        text=f"the store went back, nothing is done by itself: {told}; next: veery cluster adopt --plan",
        by=node,
    )
    return [
        INCARNATIONS.put(INCARNATION, dataclasses.replace(base, doubt=told, by=node)),
        EVENTS.put(f"{int(epoch * 1_000_000):020}", event),
    ]
