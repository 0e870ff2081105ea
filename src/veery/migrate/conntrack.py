"""What the nodes' firewalls know of the domain's connections goes along with it.

The source reads it once the domain stands, beside the question to the store; Finish carries it; the target enters it
before it lets the domain run. It is a help to the domain's peers and no condition of a move: what fails is logged."""

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

PATIENCE = 0.05  # seconds of the gap that either side gives it at most
REST = 1.0  # seconds that the target gives it when the domain runs already


class ConntrackTransfer:
    """The source's part, of one move."""

    def __init__(self, attacher: Attacher, move: str, spec: DomainSpec) -> None:
        """`spec` is the domain's; nothing is read yet."""
        self._attacher, self._move, self._spec = attacher, move, spec
        self._reading: asyncio.Task[tuple[Flow, ...]] | None = None

    def begin(self) -> None:
        """Begin to read, unless that was begun before."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name=f"{self._move} reads connections")

    async def read(self) -> tuple[Flow, ...]:
        """What was read; nothing where it takes longer than PATIENCE from now."""
        self.begin()
        assert self._reading is not None
        await asyncio.wait({self._reading}, timeout=PATIENCE)
        if self._reading.done():
            return self._reading.result()
        log.warning("move=%s tracked connections stay behind: not read in time", self._move)
        return ()

    async def stop(self) -> None:
        """Whether read or not, it is over."""
        if self._reading is not None:
            await tasks.stop(self._reading)

    async def _read(self) -> tuple[Flow, ...]:
        try:
            return await self._attacher.flows(self._spec)
        except VeeryError as error:
            log.warning("move=%s tracked connections stay behind: %s", self._move, error.message)
            return ()


@contextlib.asynccontextmanager
async def admitting(attacher: Attacher, move: str, flows: tuple[Flow, ...]) -> AsyncIterator[asyncio.Task[None]]:
    """The target's part: enter `flows` beside what is done inside, which waits for the task at most PATIENCE before it
    lets the domain run. The task never raises."""
    task = asyncio.create_task(_admit(attacher, move, flows), name=f"{move} admits connections")
    try:
        yield task
        await asyncio.wait({task}, timeout=REST)
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
