"""A busybox domain's life on the lab, by the command line: created, looked at, held, renamed, shut down, forgotten.

The tests of this file share one domain, lark; each leaves it running as it found it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_parts import LEAVE, PROMPT, Node, Workshop, aside, terminal, until

from veery.lab.services import Lab

NAME = "lark"


async def _make(near: Node, workshop: Workshop) -> Path:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    path = workshop.file(NAME, maxmem=160)
    await near.veery("create", path)
    await near.booted(NAME)
    return path


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Path]:
    yield aside(_make(near, workshop))
    aside(workshop.clear(NAME))


@pytest.fixture
async def lark(made: Path, near: Node) -> Path:
    """The domain's file; the domain runs."""
    if await near.domain(NAME) == {}:
        await near.veery("create", made)
        await near.booted(NAME)
    return made


async def test_console_on_a_terminal(lark: Path, near: Node) -> None:
    async with near.console(NAME) as first:
        await first.expect("Linux version|Run /init|Welcome|# ")  # the backlog begins with the boot
        first.type("\n")
        await first.expect(PROMPT)
        assert await first.run("cat /proc/1/comm") == "init"
        await first.run("echo mark-$((40 + 2)) >/tmp/mark")
        async with near.shell(NAME) as second:  # two at once, and both see all
            assert await second.run("cat /tmp/mark") == "mark-42"
        await first.expect("mark-42")
        await first.leave()
    async with near.console(NAME) as again:
        await again.expect("mark-42")
        again.type(LEAVE)
        assert await again.ended() == 0
    assert await near.domain(NAME)


async def test_console_from_another_node(lark: Path, far: Node) -> None:
    said = await far.beyond("test1", "console", NAME, stdin=b"echo far-$((1 + 1))\n")
    assert (said.code, "far-2" in said.out) == (0, True)


async def test_looking(lark: Path, near: Node) -> None:
    domid = str((await near.domain(NAME))["domid"])
    header, zero, row = (await near.veery("list")).splitlines()
    assert header.split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
    assert zero.split()[:2] == ["Domain-0", "0"]
    assert row.split()[:4] == [NAME, domid, "128", "1"]
    assert re.fullmatch(r"[r-][b-]----", row.split()[4])

    (pid,) = (each.process.pid for each in near.lab.members("test1") if each.program.startswith("qemu-system"))
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0  # a domain has no more processor time than others of its kind

    (config,) = json.loads(await near.veery("list", "-l", NAME))
    assert config["domid"] == int(domid)
    assert config["config"]["c_info"]["name"] == NAME
    assert config["config"]["nics"][0]["mac"].startswith("00:16:3e:")

    vcpu = (await near.veery("vcpu-list", NAME)).splitlines()[1]
    assert vcpu.split()[0] == NAME
    assert re.fullmatch(
        rf"{NAME}\s+{domid} 0:\d\d:\d\d", (await near.veery("uptime", NAME)).splitlines()[1].replace("  0", " 0")
    )
    assert (await near.veery("domid", NAME)).strip() == domid
    assert (await near.veery("domname", domid)).strip() == NAME
    assert config["config"]["c_info"]["uuid"] in await near.veery("vm-list")

    info = dict(re.split(r"\s*: ", line, maxsplit=1) for line in (await near.veery("info")).splitlines())
    assert int(info["total_memory"]) > int(info["free_memory"]) > 0
    assert info["qemu_version"].startswith("1")
    rounds = (await near.veery("top", "-b", "-i", "2", "-d", "0.3")).splitlines()
    assert len([line for line in rounds if line.startswith(f"{NAME} ")]) == 2
    assert f"{NAME} ({domid}) started" in await near.veery("dmesg")


async def test_pause_and_unpause(lark: Path, near: Node) -> None:
    await near.veery("pause", NAME)
    assert "--p---" in await near.veery("list", NAME)
    before = (await near.domain(NAME))["cpu_seconds"]
    await asyncio.sleep(0.3)
    assert (await near.domain(NAME))["cpu_seconds"] == before
    await near.veery("pause", NAME)  # again: nothing to do
    await near.veery("unpause", NAME)
    async with near.shell(NAME) as shell:
        assert await shell.run("echo on") == "on"


async def test_memory(lark: Path, near: Node) -> None:
    async def shrunk() -> bool:
        return bool((await near.domain(NAME))["memory"] == 96)

    async with near.shell(NAME) as shell:
        before = int((await shell.run("grep MemTotal /proc/meminfo")).split()[1])
        await near.veery("mem-set", NAME, "96")
        await until(shrunk, "memory 96")
        assert 28000 < before - int((await shell.run("grep MemTotal /proc/meminfo")).split()[1]) < 36000
    assert "160" in await near.refused("mem-set", NAME, "161")
    await near.veery("mem-set", NAME, "128m")


async def test_rename(lark: Path, near: Node, far: Node) -> None:
    uuid = (await near.domain(NAME))["uuid"]
    await near.veery("rename", NAME, "skylark")
    try:
        assert (await near.domain("skylark"))["uuid"] == uuid
        assert f"no domain {NAME}" in await near.refused("pause", NAME)
        assert (await near.store())[0] == {"skylark": "test1"}
        async with near.shell("skylark") as shell:
            assert await shell.run("echo named") == "named"
    finally:
        await near.veery("rename", "skylark", NAME)
    said = {"Domain-0": "reserved for the machine itself", "17": "reads like a domid", uuid: "reads like a UUID"}
    for bad in ("Domain-0", "17", "a b", "a/b", "", uuid, "x" * 101):
        assert said.get(bad, "is not a valid domain name") in await near.refused("rename", NAME, bad)
    assert "already here" in await near.refused("rename", NAME, NAME)
    assert (await near.domain(NAME))["uuid"] == uuid


