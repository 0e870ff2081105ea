"""Two versions in one cluster: a domain moves both ways between them, every node is rolled to the newer one under it,
and a node that went back takes no domain in once the cluster's level has risen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import older
import pytest
import pytest_asyncio
from stage import ADDRESS, HYPERVISORS, NAME, PATIENCE, Stage

from veery.lab import faults, ledger
from veery.lab.guest import Guest
from veery.lab.ledger import Collector
from veery.lab.services import Lab
from veery.model.cluster import LEVEL

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(older.missing()), reason=older.missing() or "it is here"),
]

MENDED = ("fence", "release", "start", "end")  # what the brain does only where something was lost


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older.programs(tmp_path_factory.mktemp("older"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(guest: Guest, former: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A lab of the older version, with a domain that keeps a ledger."""
    folder = tmp_path_factory.mktemp("ledger")
    lab = await Lab.up(f"v{os.getpid()}", programs=former)
    try:
        collector = await Collector.start(lab, folder)
        try:
            stage = Stage(lab, guest, ledger.initramfs(guest, folder / "initramfs"), folder, collector)
            await stage.raise_up(NAME, ADDRESS)
            yield stage
            await stage.at_rest()
            await stage.tear_down(NAME)
        finally:
            await collector.stop()
    finally:
        await lab.down()


async def change(stage: Stage, node: str, programs: Path | None, *, outdated: bool = False) -> None:
    """Stop the daemon of `node` in good order, and start that of another version (None: this one). Return when every
    node is well, or when the brain sees that the node is outdated."""
    (member,) = faults.find(stage.lab, node, "veeryd")
    member.process.send(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await member.process.gone()
    if programs is None:
        stage.lab.programs.pop(node, None)
    else:
        stage.lab.programs[node] = programs
    await stage.lab.start(node)

    async def passed_over() -> bool:
        status = await stage.get("/v1/cluster")
        (state,) = [row["state"] for row in status["nodes"] if row["name"] == node]
        return state == "outdated" or status["leader"] == node  # a leader of that version has no such state

    if outdated:
        await stage.until(passed_over, f"the brain passes {node} over")
    else:
        await stage.at_rest()


async def moved(stage: Stage, target: str, *words: str) -> None:
    """Move the domain to `target`; it runs on in the same boot."""
    before = await stage.heard(NAME)
    source = await stage.owner(NAME)
    await stage.lab.veery(source, "migrate", "--live", *words, NAME, target, deadline=180)
    assert await stage.owner(NAME) == target
    await stage.heard(NAME, boot=before.boot)


async def levels(stage: Stage, node: str = "stor") -> dict[str, int]:
    """The level that each present node tells."""
    return {row["node"]["name"]: row["presence"].get("level", 0) for row in await stage.get("/v1/nodes", node)}


async def cluster_level(stage: Stage) -> str:
    """What doctor says of it."""
    found: list[dict[str, Any]] = await stage.get("/v1/doctor")
    (row,) = [row for row in found if row["what"] == "cluster's level"]
    return str(row["told"])


async def test_moves_both_ways_a_roll_and_a_way_back(stage: Stage, former: Path) -> None:
    begun, boot = time.time(), (await stage.heard(NAME)).boot
    await change(stage, "stor", None)
    await change(stage, "test1", None)
    assert await levels(stage) == {"stor": LEVEL, "test1": LEVEL, "test2": 0}
    assert "test2 (0)" in await cluster_level(stage)

    await moved(stage, "test2")  # from the newer to the older
    await stage.lab.veery("test2", "mem-set", NAME, str(ledger.MEMORY_MIB - 8))
    await moved(stage, "test1", "--compress", "yes")  # and from the older to the newer, packed
    await moved(stage, "test2", "--compress", "yes")
    assert (await cluster_level(stage)).startswith("0;")

    await change(stage, "test2", None)  # the domain runs there

    async def risen() -> bool:
        return await cluster_level(stage) == str(LEVEL)

    await stage.until(risen, "the cluster's level rises")
    await moved(stage, "test1")

    await change(stage, "test2", former, outdated=True)
    told = await stage.lab.veery("test1", "migrate", "--live", NAME, "test2", check=False, deadline=180)
    assert told.code != 0
    assert f"supports level 0, the cluster is at level {LEVEL}" in told.err
    assert "wrong name or password" not in told.err
    told = await stage.lab.veery("test1", "migrate", "--all", check=False, deadline=180)
    assert told.code != 0
    assert "no other hypervisor can take in a domain: test2: its veery supports level 0" in told.err
    assert await stage.owner(NAME) == "test1"
    await stage.heard(NAME, boot=boot)
    assert await cluster_level(stage) != "0"
    found = await stage.get("/v1/doctor")
    assert [row["level"] for row in found if (row["node"], row["what"]) == ("test2", "level")] == ["bad"]

    await change(stage, "test2", None)
    for target in reversed(HYPERVISORS):
        await moved(stage, target)
    await stage.heard(NAME, boot=boot)
    assert not [each for each in await stage.events(begun) if each["what"] in MENDED]
    assert await stage.judged(NAME) == []
