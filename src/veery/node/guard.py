"""The guard of a node: if the node has lost the cluster, the guard stops its writes to shared disks.

The lease decides when, by this node's own clock (cluster/presence.py). Then the guard asks the other nodes, because a
lease is lost in two cases that need opposite answers. If *this node* is cut off, the others may take its domains. If
the *store* is down for all, no node can take anything, and domains run on.

The guard does not make a start elsewhere safe; only the proof of a fence does. It keeps two copies from being visible
at once, and it limits the damage of a node without a fence."""

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

RULING_INTERVAL_S = 0.25  # seconds between two rulings
ANSWER_TIMEOUT_S = 2.5  # seconds to wait for the answers of other nodes
RULING_VALID_S = 1.0  # seconds for which a ruling allows feeding the watchdog
ANSWER_VALID_S = 4.0  # seconds for which an answer counts
FENCE_CHECK_INTERVAL_S = 5.0  # seconds between two checks of this node's own fence while all is well
LIVE = (DomainState.RUNNING, DomainState.BLOCKED)


class Stance(StrEnum):
    """What the guard does with the domains that have shared disks."""

    RUN = "run"  # they run; the guard releases those that it holds
    STAY = "stay"  # unchanged: running domains run on, held ones stay held
    HOLD = "hold"  # paused, in memory
    END = "end"  # killed


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the guard knows.

    `lost`: seconds since the lease was lost; negative while it is still valid for that long. `fenced`: whether the
    store records a fence of this node (False while the store does not answer). `voters`: the voters. `storage`: the
    storage nodes that serve disks to this node. `words`: the current answers, including this node's own.

    `doubted`: the store answers, and it records the doubt that it was restored (cluster/trust.py); then no node takes a
    domain from another. `still`: an operator recovers the store and has declared the silent voters to be off
    (node/stillness.py)."""

    lost: float
    fenced: bool
    voters: frozenset[str]
    storage: frozenset[str]
    words: tuple[WitnessAnswer, ...] = ()
    doubted: bool = False
    still: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision of the guard. `feed`: whether the watchdog may be fed."""

    stance: Stance
    reason: str
    feed: bool = False


def rule(view: View, end: float) -> Ruling:
    """Return the ruling for a node that sees `view`. Its domains are killed when the lease has been lost for `end`
    seconds. Pure."""
    if view.lost < 0:
        if view.fenced:
            return Ruling(Stance.HOLD, "this node is fenced", feed=True)
        return Ruling(Stance.RUN, "the lease holds", feed=True)
    shut = sorted(word.node for word in view.words if word.fenced)
    if not shut and view.doubted:
        # This node reaches the store, and every transaction of another node requires that there is no doubt. So no
        # fence of this node, by watchdog or otherwise, can lead to a start elsewhere from here on.
        return Ruling(Stance.STAY, "the store was restored: no node acts on it before `veery cluster adopt`", feed=True)
    if not shut and view.still:
        return Ruling(Stance.STAY, "the store is being recovered", feed=True)
    leaderless = {word.node for word in view.words if word.quorum is False} & view.voters
    if not shut and 2 * len(leaderless) > len(view.voters):
        return Ruling(Stance.STAY, f"the store is down for all, as reported by {_names(leaderless)}", feed=True)
    open_at = {word.node for word in view.words if word.fenced is False}
    if not shut and view.storage and view.storage <= open_at:
        return Ruling(Stance.STAY, f"this node has lost the store, but {_names(view.storage)} still serves it")
    reason = f"shut out by {_names(shut)}" if shut else "cut off from the cluster"
    if view.lost >= end:
        return Ruling(Stance.END, f"{reason} for {view.lost:.0f} s")
    return Ruling(Stance.HOLD, reason)


def serving(portals: Collection[str], nodes: Iterable[Node]) -> frozenset[str]:
    """Return the storage nodes among `nodes` that have one of `portals` ("ADDRESS:PORT"). Pure."""
    addresses = {endpoint.canonical(endpoint.split(portal)[0]) for portal in portals}
    return frozenset(
        node.name
        for node in nodes
        if node.has(Role.STORAGE) and not addresses.isdisjoint(map(endpoint.canonical, node.addresses))
    )


def _names(names: Sequence[str] | set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))


