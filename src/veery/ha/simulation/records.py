"""The store's records as the judges of a simulated world read them: decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from veery.cluster.keys import (
    ALIVE,
    DISARMED,
    DOMAINS,
    FENCES,
    HEALTHS,
    HISTORIES,
    INCARNATION,
    INCARNATIONS,
    INTENTS,
    LEADER,
    LEADERS,
    OWNERS,
    POLICIES,
    RESERVATIONS,
    RUNS,
    Kind,
)
from veery.cluster.store import Entry, Snapshot
from veery.model.cluster import Owner, Reservation
from veery.model.ha import FenceRecord, HaRecord, IntentKind, Policy, RunRecord
from veery.model.verdict import NodeVerdict

T = TypeVar("T")


class Records:
    """All entries of one revision. `before`: an earlier one, whose decoded values are used where nothing changed."""

    def __init__(self, snapshot: Snapshot, before: Records | None = None) -> None:
        self.revision = snapshot.revision
        self._entries = {entry.key: entry for entry in snapshot.entries}
        self._values: dict[str, tuple[Entry, Any]] = before._values if before else {}

    def _one(self, kind: Kind[T], name: str) -> T | None:
        entry = self._entries.get(kind.prefix + name)
        return self._value(kind, entry) if entry else None

    def _value(self, kind: Kind[T], entry: Entry) -> T:
        known = self._values.get(entry.key)
        if known is None or known[0] is not entry:  # not by its revision: a restored store uses those again
            known = self._values[entry.key] = (entry, kind.value(entry))
        value: T = known[1]
        return value

    @property
    def disarmed(self) -> bool:
        """Whether `veery disarm` stands."""
        return DISARMED in self._entries

    @property
    def doubted(self) -> bool:
        """Whether a node found that the store went back."""
        entry = self._entries.get(INCARNATION)
        return entry is not None and bool(self._value(INCARNATIONS, entry).doubt)

    @property
    def leader(self) -> str:
        """The node that leads, as the store has it; "" for none."""
        entry = self._entries.get(LEADER)
        return self._value(LEADERS, entry).node if entry else ""

    def fences_of(self, node: str) -> int:
        """How often `node` was fenced of late."""
        history = self._one(HISTORIES, node)
        return len(history.fenced) if history else 0

    def alive(self, node: str) -> bool:
        """Whether `node` has its lease."""
        return ALIVE.prefix + node in self._entries

    def alive_since(self, node: str) -> int:
        """The revision at which it got that lease; 0 without one."""
        entry = self._entries.get(ALIVE.key(node))
        return entry.created if entry else 0

    def fence(self, node: str) -> FenceRecord | None:
        """fence/NODE."""
        return self._one(FENCES, node)

    def fence_since(self, node: str) -> int:
        """The revision at which the fence of `node` that stands was begun; 0 without one."""
        entry = self._entries.get(FENCES.key(node))
        return entry.created if entry else 0

    def unsound(self, node: str, hypervisors: Collection[str]) -> bool:
        """Whether the sensors of `node` speak against it. A state that half of the `hypervisors` show, and that puts
        the node into quarantine at most, does not."""
        health = self._one(HEALTHS, node)
        if health is None or health.verdict is NodeVerdict.WELL:
            return False
        asking = [each for each in health.signs if each.asks is not NodeVerdict.WELL]
        if health.verdict is NodeVerdict.EVACUATE or not all(each.shared for each in asking):
            return True
        told = {name: self._one(HEALTHS, name) for name in hypervisors}
        show = {
            sensor: [
                name
                for name, each in told.items()
                if each and any(sign.sensor == sensor and sign.asks is not NodeVerdict.WELL for sign in each.signs)
            ]
            for sensor in {each.sensor for each in asking}
        }
        return any(len(names) < 2 or 2 * len(names) < len(hypervisors) for names in show.values())

    def drained(self, node: str) -> bool:
        """Whether `node` is to be empty."""
        return self._intent(node) is IntentKind.DRAIN

    def resumed(self, node: str) -> bool:
        """Whether what had to leave `node` is to come home."""
        return self._intent(node) is IntentKind.RESUME

    def away(self, node: str, *, before: int) -> float:
        """For how many seconds `node` announced that its daemon would be away, earlier than revision `before`; or 0."""
        intent = self._one(INTENTS, node)
        told = intent is not None and intent.revision < before
        return intent.away if intent and told else 0.0

    def _intent(self, node: str) -> IntentKind | None:
        intent = self._one(INTENTS, node)
        return intent.kind if intent else None

    def owner(self, domain: str) -> Owner | None:
        """owner/DOMAIN."""
        return self._one(OWNERS, domain)

    def on(self, domain: str) -> str:
        """The node that owns it; "" for none."""
        owner = self.owner(domain)
        return owner.node if owner else ""

    def left(self, domain: str) -> str:
        """The node that it was taken from while it may write its files still; "" for none."""
        record = self._one(DOMAINS, domain)
        return record.left if record else ""

    def policy(self, domain: str) -> HaRecord:
        """ha/DOMAIN."""
        return self._one(POLICIES, domain) or HaRecord()

    def restarts(self, domain: str) -> bool:
        """Whether it is to be started when it does not run."""
        policy = self.policy(domain)
        return policy.policy is Policy.RESTART and policy.wanted and policy.max_restarts > 0

    def run(self, domain: str) -> RunRecord | None:
        """run/DOMAIN."""
        return self._one(RUNS, domain)

    def moves(self) -> tuple[Reservation, ...]:
        """The promises of all moves."""
        return tuple(
            self._value(RESERVATIONS, each)
            for key, each in self._entries.items()
            if key.startswith(RESERVATIONS.prefix)
        )
