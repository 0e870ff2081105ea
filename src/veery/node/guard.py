"""A node's own guard: when it has lost the cluster it stops writing to shared disks by itself.

The lease decides when, by this node's own clock (cluster/presence.py). Then others are asked, since a lease is lost in
two ways that want opposite answers: *we* are cut off (the others may take our domains), or the *store* is down for
all (nobody can take anything; domains run on). Nothing here is what makes a start elsewhere safe, the fence's proof
is; it is what keeps two copies from being seen, and a node without a fence from doing harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from veery.cluster import fencing
from veery.cluster import owner as owners
from veery.cluster.keys import Unreadable
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Store
from veery.errors import Refused, VeeryError
from veery.host import kept
from veery.host.clock import Clock
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model import codec, endpoint
from veery.model.domain import DomainReading, DomainState
from veery.model.node import Node, Role
from veery.node.domains import Domains
from veery.node.fencing import Fencing, writes_shared
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.witness import Witness, WitnessAnswer

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between two looks
ASK = 2.5  # seconds for the others' answers
RULED = 1.0  # seconds for which a ruling counts, for the watchdog
FRESH = 4.0  # seconds for which an answer counts
LOOK = 5.0  # seconds between two looks at our own fence while all is well
LIVE = (DomainState.RUNNING, DomainState.BLOCKED)


class Stance(StrEnum):
    """What the guard has the domains with shared disks do."""

    RUN = "run"  # as they are; those that the guard holds go on
    STAY = "stay"  # as they are: what runs runs on, what is held stays held
    HOLD = "hold"  # stopped, in memory
    END = "end"  # ended


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the guard knows. `lost`: seconds since the lease was lost, negative while it has that long to go. `fenced`:
    what the store says of us (False while it does not answer). `voters` and `storage`: the nodes of these roles, of
    storage those that matter here; `words`: the answers of just now, our own among them. `doubted`: the store answers
    us, and the doubt stands in it that it was restored (cluster/trust.py): nobody takes a domain from anybody. `still`:
    an operator recovers the store, by whose word the voters without an answer are off (node/stillness.py)."""

    lost: float
    fenced: bool
    voters: frozenset[str]
    storage: frozenset[str]
    words: tuple[WitnessAnswer, ...] = ()
    doubted: bool = False
    still: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """What follows. `feed`: whether the watchdog may be fed."""

    stance: Stance
    reason: str
    feed: bool = False


def rule(view: View, end: float) -> Ruling:
    """The stance of a node that sees `view`; its domains are ended when the lease is lost for `end` seconds. Pure."""
    if view.lost < 0:
        if view.fenced:
            return Ruling(Stance.HOLD, "this node is fenced", feed=True)
        return Ruling(Stance.RUN, "the lease holds", feed=True)
    shut = sorted(word.node for word in view.words if word.fenced)
    if not shut and view.doubted:
        # We reach the store, and every transaction of another asks that there be no doubt: no fence of ours, by
        # watchdog or otherwise, can lead to a start elsewhere from here on.
        return Ruling(Stance.STAY, "the store was restored: nobody acts on it before `veery cluster adopt`", feed=True)
    if not shut and view.still:
        return Ruling(Stance.STAY, "the store is being recovered", feed=True)
    leaderless = {word.node for word in view.words if word.quorum is False} & view.voters
    if not shut and 2 * len(leaderless) > len(view.voters):
        return Ruling(Stance.STAY, f"the store is down for all: {_names(leaderless)} say so", feed=True)
    open_at = {word.node for word in view.words if word.fenced is False}
    if not shut and view.storage and view.storage <= open_at:
        return Ruling(Stance.STAY, f"the store is lost, and {_names(view.storage)} let this node in")
    reason = f"{_names(shut)} shut this node out" if shut else "cut off from the cluster"
    if view.lost >= end:
        return Ruling(Stance.END, f"{reason} for {view.lost:.0f} s")
    return Ruling(Stance.HOLD, reason)


def serving(portals: Collection[str], nodes: Iterable[Node]) -> frozenset[str]:
    """The storage nodes among `nodes` that have one of `portals` ("ADDRESS:PORT"). Pure."""
    addresses = {endpoint.canonical(endpoint.split(portal)[0]) for portal in portals}
    return frozenset(
        node.name
        for node in nodes
        if node.has(Role.STORAGE) and not addresses.isdisjoint(map(endpoint.canonical, node.addresses))
    )


def _names(names: Sequence[str] | set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))


