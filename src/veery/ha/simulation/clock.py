"""Virtual time: an event loop that never waits. When nothing is ready it goes to the next timer at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from veery.errors import Failed

T = TypeVar("T")

BEGIN = 1_800_000_000.0  # the epoch of second 0


class _Jump(selectors.SelectSelector):
    """A selector that passes over the time it should wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Failed("the simulation stands still: nobody waits for anything that will come")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` is virtual. No sockets, no threads, no processes."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in virtual time, in a loop of its own; no other loop may be running in this thread."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class TrueClock:
    """The world's own clock, by which the store counts its leases."""

    def now(self) -> float:
        """As Clock.now."""
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        """As Clock.epoch."""
        return BEGIN + self.now()

    async def sleep(self, seconds: float) -> None:
        """As Clock.sleep."""
        await asyncio.sleep(seconds)
