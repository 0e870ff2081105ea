"""A lock between listing tgtd's targets and changing their accounts (tgt.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Table:
    """The lock of the targets' account tables: either several tasks list them at once, or one task changes them. A
    change leaves a hole in a table for a moment. Tasks that list do not wait for each other if tgtd hangs."""

    def __init__(self) -> None:
        self._change = asyncio.Lock()
        self._lists = 0
        self._unlisted = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listed(self) -> AsyncIterator[None]:
        async with self._change:
            self._lists += 1
        try:
            yield
        finally:
            self._lists -= 1
            if not self._lists:
                self._unlisted.set()

    @contextlib.asynccontextmanager
    async def changed(self) -> AsyncIterator[None]:
        async with self._change:
            while self._lists:
                self._unlisted.clear()
                await self._unlisted.wait()  # each list has a deadline
            yield
