"""What a daemon runs, and what becomes of it when one of its tasks ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from veery.host import systemd
from veery.host.process import Service
from veery.host.shortage import is_shortage

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]

PAUSE_S = 1.0  # before a task that met a shortage begins again


@dataclass(frozen=True, slots=True)
class Task:
    """`work` runs for as long as the daemon does. `again`: it looks again and again, and loses nothing when it begins
    again; any other holds something that the next daemon has to take over."""

    name: str
    work: Work
    again: bool = True


async def lasting(task: Task, *, pause: float = PAUSE_S) -> None:
    """Run `task`. One that ends by an error takes the daemon down with it: systemd starts the next, domains run on. One
    with `again` that met a shortage of descriptors or memory begins again after `pause` seconds."""
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
            log.error("%s met a shortage, and begins again: %s", task.name, error)
        await asyncio.sleep(pause)


def of_services(services: Iterable[Service]) -> list[Task]:
    """A task for each program that this node keeps running."""
    return [Task(each.name, each.run) for each in services]


async def feed_systemd() -> None:
    """Tell systemd that the loop turns."""
    interval = systemd.watchdog_interval()
    while interval > 0:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)
