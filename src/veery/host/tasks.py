"""Tasks that are ended before their time, and work that is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from veery.errors import VeeryError
from veery.host.clock import Clock

T = TypeVar("T")


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when they are through with it; what came of them is not asked for."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # or asyncio would complain that nobody asked


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` to its end, however often we are cancelled meanwhile; the cancellation is raised afterwards.
    Raises what `work` raises, a cancellation or not."""
    result, cancelled = await through(work)
    if cancelled is not None:
        raise cancelled
    return result


async def through(work: Awaitable[T]) -> tuple[T, asyncio.CancelledError | None]:
    """Await `work` to its end as `to_the_end` does, and return its result together with the cancellation that came
    meanwhile: the caller decides which of the two counts. Raises what `work` raises."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return task.result(), cancelled


async def look_for_ever(
    look: Callable[[], Awaitable[object]], *, what: str, every_s: float, clock: Clock, log: logging.Logger
) -> None:
    """Call `look` every `every_s` seconds. What it raises (VeeryError, OSError) is logged under the name `what` once,
    until it raises something else or succeeds. Cancel to stop."""
    said = ""
    while True:
        try:
            await look()
            said = ""
        except (VeeryError, OSError) as error:
            if str(error) != said:
                log.warning("%s: %s", what, error)
            said = str(error)
        await clock.sleep(every_s)
