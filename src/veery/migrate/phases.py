"""The seven phases of a move: which may follow which, and the one step that enters them.

The sender's steps are journalled, timed, logged and published here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from veery.errors import Failed
from veery.host.clock import Clock
from veery.migrate.journal import Journal, Line
from veery.model.move import MoveProgress, Phase

log = logging.getLogger(__name__)

FOLLOWS: dict[Phase | None, Phase] = {
    None: Phase.BEGIN,
    Phase.BEGIN: Phase.PREPARE,
    Phase.PREPARE: Phase.COPY,
    Phase.COPY: Phase.LOADED,
    Phase.LOADED: Phase.COMMIT,
    Phase.COMMIT: Phase.FINISH,
    Phase.FINISH: Phase.CONFIRM,
}

CANCELLABLE = frozenset({Phase.BEGIN, Phase.PREPARE, Phase.COPY, Phase.LOADED})
"""The phases in which a user can still cancel the move, so that the domain stays where it is."""


class Hold:
    """A brake for tests: while the file FOLDER/PHASE exists, a move that enters PHASE waits (at most 120 s)."""

    def __init__(self, folder: Path) -> None:
        """Watch `folder`. It need not exist; it is only read, never made."""
        self._folder = folder

    async def at(self, phase: Phase) -> None:
        """Return once no file holds `phase`."""
        path = self._folder / phase.value
        if not path.exists():
            return
        log.warning("held in %s while %s exists", phase.value, path)
        async with asyncio.timeout(120):
            while path.exists():  # noqa: ASYNC110 (the other side is a file)
                await asyncio.sleep(0.01)


class Steps:
    """The progress of one move on this side: the current phase and the milliseconds spent in each."""

    def __init__(
        self, line: Line, journal: Journal, clock: Clock, hold: Hold, publish: Callable[[Phase], None]
    ) -> None:
        """`line` is the journal's line of this move; `publish` is called with each phase that is entered."""
        self.line = line
        self.phase: Phase | None = None
        self.times: dict[str, float] = {}
        self._journal, self._clock, self._hold, self._publish = journal, clock, hold, publish
        self._since = self.began = clock.now()

    async def enter(self, phase: Phase) -> None:
        """Enter `phase`: check, journal, log, time, publish. Raises Failed when it may not follow the current phase."""
        if FOLLOWS.get(self.phase) is not phase:
            raise Failed(f"move {self.line.move}: {phase.value} does not follow {self.phase}")
        self._account()
        self.phase = phase
        self.line = self._journal.write(self.line.at(phase))
        log.info("move=%s domain=%s phase=%s", self.line.move, self.line.domain, phase.value)
        self._publish(phase)
        await self._hold.at(phase)

    def close(self) -> None:
        """Record the last phase's time and strike the journal's line. Call it when the move is over and nothing of it
        is left."""
        self._account()
        self.phase = None
        self._journal.strike(self.line)

    def elapsed_ms(self) -> float:
        """Return the milliseconds since BEGIN."""
        return (self._clock.now() - self.began) * 1000

    def _account(self) -> None:
        now = self._clock.now()
        if self.phase is not None:
            self.times[self.phase.value] = round((now - self._since) * 1000, 2)
        self._since = now


Publish = Callable[[MoveProgress], None]
