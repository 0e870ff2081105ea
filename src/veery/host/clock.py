"""Time as an argument: the real clock, and the Protocol that simulations implement."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """The only door to time."""

    def now(self) -> float:
        """Seconds on a monotonic clock; only differences mean anything."""
        ...

    def epoch(self) -> float:
        """Seconds since 1970, for people and for records."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class RealClock:
    """The machine's own clock."""

    def now(self) -> float:
        """As Clock.now."""
        return time.monotonic()

    def epoch(self) -> float:
        """As Clock.epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """As Clock.sleep."""
        await asyncio.sleep(seconds)
