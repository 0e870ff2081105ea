"""Observing: the store at one revision, and what storage nodes and daemons tell, made into one view.

Who is absent since when is this object's own memory, by its own monotonic clock. It forgets that memory after a pause
in which it saw nothing: a node could have come, renewed its watchdog, and gone again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from veery.cluster.keys import (
    ALIVE,
    DISARMED,
    DOMAINS,
    EVENTS,
    FENCES,
    GROUPS,
    HISTORIES,
    INTENTS,
    MEANS,
    NODES,
    OWNERS,
    POLICIES,
    RESERVATIONS,
    RUNS,
    VOLUMES,
    Kind,
)
from veery.cluster.store import Entry, Snapshot, Store
from veery.errors import Failed, OutcomeUnknown
from veery.ha.base import Senses
from veery.host.clock import Clock
from veery.model import codec
from veery.model.cluster import DomainRecord, Owner, Presence
from veery.model.ha import (
    ClusterView,
    Disarmed,
    DomainView,
    FenceMeans,
    FenceRecord,
    FenceState,
    HaRecord,
    NodeHistory,
    NodeReading,
    NodeView,
    Rules,
    RunRecord,
    Signs,
)

T = TypeVar("T")

UNSEEN = (EVENTS.prefix, VOLUMES.prefix)  # of no use to the brain
HEARD = 2.5  # seconds for which what a node said of itself counts: on a busy machine an answer may come a look later


@dataclass(slots=True)
class _Sighting:
    """Since when (own clock) a node is there and may use the storage, or is not there. `key`: the revision at which its
    presence was created (0: none), whether a fence stands although it is there, and whether that is proven. `again`: it
    was there when the proof came, and what it said by then may be what it said last."""

    key: tuple[int, bool, bool]
    since: float
    again: bool = False


class StoreEyes:
    """`Eyes` on a `Store`. One call of `observe` at a time."""

    def __init__(self, store: Store, senses: Senses, clock: Clock, rules: Rules) -> None:
        """`clock` measures absences; nothing else does."""
        self._store, self._senses, self._clock, self._rules = store, senses, clock, rules
        self._sightings: dict[str, _Sighting] = {}
        self._seen: float | None = None  # the last observation that succeeded
        self._settled = 0.0
        self._watched = 0.0
        self._last = ClusterView(revision=0, quorum=False, settled=0.0, witnesses=0, watched=0.0, nodes={}, domains={})
        self._beats: dict[str, float] = {}  # since when each node's heartbeats on storage go on
        self._decoded: dict[str, tuple[int, Any]] = {}
        self._readings: dict[str, NodeReading] = {}
        self._heard: dict[str, float] = {}  # when each was given
        self._owners: dict[str, str] = {}  # the last owner that each domain was seen to have

    async def observe(self) -> ClusterView:
        """As Eyes.observe."""
        try:
            async with asyncio.timeout(self._rules.blind):
                snapshot, signs, readings = await asyncio.gather(
                    self._store.scan(""), self._senses.signs(), self._senses.readings()
                )
        except (Failed, OutcomeUnknown, TimeoutError):
            self._last = dataclasses.replace(self._last, quorum=False, settled=0.0, watched=0.0)
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
        young = (name for name, sign in signs.ages.items() if sign.age < 2 * self._rules.sign)  # one may come late
        self._beats = {name: self._beats.get(name, now) for name in young}
        self._readings.update(readings)
        self._heard.update(dict.fromkeys(readings, now))
        self._last = self._view(snapshot, signs, now)
        return self._last

    def _view(self, snapshot: Snapshot, signs: Signs, now: float) -> ClusterView:
        entries = {entry.key: entry for entry in snapshot.entries if not entry.key.startswith(UNSEEN)}
        self._decoded = {key: cached for key, cached in self._decoded.items() if key in entries}
        nodes = {}
        for name, record in self._all(NODES, entries).items():
            bare = NodeView(record=record, sign=signs.ages.get(name), reading=self._readings.get(name))
            nodes[name] = self._node(bare, entries, now)
        domains = {}
        records, owners = self._all(DOMAINS, entries), self._all(OWNERS, entries)
        for name in sorted({*records, *owners}):
            domains[name] = self._domain(name, records.get(name), owners.get(name), entries)
        disarmed = entries.get(DISARMED)
        return ClusterView(
            revision=snapshot.revision,
            quorum=True,
            settled=now - self._settled,
            witnesses=signs.witnesses,
            watched=now - self._watched,
            nodes=nodes,
            domains=domains,
            groups=self._all(GROUPS, entries),
            disarmed=codec.decode(disarmed.value, Disarmed) if disarmed else None,
        )

    def _node(self, bare: NodeView, entries: Mapping[str, Entry], now: float) -> NodeView:
        name, reading = bare.name, bare.reading
        alive = entries.get(ALIVE.key(name))
        fence: FenceRecord | None = self._one(FENCES, name, entries)
        proven = fence is not None and fence.state is FenceState.FENCED
        key = (alive.created, fence is not None, proven) if alive else (0, False, False)
        sighting = self._sightings.get(name)
        if sighting is None or sighting.key != key:
            again = proven and sighting is not None and sighting.key[0] == key[0] != 0
            sighting = self._sightings[name] = _Sighting(key, now, again)
        presence: Presence | None = self._one(ALIVE, name, entries)
        lasted = now - sighting.since
        told = reading is not None and self._heard[name] >= max(sighting.since, now - HEARD)
        told = told and not (sighting.again and self._heard[name] == sighting.since)
        return dataclasses.replace(
            bare,
            absent=None if presence else lasted,
            present=lasted if presence else None,
            beating=now - self._beats.get(name, now),
            fresh=presence is not None and reading is not None and told and reading.started == presence.started,
            means=self._one(MEANS, name, entries) or FenceMeans(),
            fence=fence,
            intent=self._one(INTENTS, name, entries),
            history=self._one(HISTORIES, name, entries) or NodeHistory(),
        )

    def _domain(
        self, name: str, record: DomainRecord | None, owner: Owner | None, entries: Mapping[str, Entry]
    ) -> DomainView:
        if owner:
            self._owners[name] = owner.node
        run: RunRecord | None = self._one(RUNS, name, entries)
        tied = ""
        if record and any(disk.target and not disk.volume for disk in record.spec.disks):
            tied = record.home or (owner.node if owner else self._owners.get(name) or (run.node if run else "")) or "?"
        return DomainView(
            name=name,
            memory=record.spec.memory if record else 0,
            ha=self._one(POLICIES, name, entries) or HaRecord(),
            owner=owner,
            run=run,
            move=self._one(RESERVATIONS, name, entries),
            tied=tied,
        )

    def _one(self, kind: Kind[T], name: str, entries: Mapping[str, Entry]) -> T | None:
        entry = entries.get(kind.prefix + name)
        return self._value(kind, entry) if entry else None

    def _all(self, kind: Kind[T], entries: Mapping[str, Entry]) -> dict[str, T]:
        found = (entry for key, entry in entries.items() if key.startswith(kind.prefix))
        return {kind.name(entry.key): self._value(kind, entry) for entry in found}

    def _value(self, kind: Kind[T], entry: Entry) -> T:
        """The record in `entry`, decoded once for each revision."""
        cached = self._decoded.get(entry.key)
        if cached is None or cached[0] != entry.revision:
            cached = self._decoded[entry.key] = (entry.revision, kind.value(entry))
        value: T = cached[1]
        return value
