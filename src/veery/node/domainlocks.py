"""One order at a time on each domain of this node, and none while the domain moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from veery.errors import Failed, Refused
from veery.migrate.moves import Moves
from veery.migrate.receiver import Receiver

LOCK_DEADLINE_S = 30.0  # for an earlier order on the same domain to end


@dataclass(slots=True)
class _Lock:
    """The lock of one domain. `users`: how many orders hold it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class DomainLocks:
    """The locks of this node's domains, by name. A move in either direction locks a domain too."""

    def __init__(self, moves: Moves, receiver: Receiver, *, deadline: float = LOCK_DEADLINE_S) -> None:
        """`moves` knows the moves out of this node, `receiver` those into it. `deadline`: for an earlier order on the
        same domain to end."""
        self._moves, self._receiver, self._deadline = moves, receiver, deadline
        self._locks: dict[str, _Lock] = {}  # only those that an order holds or waits for

    def locked(self, name: str, *, arriving: bool = False) -> bool:
        """Return True if an order or a move is at work on domain `name` here. `arriving`: do not count a domain that
        already runs here while the rest of its memory follows."""
        busy = self._moves.busy(name, arriving=arriving)
        return self._ordered(name) or bool(busy) or bool(self._receiver.arriving(name))

    def at_work(self, name: str) -> str:
        """Return a sentence about the move or order that is at work on domain `name` here; "" if there is none."""
        if busy := self._moves.busy(name):
            return busy
        if offer := self._receiver.arriving(name):
            return f"{name} is on its way here from {offer.source} (move {offer.move})"
        return "an order on it is under way" if self._ordered(name) else ""

    def busy(self) -> frozenset[str]:
        """Return the domains with an order under way here. A move does not count."""
        return frozenset(name for name in self._locks if self._ordered(name))

    def _ordered(self, name: str) -> bool:
        return name in self._locks and self._locks[name].lock.locked()

    @contextlib.asynccontextmanager
    async def only(self, name: str) -> AsyncIterator[None]:
        """Hold domain `name` for one order, also while it moves. Raises Failed if an earlier order does not end
        in time."""
        mine = self._locks.setdefault(name, _Lock())
        mine.users += 1
        try:
            try:
                async with asyncio.timeout(self._deadline):
                    await mine.lock.acquire()
            except TimeoutError as error:
                raise Failed(f"{name} is busy with another order", hint="try again when it has ended") from error
            try:
                yield
            finally:
                mine.lock.release()
        finally:
            mine.users -= 1
            if not mine.users:
                del self._locks[name]

    @contextlib.asynccontextmanager
    async def hold(self, name: str, *, arriving: bool = False) -> AsyncIterator[None]:
        """Hold domain `name` for one order. Raises Refused while it moves. `arriving`: allow it if the domain already
        runs here while the rest of its memory follows."""
        async with self.only(name):
            if busy := self._moves.busy(name, arriving=arriving):
                raise Refused(busy, hint=self._moves.advice(name))
            if offer := self._receiver.arriving(name):
                hint = f"wait for its end, or: veery --node {offer.source} move cancel {offer.move}"
                raise Refused(f"{name} is on its way here", hint=hint)
            yield
