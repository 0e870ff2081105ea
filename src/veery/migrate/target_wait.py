"""Helpers of the source that wait for the target: with a deadline, and for the target's own error."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

from veery.errors import Failed, VeeryError
from veery.hypervisor.base import DiskFull

T = TypeVar("T")


async def within(task: asyncio.Task[T], deadline: float, peer: str) -> T:
    """Return what `task` receives from `peer`. Raises Failed after `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            return await task
    except TimeoutError as error:
        raise Failed(f"{peer} did not load the copy within {deadline:g} s") from error


async def said_by_target(listening: asyncio.Task[Any], error: VeeryError) -> VeeryError:
    """Return the source's error with what the target says about it shortly. The target's hint counts more, unless the
    source knows the cause."""
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(1.0):
            await asyncio.wait({listening})
    if listening.done() and not listening.cancelled():
        theirs = listening.exception()
        if isinstance(theirs, VeeryError) and theirs is not error:
            hint = error.hint if isinstance(error, DiskFull) else theirs.hint or error.hint
            return Failed(f"{error.message} ({theirs.message})", hint=hint)
    return error
