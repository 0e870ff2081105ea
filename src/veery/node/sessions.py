"""Watches the iSCSI sessions of a storage node: closes a session that uses another node's initiator name, and reports
it."""

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
CLOSE_LOOK_S = 0.2  # while a session keeps returning: an initiator logs in again within two seconds
QUIET_S = 60.0  # without such a session until the incident is over
TOLD_S = 3600.0  # how long doctor reports a session


class Sessions(Protocol):
    """The sessions to watch: storage/volumes.py, Volumes."""

    async def targets(self) -> tuple[Target, ...]:
        """Return what tgtd serves now. Raises Failed."""
        ...

    async def expel(self, strangers: Iterable[Stranger]) -> None:
        """Close these connections. Raises Failed."""
        ...


class SessionWatch:
    """The session watch of a storage node. The daemon owns the task of `run`."""

    def __init__(self, node: str, store: Store, volumes: Sessions, clock: Clock) -> None:
        """`node` is the name of this node."""
        self._node, self._store, self._volumes, self._clock = node, store, volumes, clock
        self._homes: dict[str, Home] = {}
        self._seen: dict[tuple[str, str], float] = {}  # (claimed node, real node): when last seen
        self._unknown: tuple[Stranger, ...] = ()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.look()
            except VeeryError as error:
                log.debug("sessions could not be checked: %s", error.message)
            await self._clock.sleep(CLOSE_LOOK_S if self._busy() else LOOK_S)

    async def look(self) -> tuple[Stranger, ...]:
        """Check once; return the closed sessions. Raises Failed if tgtd does not answer."""
        try:
            self._homes = homes((await NODES.readable(self._store)).values())
        except StoreUnavailable:
            pass  # the known addresses of the nodes still apply
        found = strangers(await self._volumes.targets(), self._homes)
        self._unknown = tuple(each for each in found if not each.node)
        others = tuple(each for each in found if each.node)
        if others:
            await self._volumes.expel(others)
            await self._tell(others)
        return others

    def finding(self) -> Finding:
        """Return the finding for doctor."""
        now = self._clock.now()
        lately = sorted(pair for pair, at in self._seen.items() if now - at < TOLD_S)
        if lately:
            told = "; ".join(f"{node} logged in as {claimed}" for claimed, node in lately)
            advice = "isolate that node and examine it: docs/security.md, A node under another's name"
            return Finding(node=self._node, what="iSCSI sessions", level=Level.BAD, told=told, advice=advice)
        if self._unknown:
            pairs = sorted({(each.claims, each.address) for each in self._unknown})
            told = "; ".join(
                f"{claimed} connects from {address}, which is not a node's address" for claimed, address in pairs
            )
            advice = "check whether that is an address of the node: docs/security.md, A node under another's name"
            return Finding(node=self._node, what="iSCSI sessions", level=Level.WARN, told=told, advice=advice)
        return Finding(
            node=self._node, what="iSCSI sessions", level=Level.OK, told="every session comes from its own node"
        )

    def _busy(self) -> bool:
        return any(self._clock.now() - at < QUIET_S for at in self._seen.values())

    async def _tell(self, others: Sequence[Stranger]) -> None:
        """Report each pair of nodes once, until it has been quiet for a while."""
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
                log.warning("no event could be recorded: %s", error.message)
