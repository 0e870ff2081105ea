"""The observer: combines the store at one revision with the answers of storage nodes and daemons into one view.

One watch follows the store (cluster/watch_cache.py). A record that cannot be decoded is marked unreadable in the view.
The brain leaves its subject alone and goes on with everything else.

The observer itself remembers since when each node is absent, by its own monotonic clock. It forgets this after a pause
in which it saw nothing: in the pause a node could have come, renewed its watchdog, and left again."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, TypeVar

from veery.cluster.keys import (
    ALIVE,
    CA_KEY,
    CA_LIST,
    CA_SEALED,
    DISARM,
    DISARMED,
    DOMAINS,
    EVENTS,
    FENCES,
    GROUPS,
    HEALTH_MOVES,
    HEALTHS,
    HISTORIES,
    INTENTS,
    LEVEL_KEY,
    LEVELS,
    MEANS,
    NODES,
    OWNERS,
    POLICIES,
    PROCESSORS,
    RESERVATIONS,
    RUNS,
    TOKENS,
    VOLUMES,
    Kind,
    Unreadable,
)
from veery.cluster.store import Entry, Store, StoreRestored
from veery.cluster.watch_cache import WatchCache
from veery.errors import Failed, OutcomeUnknown
from veery.ha.base import Probes
from veery.host.clock import Clock
from veery.model.cluster import Presence
from veery.model.ha import (
    ClusterView,
    Disarmed,
    DomainView,
    FenceMethods,
    FenceRecord,
    FenceState,
    Group,
    HaRecord,
    NodeHistory,
    NodeReading,
    NodeView,
    Rules,
    StorageHeartbeats,
)
from veery.model.node import Node, Role
from veery.model.verdict import HealthRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

UNSEEN = (  # keys that the brain does not use
    *(EVENTS.prefix, HEALTH_MOVES.prefix, VOLUMES.prefix, TOKENS.prefix),
    *(CA_KEY, CA_SEALED, CA_LIST),
)
READING_VALID_S = (
    2.5  # seconds for which a node's report counts: on a busy machine an answer may come one observation late
)


@dataclass(slots=True)
class _Sighting:
    """Since when (own clock) a node is present and may use the storage, or is absent. `key`: the revision at which its
    presence was created (0: absent), whether it is fenced although present, and whether that fence is proven. `again`:
    the node was already present when the proof came, so its latest report may be older than the proof."""

    key: tuple[int, bool, bool]
    since: float
    again: bool = False


class StoreObserver:
    """`Observer` on a `Store`. Only one call of `observe` may run at a time."""

    def __init__(self, store: Store, probes: Probes, clock: Clock, rules: Rules) -> None:
        """`clock` measures how long nodes are absent, and nothing else does."""
        self._cache = WatchCache(store, UNSEEN)
        self._probes, self._clock, self._rules = probes, clock, rules
        self._sightings: dict[str, _Sighting] = {}
        self._seen: float | None = None  # the last observation that succeeded
        self._settled = 0.0
        self._watched = 0.0
        self._last = ClusterView(revision=0, quorum=False, settled=0.0, witnesses=0, watched=0.0, nodes={}, domains={})
        self._beats: dict[str, float] = {}  # since when each node has written heartbeats to storage without a break
        self._decoded: dict[str, tuple[Entry, Any]] = {}
        self._bad: dict[str, str] = {}  # one sentence for each key that cannot be decoded
        self._readings: dict[str, NodeReading] = {}
        self._heard: dict[str, float] = {}  # when each reading arrived
        self._nodes: dict[str, Node] = {}  # the last records that could be decoded
        self._owners: dict[str, str] = {}  # the last known owner of each domain

    async def run(self) -> None:
        """As Observer.run."""
        await self._cache.run()

    async def observe(self) -> ClusterView:
        """As Observer.observe."""
        try:
            async with asyncio.timeout(self._rules.blind):
                _, signs, readings = await asyncio.gather(
                    self._cache.current(), self._probes.signs(), self._probes.readings()
                )
        except (Failed, OutcomeUnknown, TimeoutError) as error:
            restored = error.message if isinstance(error, StoreRestored) else ""
            self._last = dataclasses.replace(self._last, quorum=False, settled=0.0, watched=0.0, restored=restored)
            self._seen = None
            return self._last
        now = self._clock.now()
        if self._seen is None or now - self._seen > self._rules.blind:
            self._settled = self._watched = now
            self._sightings.clear()
            self._beats.clear()
        if signs.witnesses == 0:
            self._watched = now
        self._seen = now
        young = (name for name, sign in signs.ages.items() if sign.age < 2 * self._rules.sign)  # one may be late
        self._beats = {name: self._beats.get(name, now) for name in young}
        self._readings.update(readings)
        self._heard.update(dict.fromkeys(readings, now))
        self._last = self._view(signs, now)
        return self._last

    def _view(self, signs: StorageHeartbeats, now: float) -> ClusterView:
        cache = self._cache
        nodes = {}
        for name in self._names(NODES):
            bare = NodeView(record=self._record(name), sign=signs.ages.get(name), reading=self._readings.get(name))
            nodes[name] = self._node(bare, now)
        domains = {name: self._domain(name) for name in self._names(DOMAINS, OWNERS)}
        self._forget()
        return ClusterView(
            revision=cache.revision,
            quorum=True,
            settled=now - self._settled,
            witnesses=signs.witnesses,
            watched=now - self._watched,
            nodes=nodes,
            domains=domains,
            groups={name: self._one(GROUPS, name) or Group() for name in self._names(GROUPS)},
            disarmed=self._disarmed(),
            level=self._level(),
        )

    def _names(self, *kinds: Kind[Any]) -> list[str]:
        """Return the sorted names that have a record of any of `kinds`."""
        return sorted({kind.name(key) for kind in kinds for key in self._cache.under(kind.prefix)})

    def _record(self, name: str) -> Node:
        """Return the node's record, or the last that could be decoded.

        An unknown node is assumed to serve storage: then the silence of the other storage nodes proves nothing."""
        record = self._one(NODES, name)
        if record is not None:
            self._nodes[name] = record
        return self._nodes.get(name) or Node(name=name, address="", roles=(Role.STORAGE,))

    def _node(self, bare: NodeView, now: float) -> NodeView:
        name, reading = bare.name, bare.reading
        alive = self._cache.get(ALIVE.prefix + name)
        fenced = self._cache.get(FENCES.prefix + name) is not None
        fence = self._one(FENCES, name) or (FenceRecord(state=FenceState.FAILED) if fenced else None)
        proven = fence is not None and fence.state is FenceState.FENCED
        key = (alive.created, fenced, proven) if alive else (0, False, False)
        sighting = self._sightings.get(name)
        if sighting is None or sighting.key != key:
            again = proven and sighting is not None and sighting.key[0] == key[0] != 0
            sighting = self._sightings[name] = _Sighting(key, now, again)
        presence: Presence | None = self._one(ALIVE, name)
        lasted = now - sighting.since
        told = reading is not None and self._heard[name] >= max(sighting.since, now - READING_VALID_S)
        told = told and not (sighting.again and self._heard[name] == sighting.since)
        return dataclasses.replace(
            bare,
            absent=None if alive else lasted,
            present=lasted if alive else None,
            beating=now - self._beats.get(name, now),
            fresh=presence is not None and reading is not None and told and reading.started == presence.started,
            means=self._one(MEANS, name) or FenceMethods(),
            accelerator=self._accelerator(name),
            fence=fence,
            intent=self._one(INTENTS, name),
            history=self._one(HISTORIES, name) or NodeHistory(),
            health=self._one(HEALTHS, name) or HealthRecord(),  # an undecodable record counts as no verdict
            able=presence.level if presence else None,
            unreadable=self._unreadable(name, NODES, ALIVE, MEANS, FENCES, INTENTS, HISTORIES),
        )

    def _domain(self, name: str) -> DomainView:
        record, owner, run = self._one(DOMAINS, name), self._one(OWNERS, name), self._one(RUNS, name)
        if owner:
            self._owners[name] = owner.node
        last = owner.node if owner else self._owners.get(name) or (run.node if run else "")
        tied = ""
        if record and any(disk.target and not disk.volume for disk in record.spec.disks):
            tied = record.home or last or "?"
        ha = self._one(POLICIES, name) or HaRecord()
        bad = self._unreadable(name, DOMAINS, OWNERS, RUNS, POLICIES, RESERVATIONS)
        if ha.group and self._one(GROUPS, ha.group) is None:
            bad += self._unreadable(ha.group, GROUPS)
        return DomainView(
            name=name,
            memory=record.spec.memory if record else 0,
            ha=ha,
            owner=owner,
            run=run,
            move=self._one(RESERVATIONS, name),
            tied=tied,
            unreadable=bad,
            accelerator=self._accelerator(last),
        )

    def _accelerator(self, node: str) -> str:
        processor = self._one(PROCESSORS, node) if node else None
        return processor.accelerator if processor else ""

    def _disarmed(self) -> Disarmed | None:
        entry = self._cache.get(DISARMED)
        if entry is None:
            return None
        return self._value(DISARM, entry) or Disarmed(reason=self._bad[DISARMED])

    def _level(self) -> int:
        entry = self._cache.get(LEVEL_KEY)
        record = self._value(LEVELS, entry) if entry else None
        return record.level if record else 0

    def _one(self, kind: Kind[T], name: str) -> T | None:
        """Return the record of that name. Return None if there is none, or if it cannot be decoded (see
        `_unreadable`)."""
        entry = self._cache.get(kind.prefix + name)
        return self._value(kind, entry) if entry else None

    def _value(self, kind: Kind[T], entry: Entry) -> T | None:
        """Return the record in `entry`, decoded once, or None if it cannot be decoded."""
        cached = self._decoded.get(entry.key)
        if cached is None or cached[0] is not entry:  # compare entries, not revisions: a restored store reuses those
            self._bad.pop(entry.key, None)
            found: T | None = None
            try:
                found = kind.value(entry)
            except Unreadable as error:
                self._bad[entry.key] = error.message
                log.error("%s", error.message)
            cached = self._decoded[entry.key] = (entry, found)
        value: T | None = cached[1]
        return value

    def _unreadable(self, name: str, *kinds: Kind[Any]) -> tuple[str, ...]:
        """Return one sentence for each record called `name` that cannot be decoded."""
        if not self._bad:
            return ()
        return tuple(self._bad[kind.prefix + name] for kind in kinds if kind.prefix + name in self._bad)

    def _forget(self) -> None:
        """Drop what is no longer in the store."""
        for key in [key for key in self._decoded if self._cache.get(key) is None]:
            del self._decoded[key]
            self._bad.pop(key, None)
