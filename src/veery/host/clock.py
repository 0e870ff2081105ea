"""Time as an argument: the real clock, and the Protocol that simulations implement."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """The interface through which veery reads time and sleeps."""

    def now(self) -> float:
        """Return seconds of a monotonic clock; only differences have a meaning."""
        ...

    def epoch(self) -> float:
        """Return seconds since 1970, for people and for records."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class RealClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Implement Clock.now."""
        return time.monotonic()

    def epoch(self) -> float:
        """Implement Clock.epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Implement Clock.sleep."""
        await asyncio.sleep(seconds)
