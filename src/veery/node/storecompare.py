"""Compares the data of the store's members at intervals; a difference raises an alarm.

etcd's own check (cluster/server.py, CHECK_EVERY) stops the store when it finds a difference. This check comes earlier,
while the store still accepts the event, and names the member."""

from __future__ import annotations

import asyncio
import logging

from veery.cluster.etcd import EtcdStore
from veery.cluster.keys import EVENTS
from veery.errors import VeeryError
from veery.host.clock import Clock
from veery.model.ha import Event
from veery.model.ha import Level as EventLevel
from veery.model.health import Level
from veery.node import storehealth

log = logging.getLogger(__name__)

EVERY_S = 300.0


class StoreCompare:
    """Compares the members, on a voter. The daemon owns the task of `run`. Only the voter whose member leads does the
    work."""

    def __init__(self, node: str, store: EtcdStore, clock: Clock) -> None:
        """`node` is the name of this node."""
        self._node, self._store, self._clock = node, store, clock
        self._said = ""

    async def run(self) -> None:
        """Compare at intervals until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except VeeryError as error:
                log.debug("the members could not be compared: %s", error.message)

    async def look(self) -> str:
        """Compare the members once; return what differs, "" if nothing does. A difference is reported once. Raises
        StoreUnavailable, OutcomeUnknown."""
        reading = await storehealth.read(self._store.voters, ())
        own = next((each for each in reading.members if each.voter.name == self._node), None)
        if own is None or own.status is None or own.status.leader != own.voter.id:
            return ""
        found = [storehealth.judge_hashes(self._node, reading), *storehealth.judge_alarms(self._node, reading)]
        told = "; ".join(each.told for each in found if each.level is Level.BAD)
        if told != self._said:
            self._said = told
            if told:
                log.error("the members of the store differ or raise alarms: %s", told)
                await self._tell(told)
        return told

    async def _tell(self, told: str) -> None:
        epoch = self._clock.epoch()
        event = Event(
            at=epoch,
            level=EventLevel.ALARM,
            what="store-alarm",
            subject="cluster",
            text=f"{told}; next: veery doctor --all; docs/hosts.md, Members that differ",
            by=self._node,
        )
        await self._store.commit([], [EVENTS.put(f"{int(epoch * 1_000_000):020}", event)])
