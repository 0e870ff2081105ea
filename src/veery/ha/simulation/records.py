"""The store's records as the judges of a simulated world read them: decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping

from veery.cluster.keys import ALIVE, DISARMED, FENCES, INTENTS, OWNERS, POLICIES, RESERVATIONS, RUNS
from veery.cluster.store import Entry
from veery.model.cluster import Owner, Reservation
from veery.model.ha import FenceRecord, HaRecord, IntentKind, Policy, RunRecord


class Records:
    """All entries of one revision."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    @property
    def disarmed(self) -> bool:
        """Whether `veery disarm` stands."""
        return DISARMED in self._entries

    def alive(self, node: str) -> bool:
        """Whether `node` has its lease."""
        return ALIVE.key(node) in self._entries

    def alive_since(self, node: str) -> int:
        """The revision at which it got that lease; 0 without one."""
        entry = self._entries.get(ALIVE.key(node))
        return entry.created if entry else 0

    def fence(self, node: str) -> FenceRecord | None:
        """fence/NODE."""
        entry = self._entries.get(FENCES.key(node))
        return FENCES.value(entry) if entry else None

    def drained(self, node: str) -> bool:
        """Whether `node` is to be empty."""
        return self._intent(node) is IntentKind.DRAIN

    def resumed(self, node: str) -> bool:
        """Whether what had to leave `node` is to come home."""
        return self._intent(node) is IntentKind.RESUME

    def _intent(self, node: str) -> IntentKind | None:
        entry = self._entries.get(INTENTS.key(node))
        return INTENTS.value(entry).kind if entry else None

    def owner(self, domain: str) -> Owner | None:
        """owner/DOMAIN."""
        entry = self._entries.get(OWNERS.key(domain))
        return OWNERS.value(entry) if entry else None

    def on(self, domain: str) -> str:
        """The node that owns it; "" for none."""
        owner = self.owner(domain)
        return owner.node if owner else ""

    def policy(self, domain: str) -> HaRecord:
        """ha/DOMAIN."""
        entry = self._entries.get(POLICIES.key(domain))
        return POLICIES.value(entry) if entry else HaRecord()

    def restarts(self, domain: str) -> bool:
        """Whether it is to be started when it does not run."""
        policy = self.policy(domain)
        return policy.policy is Policy.RESTART and policy.wanted and policy.max_restarts > 0

    def run(self, domain: str) -> RunRecord | None:
        """run/DOMAIN."""
        entry = self._entries.get(RUNS.key(domain))
        return RUNS.value(entry) if entry else None

    def moves(self) -> tuple[Reservation, ...]:
        """The promises of all moves."""
        return tuple(
            RESERVATIONS.value(each) for key, each in self._entries.items() if key.startswith(RESERVATIONS.prefix)
        )
