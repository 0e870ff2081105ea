"""Work that is carried to its end though its task is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from veery.host import tasks


async def _work(gate: asyncio.Event, done: list[str]) -> str:
    await gate.wait()
    done.append("done")
    return "result"


async def _cancelled_twice(outer: asyncio.Task[object], gate: asyncio.Event) -> None:
    for _ in range(2):
        await asyncio.sleep(0.01)
        outer.cancel()
    await asyncio.sleep(0.01)
    assert not outer.done()
    gate.set()


async def test_two_cancellations_do_not_break_it_off() -> None:
    gate, done = asyncio.Event(), list[str]()
    outer = asyncio.create_task(tasks.to_the_end(_work(gate, done)))
    await _cancelled_twice(outer, gate)
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert done == ["done"]


async def test_the_result_is_handed_out_with_the_cancellation() -> None:
    gate, done = asyncio.Event(), list[str]()
    outer = asyncio.create_task(tasks.through(_work(gate, done)))
    await _cancelled_twice(outer, gate)
    result, cancelled = await outer
    assert result == "result"
    assert isinstance(cancelled, asyncio.CancelledError)


async def test_its_own_error_goes_before_a_cancellation() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise ValueError("its own")

    outer = asyncio.create_task(tasks.to_the_end(fail()))
    await asyncio.sleep(0.01)
    outer.cancel()
    with pytest.raises(ValueError, match="its own"):
        await outer
