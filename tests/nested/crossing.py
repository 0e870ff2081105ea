"""A domain that moves between two real Xen hosts, and what is true of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence

from veery.client.address import Address
from veery.host.process import Process
from veery.lab.plan import BRIDGE, DOMAIN_ADDRESS
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.lab.xen import dom0

FILE = f"""\
name = "busybox"
kernel = "{dom0.GUEST}/vmlinuz"
ramdisk = "{dom0.GUEST}/initramfs"
memory = 128
type = "{{kind}}"
disk = ["volume=busybox,xvda,w"]
vif = ["mac=00:16:3e:31:00:04,bridge={BRIDGE}"]
root = "/dev/xvda rw"
extra = "console=hvc0 init=/sbin/init quiet"
on_poweroff = "{{end}}"
on_reboot = "{{end}}"
on_crash = "{{end}}"
"""
NODES = ("test1", "test2")
HOLD = "/run/veery/hold"
MOVE = ("migrate", "--no-tls", "busybox")  # software emulation takes its time to encrypt


@contextlib.asynccontextmanager
async def at_home(xen: Lab, kind: str = "pv", end: str = "destroy") -> AsyncIterator[str]:
    """busybox on test1, answering; its boot id. `end` is what follows when the guest ends by itself."""
    await xen.healthy()
    await xen.veery("stor", "volume", "create", "busybox", "128M")
    try:
        await xen.veery("stor", "image", "build", "busybox", "--volume", "busybox")
        await xen.run("test1", ["tee", f"{dom0.STATE}/busybox.cfg"], stdin=FILE.format(kind=kind, end=end).encode())
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


async def moved(lab: Lab, source: str, target: str) -> None:
    """Move it. While a node still settles the move before, the answer is a refusal that says so: it is asked again."""
    ends = time.monotonic() + 120
    while True:
        told = await lab.veery(source, *MOVE, target, deadline=120, check=False)
        if told.code == 0:
            return
        assert "is being settled" in told.err and time.monotonic() < ends, told.err
        await asyncio.sleep(1)


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


async def alone(lab: Lab, node: str, *, up: Sequence[str] = NODES) -> None:
    """Return once, of the nodes that are `up`, `node` has a session with the LUN and the others have none.

    A target whose source has lost power learns that from the silence (wire.SILENT_S)."""
    ends = time.monotonic() + 150
    while True:
        found = {}
        for each in up:
            shown = await lab.run(each, ["sh", "-c", "cat /sys/class/iscsi_session/*/targetname"], check=False)
            found[each] = shown.out.split()
        if [len(found[each]) for each in up] == [each == node for each in up]:
            return
        assert time.monotonic() < ends, found
        await asyncio.sleep(0.5)
