"""One order at a time on each domain, and no lock that nobody holds or waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from veery.errors import Failed, Refused
from veery.host.tasks import stop
from veery.node.domainlocks import DomainLocks


def locks(*, moving: str = "", deadline: float = 60.0) -> DomainLocks:
    """Locks of a node on which the domain `moving` moves."""
    moves: Any = SimpleNamespace(
        busy=lambda name, *, arriving=False: f"{name} is being moved" if name == moving else "",
        advice=lambda name: "veery moves",
    )
    receiver: Any = SimpleNamespace(arriving=lambda name: None)
    return DomainLocks(moves, receiver, deadline=deadline)


def kept(made: DomainLocks) -> int:
    """How many locks are in memory."""
    return len(made._locks)


async def test_a_lock_goes_with_the_last_order() -> None:
    made = locks()
    for number in range(1000):
        async with made.only(f"web{number}"):
            assert made.busy() == {f"web{number}"}
        assert not made.locked(f"web{number}")
        assert made.at_work(f"web{number}") == ""
    assert kept(made) == 0


async def test_a_question_makes_no_lock() -> None:
    made = locks()
    assert not made.locked("web")
    assert made.at_work("web") == ""
    assert kept(made) == 0


async def test_one_order_at_a_time_though_locks_go() -> None:
    made, inside, most = locks(), 0, 0

    async def order() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with made.only("web"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(order() for _ in range(5)))
    assert (most, kept(made)) == (1, 0)


async def test_one_that_waits_keeps_the_lock() -> None:
    made, begun = locks(), asyncio.Event()

    async def order() -> None:
        async with made.only("web"):
            begun.set()
            await asyncio.Event().wait()

    async with made.only("web"):
        waiting = asyncio.create_task(order())
        await asyncio.sleep(0)
        assert kept(made) == 1
    await begun.wait()
    assert made.locked("web")
    assert made.at_work("web") == "an order on it is under way"
    await stop(waiting)
    assert kept(made) == 0


async def test_what_did_not_get_it_keeps_none() -> None:
    made = locks(moving="db", deadline=0.01)
    async with made.only("web"):
        with pytest.raises(Failed, match="busy with another order"):
            async with made.only("web"):
                raise AssertionError("both are inside")
        assert made.busy() == {"web"}
        cut = asyncio.create_task(made.only("web").__aenter__())
        await asyncio.sleep(0)
        await stop(cut)
        assert made.busy() == {"web"}
    with pytest.raises(Refused, match="being moved"):
        async with made.hold("db"):
            raise AssertionError("it moves")
    assert kept(made) == 0