class Guard:
    """The guard of a hypervisor. The daemon owns the task of `run`."""

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
        """`peers` finds nodes without the store. `doubted`, `still`: as in View. `file` keeps the held domains over a
        restart of the daemon. `end`: seconds after the loss of the lease at which domains are killed."""
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
        self._words: dict[str, tuple[float, WitnessAnswer]] = {}  # by node: when it was asked, and its answer
        self.ruling = Ruling(Stance.RUN, "not decided yet", feed=True)

    @property
    def stopped(self) -> bool:
        """True if this node has killed its domains with shared disks, and starts none."""
        return self._ended

    @property
    def holds(self) -> frozenset[str]:
        """The UUIDs of the domains that the guard holds."""
        return frozenset(self._held)

    def may_feed(self) -> bool:
        """Return True if the watchdog may be fed: the lease is valid, or a recent ruling found the store down for
        all."""
        if self._heartbeat.remaining() > 0:
            return True
        down = self.ruling.stance is Stance.STAY and self.ruling.feed
        return down and self._clock.now() - self._ruled < RULING_VALID_S

    def held(self) -> tuple[str, ...]:
        """Return the UUIDs of the domains that the guard has paused."""
        return tuple(sorted(self._held))

    async def run(self) -> None:
        """Run until cancelled. This loop never waits for the store, a node, or a hypervisor, because each of them may
        hang."""
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
                await self._clock.sleep(RULING_INTERVAL_S)

    def _begin(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` as a task beside the loop, unless the same work is under way."""

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
        """Return the current view. It waits for no answer: nodes were asked before, and their answers are here or
        not."""
        lost = self._lost()
        voters = frozenset(name for name, node in self._node_cache.nodes.items() if node.has(Role.VOTER))
        return View(
            lost=lost,
            fenced=self._fenced,
            voters=voters,
            storage=await self._storage() if lost >= 0 else frozenset(),
            words=tuple(word for asked, word in self._words.values() if self._clock.now() - asked < ANSWER_VALID_S),
            doubted=self._doubted(),
            still=self._still(),
        )

    async def _look_for_ever(self) -> None:
        """Check whether the store records a fence of this node, at once when the lease is back, and often while it
        matters. While the store does not answer, the last result counts."""
        while True:
            if self._lost() < 0:
                with suppress(VeeryError):
                    await self._look()
            quick = self._fenced or self._held or self.ruling.stance is not Stance.RUN
            await self._clock.sleep(RULING_INTERVAL_S if quick else FENCE_CHECK_INTERVAL_S)

    async def _look(self) -> None:
        try:
            self._fenced = await fencing.read(self._store, self._node.name) is not None
        except Unreadable:  # it counts as a fence, as it does for the storage nodes
            self._fenced = True

    async def _ask_for_ever(self) -> None:
        """Ask the other nodes when the lease is in doubt, before it is lost. Then their answers are already here."""
        while True:
            if self._lost() > -self._heartbeat.ttl / 2:  # renewals come each third of the time: one has failed
                await self._ask_all()
            await self._clock.sleep(RULING_INTERVAL_S)

    def _lost(self) -> float:
        """Return the seconds since the lease was lost. A daemon that never had a lease counts from its start, as if it
        had one then."""
        since = self._heartbeat.since_lost()
        return since if since is not None else self._clock.now() - self._started - self._heartbeat.ttl

    async def _storage(self) -> frozenset[str]:
        """Return the storage nodes that serve disks to domains here, by their portals' addresses."""
        portals: set[str] = set()
        for reading in await self._domains.driver.list():
            with suppress(Refused):
                _, attachments = await self._domains.driver.spec(reading.uuid)
                portals |= {getattr(disk.source, "portal", "") for disk in attachments.disks}
        return serving(portals - {""}, self._node_cache.nodes.values())

    async def _ask_all(self) -> None:
        """Ask all voters and storage nodes, and this node itself. Each answer counts when it comes: a node that is off
        is waited for up to ANSWER_TIMEOUT_S seconds, and the last answers of the others would be too old by then."""
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
            return codec.convert(await self._peers.call(name, "GET", path, deadline=ANSWER_TIMEOUT_S), WitnessAnswer)
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
        """Pause a domain with shared disks.

        QEMU stops the processors first and answers when its writes are done. If the storage is gone, it neither answers
        nor runs. So the order is noted before it is given."""
        self._held.add(reading.uuid)
        self._remember()
        log.error("domain=%s stopped by the guard: %s", reading.name, self.ruling.reason)
        try:
            await self._domains.driver.pause(reading.uuid)
        except Refused:  # it moves: it was not paused; the next ruling tries again, and END kills it
            self._held.discard(reading.uuid)
            raise

    async def _release(self) -> None:
        """Release the held domains that this node still owns. The caretaker ends the others."""
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
                await self._domains.driver.unpause(uuid)  # it follows the stop, even if that has no answer yet
                log.warning("domain=%s runs again: the lease is valid and this node owns it", name)
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
        """Return the held domains from the file. If it cannot be read, they stay paused: `veery unpause` lets them
        run."""
        return set(kept.take(self._file, list[str]) or ())
