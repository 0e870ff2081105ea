"""The fault matrix, every cell run for real. A spread of it runs in `make test`, all of it in `make faults-move`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from cells import Cell, Cells
from matrix import PHASES, ROWS, Row
from scene import DOMAIN, SETTLE, Scene

from veery.lab import faults
from veery.model.move import Phase

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPREAD = {
    "source-daemon": {Phase.COPY, Phase.COMMIT},
    "target-daemon": {Phase.PREPARE, Phase.COPY, Phase.FINISH},
    "both-daemons": {Phase.CONFIRM},
    "target-qemu": {Phase.LOADED, Phase.FINISH},
    "link-5s": {Phase.COPY},
    "quorum": {Phase.COMMIT},
    "target-memory": {Phase.COPY},
    "target-disk": {Phase.PREPARE},
    "cancel": {Phase.LOADED},
    "guest-poweroff": {Phase.COPY, Phase.CONFIRM},
    "guest-reboot": {Phase.COPY},
    "guest-disk": {Phase.COPY, Phase.CONFIRM},
    "second-move": {Phase.COPY},
}


def _params() -> list[object]:
    """Cell by cell, row by row; after each row its disk."""
    found: list[object] = []
    for row in ROWS:
        for phase in (*PHASES, None):
            if phase is not None and phase in row.cannot:
                continue
            quick = phase is not None and phase in SPREAD.get(row.name, ())
            name = f"{row.name}-{phase or 'disk'}"
            found.append(pytest.param(row, phase, id=name, marks=() if quick else pytest.mark.slow))
    return found


@pytest.fixture(scope="module")
def cells() -> Cells:
    """Where the results go, and those of an earlier run that this one goes on with."""
    path = os.environ.get("VEERY_CELLS", "")
    return Cells(Path(path) if path else None)


@pytest.mark.parametrize(("row", "phase"), _params())
async def test_cell(scene: Scene, cells: Cells, row: Row, phase: Phase | None) -> None:
    key = f"{row.name}/{phase or 'disk'}"
    if cells.good(key):
        pytest.skip("good in the run that this one goes on with")
    begun = time.monotonic()
    try:
        if phase is None:
            await scene.disk()
            cells.add(key, Cell(seconds=time.monotonic() - begun))
            return
        if row.small_disk:
            await scene.small_disks()
        ended = await scene.play(
            phase,
            row.fault,
            lasts=row.lasts,
            half_domain=row.half_domain,
            anew=frozenset(row.anew),
            answers=row.answers,
            with_disk=row.with_disk,
        )
        wanted = "source" if phase in row.source else "target" if phase in row.target else ended.where
        assert ended.where == wanted, f"it ended on the {ended.where}: {ended.told}"
    except BaseException as error:
        cells.add(key, Cell(bad=f"{type(error).__name__}: {error}"[:300], seconds=time.monotonic() - begun))
        raise
    cells.add(
        key,
        Cell(
            where=ended.where,
            anew=ended.anew,
            gap_ms=ended.gap_ms,
            told=ended.told,
            seconds=ended.seconds,
        ),
    )


async def test_target_powered_off_after_commit_and_back(scene: Scene) -> None:
    """Past COMMIT the domain is the target's: when the target loses its power then, the domain is gone with it,
    as any domain of a node that loses its power; no second copy ever runs at the source."""
    await scene.disk()  # all that the cells before did to it
    proof = await scene.ready()
    lab = proof.lab
    async with scene.moving(Phase.FINISH) as move:
        await move.reach(half_domain=False)
        await faults.power_off(lab, move.target)
        move.release()
        await move.task
        for _ in range(20):
            found = await asyncio.to_thread(lab.client(move.source).get, "/v1/domains")
            states = [row["state"] for row in found["domains"] if row["name"] == DOMAIN]
            assert not set(states) & {"running", "blocked"}, "the source let it run again after COMMIT"
            await asyncio.sleep(0.2)
        await faults.power_on(lab, move.target)
    end = asyncio.get_running_loop().time() + SETTLE
    while await proof.keys("owner/") and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.3)
    assert await proof.keys("owner/") == {}
    assert await proof.readings() == {}
