"""Who may list tgtd's targets, and who may change their accounts, at a time (tgt.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Table:
    """The targets' tables of accounts: many may list them at a time (each waits for a tgtd that hangs, and none for
    another), or one may change them, with a hole in between."""

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
