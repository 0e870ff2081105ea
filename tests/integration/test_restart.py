"""veeryd, tgtd, etcd and whole nodes that die under a running domain, and come back.

The tests of this file share one domain, martin, that writes to its disk all the time."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, alive, aside, until

from veery.host.run import Result
from veery.lab import faults
from veery.lab.services import Lab
from veery.storage.tgtoutput import is_filler

NAME = "martin"


async def _make(near: Node, workshop: Workshop) -> Path:
    await workshop.clear(NAME, "second")
    await workshop.volume(NAME)
    await near.veery("volume", "create", "second", "8M")
    path = workshop.file(NAME)
    await near.veery("create", path)
    async with near.shell(NAME) as shell:
        await shell.run("writer /root/log 0.1 & true")
        await shell.run("echo first-mark")
    return path


@pytest.fixture(scope="module")
def made(lab: Lab, near: Node, workshop: Workshop) -> Iterator[Path]:
    yield aside(_make(near, workshop))
    aside(workshop.clear(NAME, "second"))


@pytest.fixture
async def martin(made: Path, near: Node) -> Path:
    """The domain's file; the domain runs, and writes."""
    assert await near.domain(NAME), "it must outlive every test of this file"
    return made


async def writes(near: Node, *, within: int = 60) -> None:
    """The guest's writes go on, none was lost, and it is the same boot of the same guest."""
    async with near.shell(NAME) as shell:
        count = int(await shell.run("wc -l </root/log"))
        few = f"[ $(wc -l </root/log) -lt {count + 3} ] && [ $n -lt {within * 10} ]"
        await shell.run(f"n=0; while {few}; do n=$((n+1)); usleep 100000; done", within=within + 30)
        last, boots, lines = (
            await shell.run(
                "tail -n 1 /root/log | cut -d ' ' -f 1; cut -d ' ' -f 2 /root/log | sort -u | wc -l; wc -l </root/log"
            )
        ).split()
        assert int(lines) >= count + 3
        assert (boots, int(last) - int(lines)) in {("1", 0), ("1", -1)}  # one line may come between the two


async def logins(lab: Lab, volume: str, *password: str) -> tuple[int, str]:
    """A login to the volume's LUN from test1, with test1's own credentials or another password."""
    argv = [sys.executable, "-m", "veery.lab.reach", lab.plan.settings("test1"), volume, *password]
    result = await lab.run("test1", argv, check=False, deadline=60)
    return result.code, result.out + result.err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_daemon_ends_and_comes_back(martin: Path, near: Node, lab: Lab, number: signal.Signals) -> None:
    before, taps = await near.domain(NAME), await near.taps()
    (devices,) = await near.json("list", "-l", NAME)
    await near.veery("pause", NAME)
    (daemon,) = faults.find(lab, "test1", "veeryd")
    async with near.console(NAME) as open_console:
        await open_console.expect("first-mark")
        daemon.process.send(number)
        async with asyncio.timeout(30):
            await daemon.process.gone()
        assert await open_console.ended() in {0, 1}
    assert alive(before["pid"])
    assert "no veeryd answers" in await near.refused("list")

    await lab.start("test1")
    after = await near.domain(NAME)
    same = ("name", "uuid", "domid", "pid", "started", "vcpus")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["state"] == "paused"  # a user paused it; a restart is no reason to let it go
    assert (await near.json("list", "-l", NAME))[0] == devices
    assert await near.taps() == taps
    assert (await near.store())[0] == {NAME: "test1"}
    await near.veery("unpause", NAME)
    async with near.shell(NAME) as shell:
        await shell.expect("first-mark")
        assert await shell.run("echo still-$((1 + 1))") == "still-2"
    await near.veery("mem-set", NAME, "120")
    await near.veery("mem-set", NAME, "128")
    await near.veery("block-attach", NAME, "volume=second,vdev=xvdb,access=rw")
    await near.veery("block-detach", NAME, "xvdb")
    await writes(near)


async def test_domains_that_end_while_the_daemon_is_away(
    martin: Path, near: Node, lab: Lab, workshop: Workshop
) -> None:
    """One loses its process, one powers off: both are dealt with when the daemon is back."""
    keys: dict[str, object] = {"disk": None, "root": None, "vif": ["bridge=xenbr0"], "memory": 96}
    # without root= the initramfs ends in a shell
    for name in ("lost", "off"):
        await near.veery("create", workshop.file(name, **keys))
    async with near.console("off") as console:
        await console.expect("# ")
        console.type("sleep 2; poweroff -f\n")
        await console.expect("poweroff")
        lost, off = (await near.domain("lost"))["pid"], await near.domain("off")
        await faults.kill(lab, "test1", "veeryd")
    for member in faults.find(lab, "test1", "qemu-system"):
        if member.process.pid == lost:
            member.process.send(signal.SIGKILL)
            await member.process.gone()
    log = lab.plan.home("test1") / "run/domains" / str(off["domid"]) / "console.log"

    async def powered_off() -> bool:
        return b"reboot: Power down" in log.read_bytes()

    await until(powered_off, "off has powered off")
    await lab.start("test1")

    async def settled() -> bool:
        return (await near.store())[0] == {NAME: "test1"} and len(await near.taps()) == 1

    await until(settled, "both names given back")
    assert set(await near.domains()) == {NAME}
    assert len(near.qemus()) == 1
    for name in ("lost", "off"):
        await near.veery("delete", name)