async def test_the_name_is_taken_everywhere(lark: Path, near: Node, far: Node) -> None:
    before, there = await near.traces(), await far.traces()
    assert "already here" in await near.refused("create", lark)
    said = await far.refused("create", lark)
    assert f"{NAME} runs on test1" in said
    assert f"veery --node test1 migrate {NAME} test2" in said
    assert "it runs on test1" in await far.refused("destroy", NAME)
    assert "runs on test1" in await far.refused("delete", NAME)
    assert (await near.traces(), await far.traces()) == (before, there)


async def test_its_volume_is_taken(lark: Path, near: Node, far: Node, workshop: Workshop) -> None:
    thief = workshop.file("thief", volume=NAME)
    before, there = await near.traces(), await far.traces()
    for node in (near, far):
        assert f"volume {NAME} is in use by {NAME} on test1" in await node.refused("create", thief)
    assert f"volume {NAME} is used by {NAME} on test1" in await near.refused("volume", "delete", NAME)
    assert f"used by {NAME} on test1" in await near.refused("image", "build", "busybox", "--volume", NAME)
    assert f"used by {NAME} on test1" in await near.refused("volume", "import", "-q", NAME, thief)
    assert (await near.traces(), await far.traces()) == (before, there)
    async with near.shell(NAME) as shell:
        await shell.run("echo written >/root/probe && sync && cat /root/probe")


async def test_shutdown_waits_and_create_finds_the_same_again(lark: Path, near: Node) -> None:
    (before,) = json.loads(await near.veery("list", "-l", NAME))
    await near.veery("shutdown", "-w", NAME)  # the ACPI button; on_poweroff's default is destroy

    async def only_the_record() -> bool:
        """Its name is given back a moment after its process has ended."""
        nothing: dict[str, object] = {"taps": set(), "qemus": set(), "homes": set(), "owners": {}}
        return await near.traces() == {**nothing, "records": [NAME]}

    await until(only_the_record, "nothing but its record is left")
    volume = (await near.json("volume", "show", "--json", NAME))["volume"]
    checked = await near.lab.run("stor", ["e2fsck", "-fn", volume["path"]], check=False)
    assert checked.code == 0, checked.out  # it ended in order

    made = await near.veery("create", "-p", lark, "memory=112", "extra='quiet shown=here'")
    assert made.startswith(f"Started domain {NAME} (id=")
    assert (await near.domain(NAME))["state"] == "paused"
    (after,) = json.loads(await near.veery("list", "-l", NAME))
    for section, key in (("c_info", "uuid"), ("b_info", "kernel")):
        assert after["config"][section][key] == before["config"][section][key]
    assert after["config"]["nics"] == before["config"]["nics"]
    assert after["config"]["b_info"]["target_memkb"] == 112 << 10
    await near.veery("unpause", NAME)
    async with near.shell(NAME) as shell:
        assert "shown=here" in await shell.run("cat /proc/cmdline")
        assert await shell.run("cat /root/probe") == "written"
    await near.veery("destroy", NAME)
    assert (await near.traces())["records"] == [NAME]


async def test_create_with_the_console(made: Path, near: Node, lab: Lab) -> None:
    await until_absent(near)
    async with terminal(lab, "test1", "veery", "create", "-c", made) as shown:
        await shown.expect(rf"Started domain {NAME} \(id=\d+\)")
        await shown.expect(PROMPT)
        shown.type("\n")
        assert await shown.run("echo here") == "here"
        shown.type("poweroff -f\n")
        await shown.expect(rf"\[domain {NAME} has ended\]")
        assert await shown.ended() == 0
    await near.gone(NAME)


async def test_delete_forgets(made: Path, near: Node) -> None:
    await until_absent(near)
    await near.veery("delete", NAME)
    assert f"no domain {NAME}" in await near.refused("delete", NAME)
    assert (await near.store()) == ({}, [])


async def until_absent(near: Node) -> None:
    if await near.domain(NAME):
        await near.veery("destroy", NAME)


async def test_a_script_written_for_xm(made: Path, near: Node, lab: Lab, tmp_path: Path) -> None:
    await until_absent(near)
    script = tmp_path / "script"
    for tool in ("xm", "xl"):
        (tmp_path / tool).symlink_to(Path(sys.executable).with_name("veery"))
    script.write_text(
        f"""
        PATH={tmp_path}:$PATH
        set -e
        xm create {made} -p maxmem=128
        xm list | awk '$1 == "{NAME}" {{ print "state", $5 }}'
        xl list | awk '$1 == "{NAME}" {{ print "mem", $3 }}'
        xm unpause {NAME}
        xm destroy {NAME}
        xm destroy nothing || echo xm: $?
        xl destroy nothing || echo xl: $?
        xm create nothing || echo xm: $?
        xl nonsense || echo xl: $?
        xl list -x || echo xl: $?
        """
    )
    done = await lab.run("test1", ["sh", script], check=False)
    assert done.out.splitlines() == [
        f'Using config file "{made}".',
        f"Started domain {NAME} (id={re.search(r'id=([0-9]+)', done.out)[1]})",  # type: ignore[index]
        "state --p---",
        "mem 128",
        "xm: 3",
        "xl: 1",
        "xm: 1",
        "xl: 1",
        "xl: 2",
    ], (done.out, done.err)
    assert "Error: Domain 'nothing' does not exist." in done.err
    assert "nothing is an invalid domain identifier (rc=-6)" in done.err
