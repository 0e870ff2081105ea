"""Scheduling of many moves out of one node: how many at once, how many of them copy, and which may switch over next.

A copy takes a processor at each end and much of the path. So only `copies` of them run at a time, and one more prepares
its target meanwhile. Copies that run together take turns to switch over, because two at once would make both domains
pause for longer. A copy that could switch over is held in its rounds until its turn comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from veery.host.clock import Clock

PATIENCE_S = 2.0
"""How long a copy that is ready waits until the others are: their copying would lengthen its gap."""
LINGER_S = 3.0
"""How long after its first pass a copy keeps the others from beginning theirs."""
SOON_S = 5.0
"""The next move may prepare its target when a copy has this long to go: a promise there should not be old."""


class Stage(Enum):
    """How far a move has come, as far as it matters to the others."""

    QUEUED = "has sent no offer to its target yet"
    ASIDE = "its target takes in other domains first"
    PREPARING = "its target prepares or is prepared"
    COPYING = "copies, and uses one of the places for copies"
    LINGERING = "copies for longer than the others have to wait"


@dataclass(eq=False)
class Turn:
    """One move's place in the queue. `ready_since`: when it could have switched over (None: it still copies); `soon`:
    its copy ends within seconds."""

    move: str
    turns: CopyScheduler
    granted: Callable[[], None] = lambda: None
    stage: Stage = Stage.QUEUED
    soon: bool = False
    ready_since: float | None = None

    @property
    def alone(self) -> bool:
        """True if no other move copies: then no move has to wait."""
        return not any(each.copying for each in self.turns.members if each is not self)

    @property
    def copying(self) -> bool:
        """True if this move copies."""
        return self.stage in (Stage.COPYING, Stage.LINGERING)

    @property
    def mine(self) -> bool:
        """True if this move may switch over now."""
        return self.turns.holder is self

    def take(self) -> None:
        """Take the turn at once, for a move that is alone."""
        self.turns.holder = self

    async def prepare(self) -> None:
        """Return once the target may prepare. First come, first served."""
        await self.turns.until(lambda: self.turns.may_prepare(self))
        self.stage = Stage.PREPARING

    def aside(self) -> None:
        """Step aside: the target makes this move wait, the others need not wait for it."""
        self.stage = Stage.ASIDE
        self.turns.changed()

    async def copy(self) -> None:
        """Return once this move may copy."""
        await self.turns.until(self.turns.may_copy)
        self.stage = Stage.COPYING
        self.turns.changed()

    def near(self) -> None:
        """Mark that the copy ends within seconds. Idempotent."""
        if not self.soon:
            self.soon = True
            self.turns.changed()

    def linger(self) -> None:
        """Mark that the copy takes longer than it should: let others begin. Idempotent."""
        if self.stage is Stage.COPYING:
            self.stage = Stage.LINGERING
            if self.mine:
                self.turns.holder = None
            self.turns.look()
            self.turns.changed()

    def ready(self) -> None:
        """Mark that the move can switch over; `granted` is called as soon as it may."""
        if self.ready_since is None:
            self.ready_since = self.turns.clock.now()
            self.turns.look()

    def close(self) -> None:
        """Leave the queue: the move has switched over, or ended. Idempotent."""
        if self in self.turns.members:
            self.turns.members.remove(self)
            if self.mine:
                self.turns.holder = None
            self.turns.look()
            self.turns.changed()


class CopyScheduler:
    """The queue of one source node."""

    def __init__(self, clock: Clock, copies: int) -> None:
        """Begin with an empty queue; at most `copies` moves copy at once."""
        self.clock, self.copies = clock, copies
        self.members: list[Turn] = []
        self.holder: Turn | None = None
        self._news = asyncio.Event()

    def join(self, move: str) -> Turn:
        """Add a move to the queue."""
        turn = Turn(move, self)
        self.members.append(turn)
        return turn

    def may_prepare(self, turn: Turn) -> bool:
        """Return whether `turn` is the first that waits, and there is a place, or one becomes free within seconds."""
        first = next(each for each in self.members if each.stage is Stage.QUEUED)
        copying = [each for each in self.members if each.stage is Stage.COPYING]
        busy = len(copying) + sum(each.stage is Stage.PREPARING for each in self.members)
        soon = any(each.soon for each in copying)
        return first is turn and busy < self.copies + soon

    def may_copy(self) -> bool:
        """Return whether there is a place for one more copy."""
        return sum(each.stage is Stage.COPYING for each in self.members) < self.copies

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once `holds` is true; it is evaluated again at every change."""
        while not holds():
            await self._news.wait()

    def changed(self) -> None:
        """Wake every waiting move: the state of one has changed."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def look(self) -> None:
        """Give the turn to the move that is due."""
        if self.holder is not None:
            return
        now = self.clock.now()
        copying = [each for each in self.members if each.stage is Stage.COPYING or each.ready_since is not None]
        chosen = choose(copying, now)
        if chosen is not None:
            self.holder = chosen
            chosen.granted()
            return
        waiting = [each.ready_since for each in copying if each.ready_since is not None]
        if waiting:
            asyncio.get_running_loop().call_later(max(min(waiting) + PATIENCE_S - now, 0) + 0.01, self.look)


def choose(members: Sequence[Turn], now: float) -> Turn | None:
    """Return the move whose turn it is: of those that are ready the one that has waited longest, once all are ready or
    it has waited for PATIENCE_S. None: no move's turn yet."""
    waiting = [each for each in members if each.ready_since is not None]
    if not waiting:
        return None
    first = min(waiting, key=lambda each: each.ready_since or 0.0)
    if len(waiting) == len(members) or now - (first.ready_since or 0.0) >= PATIENCE_S:
        return first
    return None


@dataclass(eq=False)
class Places:
    """How many moves may be under way out of this node, and to each other node. First come, first served; a move that
    waits for a busy node does not block the others."""

    out: int
    link: int
    _taken: list[str] = field(default_factory=list)
    _waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)

    def free(self, target: str) -> bool:
        """Return whether one more move to `target` may begin."""
        return len(self._taken) < self.out and self._taken.count(target) < self.link

    async def take(self, target: str) -> None:
        """Return once a move to `target` may begin. Give the place back with `leave`."""
        if self.free(target) and not any(name == target for name, _ in self._waiting):
            self._taken.append(target)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (target, future)
        self._waiting.append(entry)
        try:
            await future
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self.leave(target)
            raise

    def leave(self, target: str) -> None:
        """Give back the place of a move to `target` that has ended."""
        self._taken.remove(target)
        for entry in tuple(self._waiting):
            name, future = entry
            if self.free(name):
                self._waiting.remove(entry)
                self._taken.append(name)
                future.set_result(None)
