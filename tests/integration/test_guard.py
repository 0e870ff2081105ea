"""A node's own guard, in the lab: cut off it stops and then ends its domain; without a quorum anywhere it does not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, aside, until

from veery.errors import VeeryError
from veery.lab import faults
from veery.lab.services import Lab

NAME = "dunlin"


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Workshop]:
    aside(workshop.clear(NAME))
    aside(workshop.volume(NAME))
    yield workshop
    aside(workshop.clear(NAME))


@pytest.fixture
async def quick(made: Workshop, lab: Lab, near: Node) -> AsyncIterator[None]:
    """test1 with a short lease and a short patience, and the domain on it."""
    path = lab.plan.settings("test1")
    before = path.read_text()
    path.write_text(f"presence_ttl = 4\n{before}\n[guard]\nend = 6.0\n")
    try:
        await _again(lab)
        await near.veery("create", made.file(NAME, vif=None))
        async with near.shell(NAME) as shell:
            await shell.run("{ while :; do :; done; } & true")  # it uses a processor as long as it runs
        yield
    finally:
        await faults.heal(lab, "test1")
        path.write_text(before)
        await _again(lab)
        await lab.healthy()


async def _again(lab: Lab) -> None:
    await faults.kill(lab, "test1", "veeryd")
    await lab.start("test1")
    await lab.healthy()


async def _guard(lab: Lab) -> dict[str, Any]:
    try:
        told: dict[str, Any] = await asyncio.to_thread(lab.client("test1", deadline=10).get, "/v1/guard")
        return told
    except VeeryError:
        return {"stance": "", "reason": "", "held": [], "stopped": False}


async def _stance(lab: Lab, wanted: str) -> None:
    async def reached() -> bool:
        return bool((await _guard(lab))["stance"] == wanted)

    await until(reached, f"the guard on test1 says {wanted}")


async def test_cut_off_it_stops_and_goes_on_or_ends(
    quick: None, made: Workshop, lab: Lab, near: Node, far: Node
) -> None:
    await faults.cut(lab, "test1")

    async def held() -> bool:
        return bool((await _guard(lab))["held"])

    await until(held, f"{NAME} held")
    told = await _guard(lab)
    assert (told["stance"], told["reason"]) == ("hold", "cut off from the cluster")
    used = await _processor_time(near)
    await asyncio.sleep(0.5)
    assert await _processor_time(near) - used < 0.2  # its QEMU hangs in its last write, and the guest stands

    await faults.heal(lab, "test1")  # in time: nobody has taken the domain

    async def released() -> bool:
        return (await _guard(lab))["held"] == [] and await _running(near)

    await until(released, f"{NAME} runs again")
    async with near.shell(NAME) as shell:
        assert await shell.run("echo unharmed") == "unharmed"

    await faults.cut(lab, "test1")
    await near.gone(NAME)
    assert near.qemus() == set()
    told = await _guard(lab)
    assert (told["stance"], told["stopped"]) == ("end", True)
    await faults.heal(lab, "test1")
    await _stance(lab, "run")

    async def free() -> bool:
        return NAME not in (await near.store())[0]

    await until(free, "its name is given back")
    await far.veery("create", "-p", made.folder / NAME)
    await far.veery("destroy", NAME)


async def _processor_time(near: Node) -> float:
    """Seconds that the domain's QEMU has used."""
    (pid,) = near.qemus()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _running(near: Node) -> bool:
    return (await near.domain(NAME)).get("state") in ("running", "blocked")


async def test_a_pause_that_a_user_ordered_stays_his(quick: None, lab: Lab, near: Node) -> None:
    await near.veery("pause", NAME)
    await faults.cut(lab, "test1")
    await _stance(lab, "hold")
    assert (await _guard(lab))["held"] == []
    await faults.heal(lab, "test1")
    await _stance(lab, "run")
    await asyncio.sleep(1)
    assert (await near.domain(NAME))["state"] == "paused"
    await near.veery("destroy", NAME)


async def test_without_a_quorum_domains_run_on(quick: None, lab: Lab, near: Node) -> None:
    stopped = [*faults.find(lab, "stor", "etcd"), *faults.find(lab, "test2", "etcd")]
    for one in stopped:
        one.process.send(signal.SIGSTOP)
    try:
        await _stance(lab, "stay")
        assert "the store is down for all" in (await _guard(lab))["reason"]
        for _ in range(40):  # well past the lease and the guard's patience
            await asyncio.sleep(0.25)
            assert await _running(near)
            assert (await _guard(lab))["stance"] == "stay"
    finally:
        for one in stopped:
            one.process.send(signal.SIGCONT)
    await _stance(lab, "run")
    assert await _running(near)
    async with near.shell(NAME) as shell:
        assert await shell.run("echo unharmed") == "unharmed"
    await near.veery("destroy", NAME)
