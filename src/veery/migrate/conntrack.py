"""Transfer of the nodes' firewall state: the domain's tracked connections move along with it.

The source reads them once the domain is paused, while it asks the store; Finish carries them; the target adds them
before it lets the domain run. This helps the domain's peers and is no condition of a move: a failure is only logged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from veery.errors import VeeryError
from veery.host import tasks
from veery.migrate.base import Attacher
from veery.model.domain import DomainSpec
from veery.model.flow import Flow

log = logging.getLogger(__name__)

TIMEOUT_S = 0.05  # part of the gap that either side spends on it at most
LATE_TIMEOUT_S = 1.0  # time that the target spends on it once the domain runs


class ConntrackTransfer:
    """The source's part, for one move."""

    def __init__(self, attacher: Attacher, move: str, spec: DomainSpec) -> None:
        """`spec` is the domain's; nothing is read yet."""
        self._attacher, self._move, self._spec = attacher, move, spec
        self._reading: asyncio.Task[tuple[Flow, ...]] | None = None

    def begin(self) -> None:
        """Begin to read, unless that has begun already."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name=f"{self._move} reads connections")

    async def read(self) -> tuple[Flow, ...]:
        """Return the connections; none where reading takes longer than TIMEOUT_S from now."""
        self.begin()
        assert self._reading is not None
        await asyncio.wait({self._reading}, timeout=TIMEOUT_S)
        if self._reading.done():
            return self._reading.result()
        log.warning("move=%s tracked connections were not moved: not read in time", self._move)
        return ()

    async def stop(self) -> None:
        """End the reading, finished or not."""
        if self._reading is not None:
            await tasks.stop(self._reading)

    async def _read(self) -> tuple[Flow, ...]:
        try:
            return await self._attacher.flows(self._spec)
        except VeeryError as error:
            log.warning("move=%s tracked connections were not moved: %s", self._move, error.message)
            return ()


@contextlib.asynccontextmanager
async def admitting(attacher: Attacher, move: str, flows: tuple[Flow, ...]) -> AsyncIterator[asyncio.Task[None]]:
    """Do the target's part: add `flows` while the body runs. The body waits for the task at most TIMEOUT_S before it
    lets the domain run. The task never raises."""
    task = asyncio.create_task(_admit(attacher, move, flows), name=f"{move} admits connections")
    try:
        yield task
        await asyncio.wait({task}, timeout=LATE_TIMEOUT_S)
    finally:
        await tasks.stop(task)


async def _admit(attacher: Attacher, move: str, flows: tuple[Flow, ...]) -> None:
    if not flows:
        return
    try:
        known = await attacher.admit(flows)
    except VeeryError as error:
        log.warning("move=%s %s", move, error.message)
    else:
        log.info("move=%s %d of %d tracked connections known here", move, known, len(flows))
