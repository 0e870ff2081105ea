"""Being woken when records in the store change."""

from __future__ import annotations

import asyncio
import logging

from veery.cluster.store import Store
from veery.errors import VeeryError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # after a watch that broke off


async def wake(changed: asyncio.Event, store: Store, prefix: str) -> None:
    """For ever: set `changed` at first, whenever something under `prefix` changes, and after a watch that broke off,
    which may have missed changes. Why it broke off is logged once, until the store answers again."""
    said = ""
    while True:
        try:
            after = (await store.scan(prefix)).revision
            said = ""
            changed.set()
            async for _ in store.watch(prefix, after):
                changed.set()
        except VeeryError as error:
            if error.message != said:
                log.warning("watch of %s begins anew: %s", prefix, error.message)
            said = error.message
        await asyncio.sleep(RETRY_S)
