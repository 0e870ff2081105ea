"""How a source waits for its target: to the end, for so long, and for its word on what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from veery.errors import Failed, VeeryError

T = TypeVar("T")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` to its end even when we are cancelled meanwhile: past COMMIT there is no way back."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def within(task: asyncio.Task[T], deadline: float, peer: str) -> T:
    """What `task` hears of `peer`. Raises Failed after `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            return await task
    except TimeoutError as error:
        raise Failed(f"{peer} did not load what it was sent within {deadline:g} s") from error


async def said_by_target(listening: asyncio.Task[Any], error: VeeryError) -> VeeryError:
    """The target's own reason, when it gives one shortly; else what we saw ourselves."""
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(1.0):
            await asyncio.wait({listening})
    if listening.done() and not listening.cancelled():
        told = listening.exception()
        if isinstance(told, VeeryError) and told is not error:
            return Failed(f"{error.message} ({told.message})", hint=told.hint or error.hint)
    return error
