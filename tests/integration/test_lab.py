"""The lab with its services, and the whole experiment in it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from veery.errors import Failed, Refused
from veery.lab import faults, hosts
from veery.lab.lock import LabLock, read
from veery.lab.plan import NAMESPACES, plan
from veery.lab.services import Lab

VEERY = Path(sys.executable).with_name("veery")


def veery(*words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """`veery WORDS...`, outside of every namespace, as a user has it."""
    return subprocess.run([VEERY, *words], check=False, capture_output=True, text=True, timeout=seconds)


def may_raise() -> bool:
    """Whether a process of this user may have a nice value below 0."""
    return subprocess.run(["nice", "-n", "-1", "true"], check=False, capture_output=True, timeout=20).stderr == b""


async def test_every_node_sees_every_other(lab: Lab) -> None:
    for node in ("stor", "test1", "test2"):
        rows = await lab.json(node, "node", "list", "--json")
        assert sorted(row["node"]["name"] for row in rows if row["alive"]) == ["stor", "test1", "test2"]


async def test_each_node_runs_what_its_roles_ask_for(lab: Lab) -> None:
    running = {node: sorted(member.program for member in lab.members(node)) for node in ("stor", "test1", "test2")}
    assert running == {
        "stor": ["etcd", "tgtd", "veeryd"],
        "test1": ["etcd", "veeryd"],
        "test2": ["etcd", "veeryd"],
    }


@pytest.mark.skipif(not may_raise(), reason="no CAP_SYS_NICE here")
async def test_services_are_raised_over_domains(lab: Lab) -> None:
    for node in ("stor", "test1", "test2"):
        values = {each.program: os.getpriority(os.PRIO_PROCESS, each.process.pid) for each in lab.members(node)}
        assert all(value < 0 for value in values.values()), (node, values)


async def test_the_bridge_is_as_the_seed_has_it(lab: Lab) -> None:
    (bridge,) = (await lab.json("test1", "network", "list", "--json"))["bridges"]
    assert (bridge["name"], bridge["mac"], bridge["addresses"]) == ("xenbr0", "08:00:27:16:d9:aa", ["172.16.31.1/16"])


async def test_what_veery_says_is_raised(lab: Lab) -> None:
    with pytest.raises(Failed, match="nosuch"):
        await lab.veery("test1", "destroy", "nosuch")


def test_a_node_is_reached_from_outside(lab: Lab) -> None:
    done = veery("--lab", lab.plan.lab, "--node", "test1", "list")
    assert done.returncode == 0, done.stderr
    assert "Domain-0" in done.stdout


def test_exec_hands_on_settings_output_and_exit_status(lab: Lab) -> None:
    words = ["lab", "exec", "--lab", lab.plan.lab, "test2"]
    done = veery(*words, "sh", "-c", "echo $VEERY_SETTINGS; ls /sys/class/net; exit 7")
    assert done.returncode == 7
    assert done.stdout.split() == [str(lab.plan.settings("test2")), "eth0", "lo", "xenbr0"]
    assert "Domain-0" in veery(*words, "veery", "list").stdout
    assert veery(*words).returncode == 1
    unknown = veery("lab", "exec", "--lab", lab.plan.lab, "test9", "true")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no node test9" in unknown.stderr


def test_a_lab_in_use_cannot_be_taken_or_removed(lab: Lab) -> None:
    for verb in ("up", "down", "demo"):
        done = veery("lab", verb, "--lab", lab.plan.lab)
        assert done.returncode == 1
        assert f"lab {lab.plan.lab} is in use" in done.stderr


async def test_power_off_and_on_again(lab: Lab) -> None:
    """The others miss the node once its presence has run out, and have it back after a cold start."""
    await faults.power_off(lab, "test2")
    try:
        assert lab.members("test2") == ()
        async with asyncio.timeout(60):
            while await alive(lab, "test2"):
                await asyncio.sleep(0.2)
        assert await alive(lab, "stor")
    finally:
        await faults.power_on(lab, "test2")
        await lab.healthy()
    assert await alive(lab, "test2")


async def alive(lab: Lab, node: str) -> bool:
    rows = await asyncio.to_thread(lab.client("test1").get, "/v1/nodes")
    return any(row["alive"] for row in rows if row["node"]["name"] == node)


def test_up_stays_and_down_removes() -> None:
    name = f"c{os.getpid()}"
    try:
        assert veery("lab", "up", "--lab", name, "--nodes", "1").returncode == 0
        assert "is up already" in veery("lab", "up", "--lab", name, "--nodes", "1").stderr
        assert "1 qemu hypervisors" in veery("lab", "up", "--lab", name, "--nodes", "2").stderr
        shown = json.loads(veery("lab", "status", "--lab", name, "--json").stdout)
        assert [(row["node"], row["address"]) for row in shown["nodes"]] == [
            ("stor", "172.16.31.3"),
            ("test1", "172.16.31.1"),
        ]
        taken = Lab.attach(name)
        assert taken.plan == plan(name, 1)
        taken.leave()
    finally:
        down = veery("lab", "down", "--lab", name)
    assert down.returncode == 0, down.stderr
    assert nothing_left(name)
    assert veery("lab", "down", "--lab", name).returncode == 1
    with pytest.raises(Refused, match="is not up"):
        Lab.attach(name)


def nothing_left(lab: str) -> bool:
    drawn = plan(lab)
    return not (hosts.stands(lab) or read(lab) or drawn.folder.exists())


async def test_the_whole_experiment() -> None:
    """What `make demo` runs, as JSON: every check holds."""
    name = f"d{os.getpid()}"
    done = await asyncio.to_thread(veery, "lab", "demo", "--json", "--lab", name, seconds=280)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert "error" not in told, told["error"]
    assert {name: good for name, good in told["checks"].items() if not good} == {}
    assert len(told["checks"]) >= 20
    assert [(move["from"], move["to"]) for move in told["moves"]] == [("test1", "test2"), ("test2", "test1")]
    for move in told["moves"]:
        assert move["gap_ms"] > 0
        assert list(move["phases"]) == ["BEGIN", "PREPARE", "COPY", "LOADED", "COMMIT", "FINISH", "CONFIRM"]
    assert done.returncode == 0
    assert nothing_left(name)


async def test_a_killed_demo_is_swept() -> None:
    """SIGKILL once the first daemon is up; what it leaves goes with the next sweep."""
    drawn = plan(f"x{os.getpid()}")
    place = NAMESPACES / drawn.namespace("stor")
    process = await asyncio.create_subprocess_exec(
        VEERY, "lab", "demo", "--lab", drawn.lab, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(120):
            while "etcd" not in {member.program for member in hosts.members_of(drawn, "stor")}:
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()
    left = {member.process for member in hosts.members_of(drawn, "stor")}
    assert left
    await hosts.sweep(drawn.folder.parent)
    for _ in range(200):  # another run's sweep may have begun with it first
        if nothing_left(drawn.lab):
            break
        await asyncio.sleep(0.1)
    assert nothing_left(drawn.lab)
    assert not place.exists()
    assert not any(process.alive() for process in left)
    LabLock(drawn.lab).forget()
