"""Nothing grows by moves: 30 of them in `make test`, 300 in `make soak`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scene import Scene
from soak import keep, soak

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moves", [30, pytest.param(300, marks=pytest.mark.slow)])
async def test_nothing_grows_by_moves(scene: Scene, moves: int) -> None:
    """What grows by moves grows by the same number of moves again. A step that comes once is no growth: Python looks
    for cyclic garbage among its old objects only when they have become a quarter more, and a thread that works for the
    first time takes memory of its own."""
    async with scene.lent() as (proof, node):
        run = await soak(proof, node, moves)
        again = await soak(proof, node, moves, first=run.last) if run.beyond() else run
    if path := os.environ.get("VEERY_SOAK"):
        keep(run, Path(path))
    grown = {each.partition(":")[0] for each in run.beyond()} & {each.partition(":")[0] for each in again.beyond()}
    assert not grown, (run.beyond(), again.beyond())
