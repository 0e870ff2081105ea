"""A storage node's watch over its sessions: one that shows another node's initiator name is closed, and told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from veery.cluster.keys import EVENTS, NODES
from veery.cluster.store import Store, StoreUnavailable
from veery.errors import VeeryError
from veery.host.clock import Clock
from veery.model.ha import Event
from veery.model.ha import Level as EventLevel
from veery.model.health import Finding, Level
from veery.storage.sessions import Home, Stranger, homes, strangers
from veery.storage.tgtoutput import Target

log = logging.getLogger(__name__)

LOOK_S = 2.0
CLOSE_LOOK_S = 0.2  # while one keeps coming back: an initiator logs in again within two seconds
QUIET_S = 60.0  # without one until it is over
TOLD_S = 3600.0  # for which doctor tells of one


class Sessions(Protocol):
    """What is watched: storage/volumes.py, Volumes."""

    async def targets(self) -> tuple[Target, ...]:
        """What tgtd serves now. Raises Failed."""
        ...

    async def expel(self, strangers: Iterable[Stranger]) -> None:
        """Close these connections. Raises Failed."""
        ...


class SessionWatch:
    """One a storage node; `run` is its task."""

    def __init__(self, node: str, store: Store, volumes: Sessions, clock: Clock) -> None:
        """`node` is this one's name."""
        self._node, self._store, self._volumes, self._clock = node, store, volumes, clock
        self._homes: dict[str, Home] = {}
        self._seen: dict[tuple[str, str], float] = {}  # (node that was claimed, node that it was): when last
        self._unknown: tuple[Stranger, ...] = ()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except VeeryError as error:
                log.debug("sessions are not looked at: %s", error.message)
            await self._clock.sleep(CLOSE_LOOK_S if self._busy() else LOOK_S)

    async def look(self) -> tuple[Stranger, ...]:
        """Look once; what was closed. Raises Failed where tgtd does not answer."""
        try:
            self._homes = homes((await NODES.readable(self._store)).values())
        except StoreUnavailable:
            pass  # what is known of the nodes' addresses still holds
        found = strangers(await self._volumes.targets(), self._homes)
        self._unknown = tuple(each for each in found if not each.node)
        others = tuple(each for each in found if each.node)
        if others:
            await self._volumes.expel(others)
            await self._tell(others)
        return others

    def finding(self) -> Finding:
        """For doctor."""
        now = self._clock.now()
        lately = sorted(pair for pair, at in self._seen.items() if now - at < TOLD_S)
        if lately:
            told = "; ".join(f"{node} logged in as {claimed}" for claimed, node in lately)
            advice = "take that node out and look into it: docs/security.md, A node under another's name"
            return Finding(node=self._node, what="iSCSI sessions", level=Level.BAD, told=told, advice=advice)
        if self._unknown:
            pairs = sorted({(each.claims, each.address) for each in self._unknown})
            told = "; ".join(
                f"{claimed} comes from {address}, which is no node's address" for claimed, address in pairs
            )
            advice = "is that an address of the node? docs/security.md, A node under another's name"
            return Finding(node=self._node, what="iSCSI sessions", level=Level.WARN, told=told, advice=advice)
        return Finding(node=self._node, what="iSCSI sessions", level=Level.OK, told="each comes from its own node")

    def _busy(self) -> bool:
        return any(self._clock.now() - at < QUIET_S for at in self._seen.values())

    async def _tell(self, others: Sequence[Stranger]) -> None:
        """Once for each pair of nodes, until it was quiet for a while."""
        now, fresh = self._clock.now(), []
        for pair in sorted({(each.claims, each.node) for each in others}):
            if now - self._seen.get(pair, -QUIET_S) >= QUIET_S:
                fresh.append(pair)
            self._seen[pair] = now
        for claimed, node in fresh:
            target = next(each.target for each in others if (each.claims, each.node) == (claimed, node))
            text = f"{node} logged in to {target} on {self._node} as {claimed}: the session is closed each time"
            log.error("%s", text)
            epoch = self._clock.epoch()
            event = Event(
                at=epoch, level=EventLevel.ALARM, what="foreign-session", subject=node, text=text, by=self._node
            )
            try:
                await self._store.commit([], [EVENTS.put(f"{int(epoch * 1_000_000):020}", event)])
            except VeeryError as error:
                log.warning("no event tells of it: %s", error.message)