class Guard:
    """One a hypervisor; `run` is its task."""

    def __init__(
        self,
        node: Node,
        store: Store,
        *,
        heartbeat: Heartbeat,
        domains: Domains,
        fencing: Fencing,
        standing: Witness,
        node_cache: NodeCache,
        peers: Peers,
        clock: Clock,
        doubted: Callable[[], bool],
        still: Callable[[], bool],
        file: Path,
        end: float,
    ) -> None:
        """`peers` finds nodes without the store; `doubted`, `still`: as in View; `file` remembers over a restart of
        ours which domains are held; `end`: seconds after the lease was lost at which domains are ended."""
        self._node, self._store, self._heartbeat = node, store, heartbeat
        self._domains, self._fencing, self._standing = domains, fencing, standing
        self._node_cache, self._peers, self._clock = node_cache, peers, clock
        self._doubted, self._still, self._file, self._end = doubted, still, file, end
        self._started = clock.now()
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: set[str] = set()
        self._fenced = False
        self._held: set[str] = self._remembered()
        self._ended = False
        self._ruled = clock.now()
        self._words: dict[str, tuple[float, WitnessAnswer]] = {}  # by node; when it was asked, and what it said
        self.ruling = Ruling(Stance.RUN, "nothing is known yet", feed=True)

    @property
    def stopped(self) -> bool:
        """Whether this node has ended its domains with shared disks, and lets none start."""
        return self._ended

    @property
    def holds(self) -> frozenset[str]:
        """The UUIDs of the domains that it holds."""
        return frozenset(self._held)

    def may_feed(self) -> bool:
        """Whether the watchdog may be fed: the lease holds now, or a ruling of just now says that the store is down."""
        if self._heartbeat.remaining() > 0:
            return True
        down = self.ruling.stance is Stance.STAY and self.ruling.feed
        return down and self._clock.now() - self._ruled < RULED

    def held(self) -> tuple[str, ...]:
        """The UUIDs of the domains that stand still by our order."""
        return tuple(sorted(self._held))

    async def run(self) -> None:
        """For ever. Nothing that may hang is waited for here: neither the store, nor a node, nor a hypervisor."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._ask_for_ever(), name="guard asks")
            tasks.create_task(self._look_for_ever(), name="guard looks")
            while True:
                before = self.ruling
                self.ruling = rule(await self._view(), self._end)
                self._ruled = self._clock.now()
                if before.stance is not self.ruling.stance:
                    level = logging.INFO if self.ruling.stance is Stance.RUN else logging.ERROR
                    log.log(level, decision("guard", stance=self.ruling.stance.value, reason=self.ruling.reason))
                await self._act()
                await self._clock.sleep(TICK)

    def _begin(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work` beside the loop, unless the same is under way."""

        async def done() -> None:
            try:
                await work()
            except VeeryError as error:
                log.warning("guard: %s: %s", what, error.message)
            finally:
                self._under_way.discard(what)

        if what not in self._under_way:
            assert self._tasks is not None
            self._under_way.add(what)
            self._tasks.create_task(done(), name=f"guard: {what}")

    # ---- seeing
    async def _view(self) -> View:
        """Waits for nobody: who was asked before has answered or has not."""
        lost = self._lost()
        voters = frozenset(name for name, node in self._node_cache.nodes.items() if node.has(Role.VOTER))
        return View(
            lost=lost,
            fenced=self._fenced,
            voters=voters,
            storage=await self._storage() if lost >= 0 else frozenset(),
            words=tuple(word for asked, word in self._words.values() if self._clock.now() - asked < FRESH),
            doubted=self._doubted(),
            still=self._still(),
        )

    async def _look_for_ever(self) -> None:
        """Whether the store says that we are fenced; as before while it does not answer. At once when the lease is
        back, and often while it matters."""
        while True:
            if self._lost() < 0:
                with suppress(VeeryError):
                    await self._look()
            quick = self._fenced or self._held or self.ruling.stance is not Stance.RUN
            await self._clock.sleep(TICK if quick else LOOK)

    async def _look(self) -> None:
        try:
            self._fenced = await fencing.read(self._store, self._node.name) is not None
        except Unreadable:  # a fence all the same: the storage nodes take it for one, too
            self._fenced = True

    async def _ask_for_ever(self) -> None:
        """In doubt, before the lease is lost, the others are asked already: then nothing is to be waited for."""
        while True:
            if self._lost() > -self._heartbeat.ttl / 2:  # it is renewed each third of the time: a try has failed
                await self._ask_all()
            await self._clock.sleep(TICK)

    def _lost(self) -> float:
        """Seconds since the lease was lost; a daemon that never had one counts from its start, as if it had had it."""
        since = self._heartbeat.since_lost()
        return since if since is not None else self._clock.now() - self._started - self._heartbeat.ttl

    async def _storage(self) -> frozenset[str]:
        """The storage nodes that serve disks to domains here, by their portals' addresses."""
        portals: set[str] = set()
        for reading in await self._domains.driver.list():
            with suppress(Refused):
                _, attachments = await self._domains.driver.spec(reading.uuid)
                portals |= {getattr(disk.source, "portal", "") for disk in attachments.disks}
        return serving(portals - {""}, self._node_cache.nodes.values())

    async def _ask_all(self) -> None:
        """Ask all voters and storage nodes, and ourselves. An answer counts as it comes: a node that is off lets us
        wait for ASK, and the others' last answers are too old by then."""
        wanted = [
            name
            for name, node in self._node_cache.nodes.items()
            if name != self._node.name and (node.has(Role.VOTER) or node.has(Role.STORAGE))
        ]
        await asyncio.gather(
            self._hear(self._node.name, self._standing.word()), *(self._hear(name, self._ask(name)) for name in wanted)
        )

    async def _hear(self, name: str, question: Awaitable[WitnessAnswer | None]) -> None:
        asked = self._clock.now()
        word = await question
        if word is not None:
            self._words[name] = asked, word

    async def _ask(self, name: str) -> WitnessAnswer | None:
        path = f"/v1/standing/{self._node.initiator or '-'}"
        with suppress(VeeryError):
            return codec.convert(await self._peers.call(name, "GET", path, deadline=ASK), WitnessAnswer)
        return None

    # ---- acting
    async def _act(self) -> None:
        match self.ruling.stance:
            case Stance.RUN:
                self._ended = False
                if self._held:
                    self._begin("release", self._release)
            case Stance.STAY:
                pass
            case Stance.HOLD:
                for reading in await self._shared():
                    if reading.state in LIVE and reading.uuid not in self._held:
                        self._begin(f"stop {reading.name}", partial(self._stop, reading))
                if self._fenced and self._lost() < 0:
                    self._begin("end stale copies", self._end_stale)
            case Stance.END:
                await self._end_all()

    async def _stop(self, reading: DomainReading) -> None:
        """QEMU stops the processors first, and then answers once its writes are done: with the storage gone it does
        neither answer nor run. So the order is noted before it is given."""
        self._held.add(reading.uuid)
        self._remember()
        log.error("domain=%s stopped by the guard: %s", reading.name, self.ruling.reason)
        try:
            await self._domains.driver.pause(reading.uuid)
        except Refused:  # it moves: nothing was ordered; again at the next look, and in the end it is ended
            self._held.discard(reading.uuid)
            raise

    async def _release(self) -> None:
        """Let go on what we hold, if it still is ours; the rest is the caretaker's to end."""
        await self._look()
        if self._fenced:
            return
        here = {reading.uuid: reading.name for reading in await self._domains.driver.list()}
        for uuid in sorted(self._held):
            name = here.get(uuid)
            if name is not None:
                owner = await owners.read(self._store, name)
                if owner is None or owner.node != self._node.name:
                    continue
                await self._domains.driver.unpause(uuid)  # behind the stop, if that has not been answered yet
                log.warning("domain=%s goes on: the lease holds and it is ours", name)
            self._held.discard(uuid)
            self._remember()

    async def _end_stale(self) -> None:
        await self._fencing.end_stale()

    async def _end_all(self) -> None:
        doomed = await self._shared()
        for reading in doomed:
            log.error("domain=%s ended by the guard: %s", reading.name, self.ruling.reason)
        ends = (self._domains.driver.destroy(reading.uuid) for reading in doomed)
        failed = [error for error in await asyncio.gather(*ends, return_exceptions=True) if error is not None]
        for error in failed:
            log.error("guard: a domain is not ended: %s", error)
        if self._held:
            self._held.clear()
            self._remember()
        self._ended = not failed

    async def _shared(self) -> list[DomainReading]:
        found = []
        for reading in await self._domains.driver.list():
            with suppress(Refused):  # it ended meanwhile
                spec, _ = await self._domains.driver.spec(reading.uuid)
                if writes_shared(spec):
                    found.append(reading)
        return found

    def _remember(self) -> None:
        with suppress(OSError):
            write_atomic(self._file, codec.encode(sorted(self._held)))

    def _remembered(self) -> set[str]:
        """Where the file cannot be read, the domains that it named stay paused: `veery unpause` lets them run."""
        return set(kept.take(self._file, list[str]) or ())
