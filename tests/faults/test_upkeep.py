"""Maintenance under a running domain: nodes rolled, daemons and voters restarted, drains that outlive reboots."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from stage import ADDRESS, HYPERVISORS, NAME, PATIENCE, Stage

from veery.lab import faults
from veery.lab.probe import Probe

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]

RECOVERY = ("fence", "release", "start", "end")  # what the brain does only where something was lost


async def undisturbed(stage: Stage, boot: str, begun: float) -> None:
    """The domain runs on in the same boot, and the brain had nothing to mend since `begun`."""
    await stage.heard(NAME, boot=boot)
    assert not [each for each in await stage.events(begun) if each["what"] in RECOVERY]
    assert await stage.judged(NAME) == []


async def test_roll_with_reboots(stage: Stage, tmp_path: Path) -> None:
    """Each node is empty when its command runs, and rebooted after that has ended; then its domain is home again."""
    before, begun = await stage.place(NAME, "test1"), time.time()
    words = ["--reboot", "--run", f"touch {tmp_path}/$NODE", *HYPERVISORS]
    order = asyncio.create_task(stage.lab.veery("stor", "cluster", "roll", *words, check=False, deadline=400))

    async def asked(node: str) -> bool:
        assert not order.done(), f"it ended before {node}: {order.result()}"
        return (tmp_path / node).exists()

    try:
        for node, other in zip(HYPERVISORS, reversed(HYPERVISORS), strict=True):
            await stage.until(lambda node=node: asked(node), f"{node} is drained", within=2 * PATIENCE)
            assert (await stage.owner(NAME), stage.copies(node)) == (other if node == "test1" else "test1", 0)
            await faults.power_off(stage.lab, node)
            await faults.power_on(stage.lab, node)
        told = await order
    finally:
        order.cancel()
    assert (told.code, told.out) == (0, "2 nodes done\n"), told.err
    assert await stage.owner(NAME) == "test1"
    await undisturbed(stage, before.boot, begun)


async def test_a_drain_outlives_reboots(stage: Stage) -> None:
    """A roll stops at a command that fails and leaves its node drained. Neither that node's reboot ends the drain, nor
    the leader's; resumed, the node has its domain again."""
    before, begun = await stage.place(NAME, "test1"), time.time()
    told = await stage.lab.veery(
        "stor", "cluster", "roll", "--run", "exit 3", *HYPERVISORS, check=False, deadline=2 * PATIENCE
    )
    assert told.code == 1
    assert "test1: the command ended with exit status 3" in told.err
    assert "test1 is still drained: veery node resume test1 --home; not begun: test2" in told.err
    assert await stage.states() == {"test1": "maintenance", "test2": "present", "stor": "present"}
    assert await stage.owner(NAME) == "test2"

    await faults.power_off(stage.lab, "test1")
    await faults.power_on(stage.lab, "test1")
    await stage.until(lambda: in_maintenance(stage, "stor"), "test1 is back and drained")

    leader = (await stage.get("/v1/cluster"))["leader"]
    witness = "test1" if leader != "test1" else "stor"
    assert leader != "test2", "the domain's own node is not to be rebooted"
    await faults.power_off(stage.lab, leader)
    try:
        await stage.until(lambda: in_maintenance(stage, witness, leader), "another leads, and knows of the drain")
    finally:
        await faults.power_on(stage.lab, leader)
    await stage.until(lambda: in_maintenance(stage, "stor"), "test1 is still drained")
    assert await stage.owner(NAME) == "test2", "it came home although nobody asked"

    await stage.lab.veery("stor", "node", "resume", "test1", "--home", deadline=2 * PATIENCE)
    assert await stage.owner(NAME) == "test1"
    await stage.at_rest()
    await undisturbed(stage, before.boot, begun)


async def test_daemons_and_voters_restarted_one_by_one(stage: Stage) -> None:
    """With nothing drained: the domain's QEMU is the same, and the client outside never waits long."""
    before = await stage.place(NAME, "test1")
    qemu = faults.find(stage.lab, "test1", "qemu-system")
    probe = await Probe.start(lambda argv: stage.lab.enter("client", argv), [ADDRESS], interval=0.05)
    try:
        await probe.answered(deadline=PATIENCE)
        await probe.mark()
        begun = time.time()
        for node in ("test2", "stor", "test1"):
            for program in ("etcd", "veeryd"):
                await ended(stage, node, program)
                if program == "veeryd":
                    await stage.lab.start(node)
                await stage.until(lambda: voters_up(stage), f"all voters are up after {node}'s {program}")
                await stage.at_rest()
        reading = (await probe.read())[ADDRESS]
    finally:
        await probe.stop()
    assert faults.find(stage.lab, "test1", "qemu-system") == qemu
    assert reading.received > 100
    assert (reading.gap_ms or 0.0) < 5000, "the domain stood still"
    await undisturbed(stage, before.boot, begun)


async def ended(stage: Stage, node: str, program: str) -> None:
    """`program` of `node` was told to end, and has."""
    (member,) = faults.find(stage.lab, node, program)
    member.process.send(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await member.process.gone()


async def in_maintenance(stage: Stage, asked: str, but: str = "") -> bool:
    """Whether somebody other than `but` leads, and test1 is drained, as `asked` says."""
    status = await stage.get("/v1/cluster", asked)
    states = {row["name"]: row["state"] for row in status["nodes"]}
    return status["quorum"] and status["leader"] not in ("", but) and states["test1"] == "maintenance"


async def voters_up(stage: Stage) -> bool:
    """Whether each etcd member answers and knows a leader, as the doctor tells."""
    told = [each["level"] for each in await stage.get("/v1/doctor") if each["what"] == "store"]
    return told == ["ok"] * 3