async def frozen_start(near: Node, lab: Lab, path: Path) -> asyncio.Task[Result]:
    """A create whose QEMU was stopped before it answered."""
    before = near.qemus()
    for _ in range(20):
        order = asyncio.create_task(near.result("create", "-p", path))
        while not order.done():
            for member in lab.members("test1"):
                if member.program.startswith("qemu-system") and member.process.pid not in before:
                    member.process.send(signal.SIGSTOP)
                    await asyncio.wait({order}, timeout=2)
                    if not order.done():
                        return order
            await asyncio.sleep(0)
        await near.veery("destroy", path.name)  # it was quicker than we
    raise AssertionError("every start was too quick")


async def test_a_start_that_was_cut_short(martin: Path, near: Node, lab: Lab, workshop: Workshop) -> None:
    """veeryd dies while a new QEMU has not answered yet: the next one leaves nothing of it."""
    path = workshop.file("half", volume="second")
    order = await frozen_start(near, lab, path)
    assert len(near.qemus()) == 2
    assert (await near.domain("half"))["state"] == "paused"  # it can be looked at
    (shown,) = await near.json("network-list", "--json", "half")
    assert shown["vifs"][0]["device"] in await near.taps()
    await faults.kill(lab, "test1", "veeryd")
    assert (await order).code == 1
    await lab.start("test1")

    async def settled() -> bool:
        left = await near.traces()
        return left["owners"] == {NAME: "test1"} and len(left["taps"]) == len(left["qemus"]) == len(left["homes"]) == 1

    await until(settled, "nothing of it is left")
    await near.veery("create", "-p", path)
    await near.veery("destroy", "half")
    await near.veery("delete", "half")
    await writes(near)


def _served(target: dict[str, Any]) -> dict[str, Any]:
    """What must be the same. Its lists have the order in which nodes came; a tgtd that is new has no fillers of nodes
    that have left."""
    same = {key: target[key] for key in ("tid", "iqn", "luns")}
    accounts = [account for account in target["accounts"] if not is_filler(account)]
    return same | {"acl": sorted(target["acl"]), "accounts": sorted(accounts)}


async def test_tgtd_is_killed(martin: Path, near: Node, stor: Node, lab: Lab) -> None:
    before = await stor.targets()
    pid = (await near.domain(NAME))["pid"]
    assert (await logins(lab, "second"))[0] == 0
    await faults.kill(lab, "stor", "tgtd")

    now: list[dict[str, Any]] = []

    async def back() -> bool:
        try:
            now[:] = await stor.targets()
        except AssertionError:  # it is not up yet
            return False
        return [_served(each) for each in now] == [_served(each) for each in before]

    try:
        await until(back, "the same targets again")
    except AssertionError as error:
        raise AssertionError(f"{error}: {before} became {now}") from None
    assert (await logins(lab, "second")) == (0, f"{8 << 20}\n")
    code, said = await logins(lab, "second", "a-wrong-secret")
    assert code == 1, said
    await writes(near)
    assert (await near.domain(NAME))["pid"] == pid
    async with near.shell(NAME) as shell:
        assert "I/O error" not in await shell.run("dmesg")


async def test_etcd_is_killed(martin: Path, near: Node, lab: Lab) -> None:
    """One voter of three, the one that this node asks first: orders go on, and it comes back by itself."""
    (old,) = await faults.kill(lab, "test1", "etcd")
    await near.veery("pause", NAME)
    await near.veery("unpause", NAME)

    async def back() -> bool:
        return any(one.program == "etcd" and one.process.pid != old.process.pid for one in lab.members("test1"))

    await until(back, "etcd is back")
    await lab.healthy()


async def test_a_node_that_lost_its_power_gives_its_names_back(
    martin: Path, near: Node, far: Node, lab: Lab, workshop: Workshop
) -> None:
    path = workshop.file("second")
    await far.veery("create", "-p", path)
    (before,) = await far.json("list", "-l", "second")
    await faults.power_off(lab, "test2")
    assert "second runs on test2" in await near.refused("create", path)  # nobody knows yet that it does not
    await faults.power_on(lab, "test2")

    async def given_back() -> bool:
        return (await near.store())[0] == {NAME: "test1"}

    await until(given_back, "its name given back")
    assert await far.domains() == {}
    await near.veery("create", "-p", path)
    (after,) = await near.json("list", "-l", "second")
    assert after["config"]["nics"] == before["config"]["nics"]
    await near.veery("destroy", "second")
    await lab.healthy()
