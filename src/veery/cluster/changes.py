"""Set an event when records in the store change."""

from __future__ import annotations

import asyncio
import logging

from veery.cluster.store import Store
from veery.errors import VeeryError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # the pause after a broken watch


async def wake(changed: asyncio.Event, store: Store, prefix: str) -> None:
    """Set `changed` at first, at each change under `prefix`, and after a broken watch, which may have missed changes.

    Runs until cancelled. The reason of a broken watch is logged once, until the store answers again."""
    logged = ""
    while True:
        try:
            after = (await store.scan(prefix)).revision
            logged = ""
            changed.set()
            async for _ in store.watch(prefix, after):
                changed.set()
        except VeeryError as error:
            if error.message != logged:
                log.warning("watch of %s restarts: %s", prefix, error.message)
            logged = error.message
        await asyncio.sleep(RETRY_S)
