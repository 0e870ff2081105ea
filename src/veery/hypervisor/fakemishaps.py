"""Failures of a fake driver that its user orders: calls that fail, and calls that hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from veery.errors import VeeryError

Step = str
"""The name of a driver's method, or "copy": half way through a send."""


class Mishaps:
    """The steps of a driver, each of which can be made to fail or to hang."""

    def __init__(self) -> None:
        self._failures: dict[Step, list[VeeryError]] = {}
        self._hangs: dict[Step, asyncio.Event] = {}

    def fail(self, step: Step, error: VeeryError) -> None:
        """Make the next call of `step` raise `error` before it changes anything; may be called several times."""
        self._failures.setdefault(step, []).append(error)

    def hang(self, step: Step) -> Callable[[], None]:
        """Make calls of `step` wait until the function returned here is called."""
        gate = self._hangs[step] = asyncio.Event()

        def release() -> None:
            self._hangs.pop(step, None)
            gate.set()

        return release

    async def _step(self, step: Step) -> None:
        gate = self._hangs.get(step)
        if gate is not None:
            await gate.wait()
        failures = self._failures.get(step)
        if failures:
            raise failures.pop(0)
