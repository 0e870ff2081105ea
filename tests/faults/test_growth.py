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
    async with scene.lent() as (proof, node):
        run = await soak(proof, node, moves)
    if path := os.environ.get("VEERY_SOAK"):
        keep(run, Path(path))
    assert not run.beyond()
