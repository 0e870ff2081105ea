"""The seed's own commands, typed in dom0 of real Xen hosts through the `xm` symlink.

Verbatim, but for what means nothing any more: the disk is a volume of its own and not a file on an ext4 that both nodes
mount, the kernel has another version, and 128 MiB are enough."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from veery.lab.services import Lab
from veery.lab.xen import dom0
from veery.lab.xen.terminal import terminal

pytestmark = pytest.mark.timeout(1200)

FILE = f"""\
kernel ="{dom0.GUEST}/vmlinuz"
ramdisk ="{dom0.GUEST}/initramfs"
name = "busybox"
memory = "128"
vcpus = 1
disk =['volume=busybox,vdev=xvda,access=w',]
root = "/dev/xvda ro"
extra = "selinux=0 init=/bin/sh"
vif = ['bridge=xenbr0',]
on_crash = "destroy"
on_reboot = "destroy"
on_shutdown = "destroy"
"""
HEADER = ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]


@pytest.fixture
async def prepared(xen: Lab) -> AsyncIterator[Lab]:
    """The volume with its filesystem, and the domain's file on both nodes."""
    await xen.veery("stor", "volume", "create", "busybox", "128M")
    try:
        await xen.veery("stor", "image", "build", "busybox", "--volume", "busybox")
        for node in ("test1", "test2"):
            await xen.run(node, ["tee", "/etc/xen/busybox"], stdin=FILE.encode())
        yield xen
    finally:
        for node in ("test1", "test2"):
            await xen.run(node, ["xm", "destroy", "busybox"], check=False)
        await xen.veery("stor", "volume", "delete", "busybox", check=False)


async def xm(lab: Lab, node: str, *words: str) -> list[str]:
    return (await lab.run(node, ["xm", *words], deadline=120)).out.splitlines()


async def listed(lab: Lab, node: str) -> dict[str, list[str]]:
    """`xm list`: a row by name."""
    header, *rows = await xm(lab, node, "list")
    assert header.split() == HEADER
    return {row.split()[0]: row.split() for row in rows}


async def test_the_seeds_commands(prepared: Lab) -> None:
    lab = prepared
    rows = await listed(lab, "test1")
    assert list(rows) == ["Domain-0"]
    assert rows["Domain-0"][1:5] == ["0", "384", "1", "r-----"]
    facts = dict(re.split(r" *: ?", row, maxsplit=1) for row in await xm(lab, "test2", "info"))
    assert (facts["host"], facts["nr_cpus"], facts["xen_major"], facts["xen_minor"]) == ("test2", "1", "4", "17")
    assert facts["xen_scheduler"] == "credit"
    assert facts["xend_config_format"] == "4"
    assert "xen-3.0-x86_64" in facts["xen_caps"]
    assert int(facts["total_memory"]) > int(facts["free_memory"]) > 0

    async with terminal(lab.nested("test1"), ["xm", "create", "-c", "busybox"]) as shown:
        await shown.expect(r'Using config file "/etc/xen/busybox".\n')
        (number,) = re.findall(r"id=(\d+)", await shown.expect(r"Started domain busybox \(id=\d+\)"))
        await shown.ready()
        await shown.run("ifconfig eth0 172.16.31.4 up")
        card = await shown.run("ifconfig eth0")
        assert "inet addr:172.16.31.4" in card
        await shown.type("\x1d")
    rows = await listed(lab, "test1")
    assert rows["busybox"][1:4] == [number, "128", "1"]
    assert re.fullmatch("[r-][b-]----", rows["busybox"][4])

    assert ":8002" in (await lab.run("test2", ["ss", "-tln"])).out
    await xm(lab, "test1", "migrate", "-l", "busybox", "172.16.31.2")
    assert list(await listed(lab, "test1")) == ["Domain-0"]
    assert list(await listed(lab, "test2")) == ["Domain-0", "busybox"]
    async with terminal(lab.nested("test2"), ["xm", "console", "busybox"]) as shown:
        await shown.ready()
        assert mac(await shown.run("ifconfig eth0")) == mac(card)
        assert "inet addr:172.16.31.4" in await shown.run("ifconfig eth0")
    await xm(lab, "test2", "destroy", "busybox")
    assert list(await listed(lab, "test2")) == ["Domain-0"]
    for node in ("test1", "test2"):
        shown_by_xl = (await lab.run(node, ["xl", "list"])).out.splitlines()
        assert [row.split()[0] for row in shown_by_xl[1:]] == ["Domain-0"]


def mac(card: str) -> str:
    found = re.search(r"HWaddr (\S+)", card)
    assert found is not None
    return found[1]


@pytest.mark.slow
async def test_a_domains_life_by_veery(prepared: Lab) -> None:
    """create, list, console, pause, save and restore, reboot, shutdown, by the daemon in dom0."""
    lab = prepared
    started = (await lab.json("test1", "create", "/etc/xen/busybox", "--json", deadline=120))["reading"]
    assert started["name"] == "busybox"
    async with terminal(lab.nested("test1"), ["veery", "console", "busybox"]) as shown:
        await shown.ready()
        assert "Linux version" in await shown.run("dmesg | head -n 1")
        boot = await shown.run("cat /proc/sys/kernel/random/boot_id")
    await lab.veery("test1", "pause", "busybox")
    assert (await row(lab))["state"] == "paused"
    await lab.veery("test1", "unpause", "busybox")
    await lab.veery("test1", "save", "busybox", "/state/busybox.save", deadline=120)
    assert await row(lab) == {}
    await lab.veery("test1", "restore", "/state/busybox.save", deadline=120)
    async with terminal(lab.nested("test1"), ["veery", "console", "busybox"]) as shown:
        await shown.ready()
        assert await shown.run("cat /proc/sys/kernel/random/boot_id") == boot
    assert "(XEN)" in (await lab.veery("test1", "dmesg")).out
    assert "busybox" in (await lab.veery("test1", "vcpu-list")).out
    await lab.veery("test1", "destroy", "busybox")
    assert await row(lab) == {}
    assert "session" not in (await lab.run("test1", ["sh", "-c", "ls /sys/class/iscsi_session"])).out


async def row(lab: Lab) -> dict[str, object]:
    rows = await lab.json("test1", "list", "--json")
    return next((each for each in rows if each["name"] == "busybox"), {})
