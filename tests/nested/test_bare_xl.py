"""The nested lab is a real Xen lab: plain xl moves a domain on a LUN from one node to the other, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from veery.lab.plan import CLIENT, DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.xen.bare import Bare
from veery.lab.xen.terminal import Terminal, terminal

pytestmark = pytest.mark.timeout(1500)


@asynccontextmanager
async def console(lab: Lab, node: str) -> AsyncIterator[Terminal]:
    async with terminal(lab.nested(node), ["xl", "console", "busybox"]) as shown:
        await shown.type("\n")
        await shown.ready()
        yield shown


@pytest.mark.slow
async def test_xl_moves_a_domain_there_and_back(xen: Lab) -> None:
    await xen.veery("stor", "volume", "create", "busybox", "128M")
    bare = Bare(xen, "busybox")
    try:
        await xen.veery("stor", "image", "build", "busybox", "--volume", "busybox")
        await bare.create("test1")
        await there_and_back(xen, bare)
    finally:
        await bare.destroy()
        await xen.veery("stor", "volume", "delete", "busybox")


async def there_and_back(lab: Lab, bare: Bare) -> None:
    async with console(lab, "test1") as shell:
        await shell.run(f"mount -o remount,rw /; ifconfig eth0 {DOMAIN_ADDRESS} up; echo from test1 > /note; sync")
        before = await look(shell)
    probe = await Probe.start(partial(lab.enter, CLIENT), [DOMAIN_ADDRESS], interval=0.01)
    try:
        await probe.answered(deadline=120)
        for source, target in (("test1", "test2"), ("test2", "test1")):
            await probe.mark()
            passed = await bare.move(source, target)
            await asyncio.sleep(2)
            gap = (await probe.read())[DOMAIN_ADDRESS].gap_ms
            assert gap is not None
            print(f"{source} -> {target}: {passed:.1f} s, gap {gap / 1000:.1f} s")
            assert not await bare.row(source)
            assert await bare.row(target)
        await probe.answered(deadline=60)
    finally:
        await probe.stop()
    async with console(lab, "test1") as shell:
        await shell.run("echo 3 > /proc/sys/vm/drop_caches")
        after = await look(shell)
    assert after["boot"] == before["boot"]
    assert float(after["uptime"]) > float(before["uptime"])
    assert after["note"] == "from test1"


async def look(shell: Terminal) -> dict[str, str]:
    return {
        "boot": await shell.run("cat /proc/sys/kernel/random/boot_id"),
        "uptime": (await shell.run("cat /proc/uptime")).split()[0],
        "note": await shell.run("cat /note"),
    }


async def test_a_node_is_as_a_real_one(xen: Lab) -> None:
    """Real Xen, its own name and address, and its daemon found from outside; the clock is this machine's."""
    facts = dict(row.split(":", 1) for row in (await xen.run("test2", ["xl", "info"])).out.splitlines() if ":" in row)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    assert (facts["host"], facts["xen_version"]) == ("test2", "4.17.5")
    assert "xen-3.0-x86_64" in facts["xen_caps"]
    assert abs(float((await xen.run("test2", ["date", "+%s.%N"])).out) - time.time()) < 5
    await xen.healthy()  # a busy machine lets a node's presence run out now and then
    rows = await asyncio.to_thread(xen.client("test2").get, "/v1/nodes")
    assert sorted(row["node"]["name"] for row in rows) == ["stor", "test1", "test2"]
