"""veery moves a domain between real Xen hosts: there and back, and with a process killed on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from veery.client.address import Address
from veery.lab.plan import BRIDGE, CLIENT, DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.lab.xen import dom0

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

FILE = f"""\
name = "busybox"
kernel = "{dom0.GUEST}/vmlinuz"
ramdisk = "{dom0.GUEST}/initramfs"
memory = 128
type = "pv"
disk = ["volume=busybox,xvda,w"]
vif = ["mac=00:16:3e:31:00:04,bridge={BRIDGE}"]
root = "/dev/xvda rw"
extra = "console=hvc0 init=/sbin/init quiet"
"""
NODES = ("test1", "test2")
XL, RELAY = "xl migrate", "veery.hypervisor.xen.relay"


@pytest.fixture
async def domain(xen: Lab) -> AsyncIterator[str]:
    """busybox on test1, answering; its boot id."""
    await xen.healthy()
    await xen.veery("stor", "volume", "create", "busybox", "128M")
    try:
        await xen.veery("stor", "image", "build", "busybox", "--volume", "busybox")
        await xen.run("test1", ["tee", f"{dom0.STATE}/busybox.cfg"], stdin=FILE.encode())
        await xen.veery("test1", "create", f"{dom0.STATE}/busybox.cfg", deadline=60)
        yield await typed(xen, "test1", f"ifconfig eth0 {DOMAIN_ADDRESS} up; cat /proc/sys/kernel/random/boot_id")
    finally:
        for node in NODES:
            await xen.veery(node, "destroy", "busybox", deadline=60, check=False)
        await xen.veery("stor", "volume", "delete", "busybox", check=False)


async def typed(lab: Lab, node: str, command: str) -> str:
    """What `command` prints in the guest's shell; by the daemon, as `xl console` beside it would get a part only."""
    async with Shell(Address(lab.plan.home(node) / "run" / "api.sock"), "busybox") as shell:
        await shell.ready()
        return await shell.run(command)


async def rows(lab: Lab, node: str) -> list[tuple[str, str]]:
    """Name and state of each domain on a node, as xl has them."""
    lines = (await lab.run(node, ["xl", "list"])).out.splitlines()[2:]
    return [(line.split()[0], line.split()[4]) for line in lines]


async def settled(lab: Lab) -> str:
    """The one node on which the one domain runs."""
    ends = time.monotonic() + 240
    while True:
        found = {node: await rows(lab, node) for node in NODES}
        running = [node for node in NODES for name, state in found[node] if name == "busybox" and state[2:5] == "---"]
        if len(running) == 1 and sum(map(len, found.values())) == 1:
            return running[0]
        assert time.monotonic() < ends, found
        await asyncio.sleep(0.5)


async def test_there_and_back(xen: Lab, domain: str) -> None:
    probe = await Probe.start(partial(xen.enter, CLIENT), [DOMAIN_ADDRESS], interval=0.01)
    try:
        await probe.answered(deadline=120)
        for source, target in (NODES, NODES[::-1]):
            await probe.mark()
            begun = time.monotonic()
            await xen.veery(source, "migrate", "busybox", target, deadline=60)
            passed = time.monotonic() - begun
            await probe.answered(deadline=60)
            gap = (await probe.read())[DOMAIN_ADDRESS].gap_ms
            print(f"{source} -> {target}: {passed:.1f} s, gap {gap} ms")
            assert await settled(xen) == target
    finally:
        await probe.stop()
    assert await typed(xen, "test1", "cat /proc/sys/kernel/random/boot_id") == domain
