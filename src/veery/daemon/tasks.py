"""The tasks of a daemon, and what happens when one of them ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from veery.host import systemd
from veery.host.shortage import is_shortage

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]

PAUSE_S = 1.0  # before a task that met a shortage starts again


@dataclass(frozen=True, slots=True)
class Task:
    """`work` runs as long as the daemon does. `again`: the task only repeats checks and loses nothing when it starts
    again. Any other task holds state that the next daemon has to take over."""

    name: str
    work: Work
    again: bool = False


def periodic(name: str, work: Work) -> Task:
    """Return a task that looks again and again, and loses nothing if it begins again."""
    return Task(name, work, again=True)


async def lasting(task: Task, *, pause: float = PAUSE_S) -> None:
    """Run `task`. If it ends with an error, the whole daemon ends: systemd starts the next one, and domains run on.

    A task with `again` that met a shortage of descriptors or memory starts again after `pause` seconds."""
    while True:
        try:
            await task.work()
            return
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not task.again or not is_shortage(error):
                log.exception("%s ended", task.name)
                raise
            log.error("%s met a shortage and starts again: %s", task.name, error)
        await asyncio.sleep(pause)


async def feed_systemd() -> None:
    """Tell systemd's watchdog that the event loop works."""
    interval = systemd.watchdog_interval()
    while interval > 0:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)
