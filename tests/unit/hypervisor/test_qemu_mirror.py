"""A memory copy with mirrors of disks beside it: which error is told when they break."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from veery.host.tasks import stop
from veery.hypervisor.base import DiskFull
from veery.hypervisor.qemu import mirror
from veery.model.move import CopyResult


class Mirrors:
    """Stands where the mirrors of a domain are: one breaks, if `full`, and dropping them takes until `dropped`."""

    def __init__(self, *, full: bool) -> None:
        self.full, self.switched = full, False
        self.dropping, self.dropped = asyncio.Event(), asyncio.Event()
        monitor = SimpleNamespace(execute=self._execute)
        self.domain = SimpleNamespace(monitor=monitor, record=SimpleNamespace(spec=SimpleNamespace(name="web")))

    async def _execute(self, *words: Any) -> None:
        """Every command of QEMU works."""

    async def switch_over(self) -> None:
        if self.full:
            raise DiskFull("the copy of its xvda broke: No space left on device", hint="--disk-dir")
        await asyncio.Event().wait()

    async def drop(self) -> None:
        self.dropping.set()
        await self.dropped.wait()


async def endless() -> CopyResult:
    """A copy of memory that does not end."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_full_disk_is_the_reason_though_the_copy_is_cancelled(cancelled: bool) -> None:
    mirrors: Any = Mirrors(full=True)
    sending = asyncio.create_task(mirror.send(mirrors, endless()))
    await mirrors.dropping.wait()
    if cancelled:
        sending.cancel()
        await asyncio.sleep(0)
    mirrors.dropped.set()
    with pytest.raises(DiskFull, match="No space left on device"):
        await sending


async def at_once() -> CopyResult:
    """A copy of memory that is complete."""
    return CopyResult(downtime_ms=1.0, bytes=1, rounds=1)


@pytest.mark.parametrize("complete", [False, True])
async def test_a_cancelled_copy_is_cancelled_once_its_mirrors_are_gone(complete: bool) -> None:
    mirrors: Any = Mirrors(full=False)
    mirrors.switched = complete
    sending = asyncio.create_task(mirror.send(mirrors, at_once() if complete else endless()))
    await asyncio.sleep(0.01)
    sending.cancel()
    await mirrors.dropping.wait()
    sending.cancel()
    await asyncio.sleep(0.01)
    assert not sending.done()
    mirrors.dropped.set()
    await stop(sending)
    assert sending.cancelled()
