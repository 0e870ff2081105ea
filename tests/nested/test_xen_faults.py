"""Machines, cables and services fail while veery moves a domain between real Xen hosts.

After each: one running domain, on its owner, the same boot, its disk clean, nothing left over; the next move works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from crossing import HOLD, MOVE, alone, appears, held, listed, moved, rows, settled, typed

from veery.host.run import Result
from veery.lab import faults
from veery.lab.services import Lab

pytestmark = pytest.mark.timeout(1800)

BOOT = "cat /proc/sys/kernel/random/boot_id"


@asynccontextmanager
async def moving(lab: Lab, *, until: str) -> AsyncIterator[asyncio.Task[Result]]:
    """A move from test1 to test2 in COPY, or `until` LOADED held there; the hold is taken away at the end."""
    before = lab.log("test1").read_text().count("held in LOADED")
    if until == "LOADED":
        await lab.run("test1", ["sh", "-c", f"mkdir -p {HOLD}; touch {HOLD}/LOADED"])
    task = asyncio.create_task(lab.veery("test1", *MOVE, "test2", deadline=240, check=False))
    try:
        if until == "COPY":
            await appears(lab, "test2", "libxl-save-helper")
            await asyncio.sleep(1.0)
        else:
            await held(lab, before)
        yield task
    finally:
        await faults.heal(lab, "test1")
        await faults.heal(lab, "test2")
        await lab.run("test1", ["rm", "-rf", HOLD], check=False)
        await asyncio.wait([task], timeout=300)


async def well(lab: Lab, boot: str, told: Result) -> str:
    """The node on which it runs, once all is as it has to be."""
    where = await settled(lab)
    print(f"it runs on {where}; the move said {(told.out + told.err).strip()[-300:]!r}")
    assert await typed(lab, where, BOOT) == boot
    assert await listed(lab) == [where]
    await alone(lab, where)
    return where


async def clean(lab: Lab, where: str) -> None:
    """The next move works, and what it wrote there is on its disk, without a fault in the filesystem."""
    other = "test2" if where == "test1" else "test1"
    await moved(lab, where, other)
    assert await settled(lab) == other
    await alone(lab, other)
    await typed(lab, other, "mount -o remount,rw /; echo written > /mark; sync; mount -o remount,ro /; sync")
    await lab.veery(other, "destroy", "busybox", deadline=60)
    volume = (await lab.json("stor", "volume", "show", "busybox", "--json"))["volume"]["path"]
    checked = await lab.run("stor", ["e2fsck", "-fn", volume], check=False)
    assert checked.code == 0, checked.out
    assert (await lab.run("stor", ["debugfs", "-R", "cat /mark", volume])).out.strip() == "written"


@pytest.mark.parametrize("until", ["COPY", "LOADED"])
@pytest.mark.slow
async def test_a_cable_is_out_for_a_while(xen: Lab, domain: str, until: str) -> None:
    async with moving(xen, until=until) as task:
        await faults.cut(xen, "test2")
        await asyncio.sleep(5)
        await faults.heal(xen, "test2")
    await clean(xen, await well(xen, domain, task.result()))


@pytest.mark.slow
async def test_a_cable_stays_out_until_the_move_has_ended(xen: Lab, domain: str) -> None:
    async with moving(xen, until="COPY") as task:
        await faults.cut(xen, "test2")
        told = await asyncio.wait_for(asyncio.shield(task), 240)
        assert told.code != 0
    where = await well(xen, domain, told)
    assert where == "test1"
    await clean(xen, where)


@pytest.mark.slow
async def test_tgtd_is_killed_in_the_copy(xen: Lab, domain: str) -> None:
    async with moving(xen, until="COPY") as task:
        await faults.kill(xen, "stor", "tgtd")
    await clean(xen, await well(xen, domain, task.result()))


@pytest.mark.slow
async def test_etcd_has_no_quorum_at_commit(xen: Lab, domain: str) -> None:
    async with moving(xen, until="LOADED") as task:
        stopped = faults.find(xen, "stor", "etcd")
        await faults.halt(stopped)
        try:
            await xen.run("test1", ["rm", "-rf", HOLD])
            await asyncio.sleep(12)
        finally:
            faults.go_on(stopped)
    await clean(xen, await well(xen, domain, task.result()))


@pytest.mark.slow
async def test_a_second_move_of_the_same_domain_is_refused(xen: Lab, domain: str) -> None:
    async with moving(xen, until="COPY") as task:
        second = await xen.veery("test1", *MOVE, "test2", check=False)
        assert second.code != 0
        assert "is being moved" in second.err
    assert task.result().code == 0, task.result().err
    where = await well(xen, domain, task.result())
    assert where == "test2"
    await clean(xen, where)


@pytest.mark.parametrize("until", [pytest.param("COPY", marks=pytest.mark.slow), "LOADED"])
async def test_the_target_loses_power(xen: Lab, domain: str, until: str) -> None:
    async with moving(xen, until=until) as task:
        await faults.power_off(xen, "test2")
        told = await asyncio.wait_for(asyncio.shield(task), 240)
    assert told.code != 0
    assert await typed(xen, "test1", BOOT) == domain
    await faults.power_on(xen, "test2")
    await xen.healthy()
    where = await well(xen, domain, told)
    assert where == "test1"
    await clean(xen, where)


@pytest.mark.slow
async def test_the_source_loses_power_after_the_pause(xen: Lab, domain: str) -> None:
    """COMMIT has not come, so the domain is gone with its owner, which nothing here can fence. When that is back it is
    known that the domain runs nowhere, and it is started anew."""
    await xen.veery("stor", "ha", "set", "busybox", "restart")
    async with moving(xen, until="LOADED"):
        await faults.power_off(xen, "test1")
        await alone(xen, "test1", up=("test2",))
        assert await rows(xen, "test2") == []
        await faults.power_on(xen, "test1")
    await xen.healthy()
    where = await settled(xen)
    assert await typed(xen, where, BOOT) != domain
    assert await listed(xen) == [where]
    await alone(xen, where)
    await clean(xen, where)


@pytest.mark.slow
async def test_a_session_lost_under_a_running_domain_is_regained(xen: Lab, domain: str) -> None:
    """The storage path of its node is out for 20 s: what it wrote meanwhile is on the disk afterwards."""
    await typed(xen, "test1", "mount -o remount,rw /; (sleep 3; echo late > /late; sync) & true")
    await faults.cut(xen, "test1", net=faults.Net.STORAGE)
    try:
        await asyncio.sleep(20)
    finally:
        await faults.heal(xen, "test1")
    async with asyncio.timeout(120):
        while await typed(xen, "test1", "cat /late; sync") != "late":
            await asyncio.sleep(1)
    assert await typed(xen, "test1", BOOT) == domain
    await clean(xen, "test1")
