"""`veery migrate --plan` on the lab: a plan that holds, and one that tells all that is wrong at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from node_parts import Node, Workshop, set_up, until

from veery.hypervisor.qemu.abilities import needs
from veery.lab.services import Lab

NAME, VOLUME = "planned", "planned"
BRIDGE = "xenbr9"


@contextmanager
def stopped(lab: Lab, node: str, program: str) -> Iterator[None]:
    """No step of `program` on `node` for the while."""
    pids = [one.process.pid for one in lab.members(node) if one.program == program]
    assert pids
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def acl(lab: Lab, operation: str, tid: int, initiator: str) -> None:
    """tgtadm bind or unbind of an initiator name, behind veeryd's back."""
    words = ["tgtadm", "--lld", "iscsi", "--mode", "target", "--op", operation, "--tid", str(tid)]
    socket = f"TGT_IPC_SOCKET={lab.plan.home('stor') / 'run' / 'tgt'}"
    await lab.run("stor", ["env", socket, *words, "--initiator-name", initiator])


async def test_a_plan_that_holds_and_one_with_three_blockers(
    lab: Lab, workshop: Workshop, near: Node, far: Node, stor: Node, tmp_path: Path
) -> None:
    local = tmp_path / "local.raw"
    local.write_bytes(bytes(1 << 20))
    try:
        await workshop.volume(VOLUME)
        await near.veery("create", workshop.file(NAME, volume=VOLUME))
        await near.booted(NAME)
        before = (await near.traces(), await far.traces())

        shown = await near.veery("migrate", "--plan", NAME, "test2")
        assert shown.startswith(f"{NAME} can move from test1 to test2\n")
        plan = await near.json("migrate", "--plan", "--json", NAME, "test2")
        assert plan["possible"] is True
        assert plan["blockers"] == plan["back"] == []
        assert plan["settings"]["policy"] == "balanced"
        assert plan["memory"]["total"] == 128 << 20
        assert 0 < plan["memory"]["used"] < 128 << 20
        assert plan["link"]["probed"] > 1 << 20
        assert 0 < plan["forecast"]["gap_ms"] < plan["forecast"]["total_ms"]
        assert (await near.traces(), await far.traces()) == before
        await near.veery("migrate", NAME, "test2")
        assert await far.domain(NAME)
        await far.veery("migrate", NAME, "test1")

        await lab.run("test1", ["ip", "link", "add", BRIDGE, "type", "bridge"])
        await lab.run("test1", ["ip", "link", "set", BRIDGE, "up"])
        await near.veery("network-attach", NAME, f"bridge={BRIDGE}")
        await near.veery("block-attach", NAME, f"file:{local},xvdb,w")
        target = (await stor.json("volume", "show", VOLUME, "--json"))["volume"]
        initiator = (await near.json("node", "show", "test2", "--json"))["node"]["initiator"]
        before = (await near.traces(), await far.traces())
        with stopped(lab, "stor", "veeryd"):  # it would mend the target
            await acl(lab, "unbind", target["tid"], initiator)
            result = await near.result("--json", "migrate", "--plan", NAME, "test2")
            await acl(lab, "bind", target["tid"], initiator)
        assert result.code == 1
        plan = json.loads(result.out)
        assert plan["possible"] is False
        kinds = {one["kind"] for one in plan["blockers"]}
        assert {"network", "storage", "volume"} <= kinds
        assert all(one["hint"] for one in plan["blockers"])
        told = " ".join(one["reason"] for one in plan["blockers"])
        assert BRIDGE in told
        assert str(local) in told
        assert initiator in told
        assert (await near.traces(), await far.traces()) == before
        assert await near.domain(NAME)

        async def well() -> bool:
            plan = json.loads((await near.result("--json", "migrate", "--plan", NAME, "test2")).out)
            return {one["kind"] for one in plan["blockers"]} == {"network", "storage"}

        await until(well, "the target lets test2 in again")
    finally:
        await workshop.clear(NAME, VOLUME)
        await lab.run("test1", ["ip", "link", "del", BRIDGE], check=False)


async def test_the_processor_that_new_domains_get(near: Node, stor: Node) -> None:
    told = await stor.json("cluster", "cpu", "--json")
    assert [one["node"] for one in told["processors"]] == ["test1", "test2"]
    (baseline,) = told["baselines"]
    assert baseline["nodes"] == ["test1", "test2"]
    assert needs(baseline["cpu"]) <= set(baseline["features"])
    for one in told["processors"]:
        assert set(baseline["features"]) <= set(one["features"])
        assert 1 <= baseline["level"] <= one["level"]
    assert baseline["accelerator"] in await near.veery("cluster", "cpu")


@pytest.mark.parametrize("words", [("--plan", "--all", "test1"), ("--plan", "--to", "test2", NAME)])
async def test_a_plan_is_of_one_domain(near: Node, words: tuple[str, ...]) -> None:
    result = await near.result("migrate", *words)
    assert result.code == 2
    assert "--plan" in result.err


async def test_what_could_not_come_back_is_told_before_it_goes(
    lab: Lab, workshop: Workshop, near: Node, far: Node
) -> None:
    try:
        await workshop.volume(VOLUME)
        await near.veery("create", workshop.file(NAME, volume=VOLUME))
        await near.booted(NAME)
        async with set_up(lab, "test1", lambda text: text.replace('hosts_allow = ""', 'hosts_allow = "172.16.31.3"')):
            told = (await near.result("migrate", NAME, "test2")).err.splitlines()
            said = [number for number, line in enumerate(told) if "could not come back to test1: " in line]
            assert said, told
            assert said[0] < min(number for number, line in enumerate(told) if "COPY" in line)
            assert await far.domain(NAME)
            (newest,) = (await near.json("moves", "--json"))[-1:]
            assert "could not come back" in newest["caution"]
            assert "caution: it could not" in await near.veery("move", "show", newest["id"])
        await far.veery("migrate", NAME, "test1")
        (newest,) = (await far.json("moves", "--json"))[-1:]
        assert newest["caution"] == ""
    finally:
        await workshop.clear(NAME, VOLUME)
