"""Many moves out of one node: how many copy at once, and who may switch over next.

Copies run side by side, for they cost the domains little. Switch-overs take turns: two at once make both domains
stand still for longer. A copy that could switch over is held in its rounds until its turn comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from veery.host.clock import Clock

PATIENCE = 2.0
"""Seconds for which a copy that is ready waits until the others are: their copying would lengthen its gap."""


@dataclass(eq=False)
class Turn:
    """One move's place in the row. `ready_since`: when it could have switched over (None: it still copies)."""

    move: str
    turns: Turns
    granted: Callable[[], None] = lambda: None
    ready_since: float | None = None

    @property
    def alone(self) -> bool:
        """Whether no other move is under way: then nobody needs to wait for anybody."""
        return self.turns.members == [self]

    @property
    def mine(self) -> bool:
        """Whether it may switch over now."""
        return self.turns.holder is self

    def take(self) -> None:
        """Take the turn at once, for a move that is alone."""
        self.turns.holder = self

    def ready(self) -> None:
        """It can switch over; `granted` is called as soon as it may."""
        if self.ready_since is None:
            self.ready_since = self.turns.clock.now()
            self.turns.look()

    def close(self) -> None:
        """It has switched over, or ended. Idempotent."""
        if self in self.turns.members:
            self.turns.members.remove(self)
            if self.mine:
                self.turns.holder = None
            self.turns.look()


class Turns:
    """The row of one source node."""

    def __init__(self, clock: Clock) -> None:
        """Nobody is in it."""
        self.clock = clock
        self.members: list[Turn] = []
        self.holder: Turn | None = None

    def join(self, move: str) -> Turn:
        """A move begins."""
        turn = Turn(move, self)
        self.members.append(turn)
        return turn

    def look(self) -> None:
        """Give the turn to whom it is due."""
        if self.holder is not None:
            return
        now = self.clock.now()
        chosen = choose(self.members, now)
        if chosen is not None:
            self.holder = chosen
            chosen.granted()
            return
        waiting = [each.ready_since for each in self.members if each.ready_since is not None]
        if waiting:
            asyncio.get_running_loop().call_later(max(min(waiting) + PATIENCE - now, 0) + 0.01, self.look)


def choose(members: Sequence[Turn], now: float) -> Turn | None:
    """Whose turn it is: of those that are ready the one that waits longest, once all are ready or it has waited for
    PATIENCE; None: nobody's yet."""
    waiting = [each for each in members if each.ready_since is not None]
    if not waiting:
        return None
    first = min(waiting, key=lambda each: each.ready_since or 0.0)
    if len(waiting) == len(members) or now - (first.ready_since or 0.0) >= PATIENCE:
        return first
    return None


@dataclass(eq=False)
class Places:
    """How many moves may be under way out of this node, and to each other node. First come, first served; who
    waits for a busy node does not stand in the way of the others."""

    out: int
    link: int
    _taken: list[str] = field(default_factory=list)
    _waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)

    def free(self, target: str) -> bool:
        """Whether one more move to `target` may begin."""
        return len(self._taken) < self.out and self._taken.count(target) < self.link

    async def take(self, target: str) -> None:
        """Return once a move to `target` may begin. Give it back with `leave`."""
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
        """A move to `target` has ended."""
        self._taken.remove(target)
        for entry in tuple(self._waiting):
            name, future = entry
            if self.free(name):
                self._waiting.remove(entry)
                self._taken.append(name)
                future.set_result(None)
