"""veery moves a domain between real Xen hosts: there and back, and with a process killed on the way."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from veery.client.address import Address
from veery.host.process import Process
from veery.lab.plan import BRIDGE, CLIENT, DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.lab.xen import dom0, talk

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
HOLD = "/run/veery/hold"
MOVE = ("migrate", "--no-tls", "busybox")  # software emulation takes its time to encrypt
VICTIMS = {
    "xl migrate": ("test1", "xl migrate "),
    "xl migrate-receive": ("test2", "xl migrate-receive"),
    "source relay": ("test1", "xen.relay send"),
    "target relay": ("test2", "xen.relay receive"),
    "source veeryd": ("test1", "/veeryd"),
    "target veeryd": ("test2", "/veeryd"),
}


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
            await xen.veery(source, "migrate", "busybox", target, deadline=120)
            passed = time.monotonic() - begun
            await probe.answered(deadline=60)
            gap = (await probe.read())[DOMAIN_ADDRESS].gap_ms
            print(f"{source} -> {target}: {passed:.1f} s, gap {gap} ms")
            assert await settled(xen) == target
    finally:
        await probe.stop()
    assert await typed(xen, "test1", "cat /proc/sys/kernel/random/boot_id") == domain


@pytest.mark.parametrize("phase", ["COPY", "LOADED"])
@pytest.mark.parametrize("victim", VICTIMS)
async def test_killed_on_the_way(xen: Lab, domain: str, victim: str, phase: str) -> None:
    """kill -9 while memory is copied, and with the domain loaded at the target and COMMIT still to come."""
    node, mark = VICTIMS[victim]
    before = xen.log("test1").read_text().count("held in LOADED")
    if phase == "LOADED":
        await xen.run("test1", ["sh", "-c", f"mkdir -p {HOLD}; touch {HOLD}/LOADED"])
    moving = asyncio.create_task(xen.veery("test1", *MOVE, "test2", deadline=120, check=False))
    try:
        if phase == "COPY":
            await appears(xen, "test2", "libxl-save-helper")
            await asyncio.sleep(1.0)
        else:
            await held(xen, before)
        process = await appears(xen, node, mark)
        await talk.send(xen.nested(node).namespace, process, signal.SIGKILL)
        if victim.endswith("veeryd"):
            await xen.start(node)
    finally:
        await xen.run("test1", ["rm", "-rf", HOLD])
        told = await moving
    where = await settled(xen)
    print(f"{victim} killed in {phase}: it runs on {where}; the move said {(told.out + told.err).strip()!r}")
    assert await typed(xen, where, "cat /proc/sys/kernel/random/boot_id") == domain
    assert await listed(xen) == [where]
    other = next(name for name in NODES if name != where)
    await alone(xen, where)
    await xen.veery(where, *MOVE, other, deadline=120)  # the next move works
    assert await settled(xen) == other
    await alone(xen, other)
    assert await typed(xen, other, "cat /proc/sys/kernel/random/boot_id") == domain


async def listed(lab: Lab) -> list[str]:
    """The nodes that say they have the domain, once every node has answered."""
    ends = time.monotonic() + 240
    while True:
        told = await lab.veery("stor", "list", "--cluster", "--json", check=False)  # 1: a node did not answer
        if told.code == 0:
            found = json.loads(told.out)["nodes"]
            return [name for name in found if any(row["name"] == "busybox" for row in found[name])]
        assert time.monotonic() < ends, told.err
        await asyncio.sleep(1)


async def appears(lab: Lab, node: str, mark: str) -> Process:
    """The process in dom0 whose command line has `mark` in it, once it is there."""
    ends = time.monotonic() + 120
    while True:
        for member in await lab.nested(node).members():
            if mark in " ".join(member.words) + " " and member.words[0] != "sh":
                return member.process
        assert time.monotonic() < ends, f"no {mark} on {node}"
        await asyncio.sleep(0.1)


async def held(lab: Lab, before: int) -> None:
    """Return once the source holds one more move before COMMIT than `before`."""
    ends = time.monotonic() + 240
    while lab.log("test1").read_text().count("held in LOADED") == before:
        assert time.monotonic() < ends, "the move did not come to LOADED"
        await asyncio.sleep(0.1)


async def alone(lab: Lab, node: str) -> None:
    """Return once `node` has a session with the LUN, and the others have none."""
    ends = time.monotonic() + 60
    while True:
        found = {}
        for each in NODES:
            shown = await lab.run(each, ["sh", "-c", "cat /sys/class/iscsi_session/*/targetname"], check=False)
            found[each] = shown.out.split()
        if [len(found[each]) for each in NODES] == [each == node for each in NODES]:
            return
        assert time.monotonic() < ends, found
        await asyncio.sleep(0.5)
