"""A node senses that its memory fails: its domains leave by live moves before it dies."""

from __future__ import annotations

import shutil
import time

import pytest
from stage import NAME, PATIENCE, Stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SECOND, SECOND_ADDRESS = "beside", "172.16.31.64"
SENSED_S = 2 * PATIENCE  # the sensor is read every few seconds; two moves on a busy machine


async def test_a_memory_error_is_sensed_and_the_domains_leave(stage: Stage) -> None:
    """EDAC counts an uncorrected error on test1. Both domains then run on test2, in the same boots. Nothing is fenced,
    and nothing comes back before an operator says that the node is well."""
    boots = {NAME: (await stage.place(NAME, "test1")).boot}
    await stage.raise_up(SECOND, SECOND_ADDRESS, policy="migrate-only")
    boots[SECOND] = (await stage.heard(SECOND)).boot
    tree = stage.lab.plan.sensors("test1")
    begun = time.time()
    try:
        counter = tree / "sys/devices/system/edac/mc/mc0/ue_count"
        counter.parent.mkdir(parents=True)
        counter.write_text("1\n")

        async def left() -> bool:
            return [await stage.owner(name) for name in boots] == ["test2"] * 2 and stage.copies("test1") == 0

        await stage.until(left, "both domains have left test1", within=SENSED_S)
        for name, boot in boots.items():
            await stage.heard(name, boot=boot)
        why = (await stage.lab.veery("stor", "why", "test1")).out
        assert "uncorrected memory errors since boot: 1" in why, why
        health = await stage.lab.json("stor", "node", "health", "test1", "--json")
        assert health["record"]["verdict"] == "evacuate", health
        done = {each["what"] for each in await stage.events(begun)}
        assert not done & {"fence", "fence.done", "start"}, done
    finally:
        shutil.rmtree(tree / "sys", ignore_errors=True)
        await stage.lab.veery("stor", "node", "well", "test1", check=False)
        await stage.tear_down(SECOND)
    await stage.at_rest()
    assert await stage.owner(NAME) == "test2", "it came home although nobody asked"
    assert await stage.judged(NAME) == []
