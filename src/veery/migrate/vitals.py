"""Checks that the guest still lives while its domain is being moved.

A guest may power off, panic or reboot by itself in any phase. Up to COMMIT the source notices this and undoes the move;
then the caretaker of the source's node applies on_poweroff, on_reboot or on_crash, as it does without a move. The
target cannot do this as well: QEMU's run state in the stream does not distinguish a power-off from a reboot that ends
the domain. A guest that powers off just when QEMU stops it for the switch-over arrives as a running one. And a copy of
a guest that has ended is wasted work.

An end that the source did not see still arrives with the run state, and `Driver.finish` reports it there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from veery.errors import Failed
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.base import Driver
from veery.model.domain import DomainReading, DomainState

T = TypeVar("T")

LOOK_INTERVAL_S = 0.5
ENDED = {DomainState.SHUTDOWN: "shut down", DomainState.CRASHED: "crashed"}


async def end_of(driver: Driver, uuid: str) -> str:
    """Return how the domain ended by itself, as a verb in the past; "" while it lives."""
    return _end(await _look(driver, uuid))


async def require(driver: Driver, uuid: str) -> DomainReading:
    """Return the domain's current reading. Raise Failed where it has ended by itself."""
    reading = await _look(driver, uuid)
    if reading is None or _end(reading):
        raise Failed(f"it {_end(reading)} by itself")
    return reading


async def _look(driver: Driver, uuid: str) -> DomainReading | None:
    return next((reading for reading in await driver.list() if reading.uuid == uuid), None)


def _end(reading: DomainReading | None) -> str:
    return ENDED.get(reading.state, "") if reading is not None else "ended"


async def while_alive(driver: Driver, clock: Clock, uuid: str, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. Raises Failed as soon as the domain has ended by itself; `work` is then cancelled."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_watch(driver, clock, uuid), name=f"watch {uuid}")
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await tasks.stop(working)
            watching.result()
        return await working
    finally:
        await tasks.stop(watching)
        await tasks.stop(working)


async def _watch(driver: Driver, clock: Clock, uuid: str) -> None:
    while True:
        await require(driver, uuid)
        await clock.sleep(LOOK_INTERVAL_S)
