"""Helpers to cancel tasks, and to protect work from cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from veery.errors import VeeryError
from veery.host.clock import Clock

T = TypeVar("T")


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when they have ended; their results are ignored."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # otherwise asyncio warns that it was never retrieved


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` to its end, however often the caller is cancelled meanwhile; raise the cancellation afterwards.
    Raises what `work` raises, with or without a cancellation."""
    result, cancelled = await through(work)
    if cancelled is not None:
        raise cancelled
    return result


async def through(work: Awaitable[T]) -> tuple[T, asyncio.CancelledError | None]:
    """Await `work` to its end as `to_the_end` does; return its result and the cancellation that came meanwhile, or
    None. The caller decides which of the two counts. Raises what `work` raises."""
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
    """Call `look` every `every_s` seconds, until cancelled. Its error (VeeryError, OSError) is logged once under the
    name `what`, until another error or a success."""
    logged = ""
    while True:
        try:
            await look()
            logged = ""
        except (VeeryError, OSError) as error:
            if str(error) != logged:
                log.warning("%s: %s", what, error)
            logged = str(error)
        await clock.sleep(every_s)
