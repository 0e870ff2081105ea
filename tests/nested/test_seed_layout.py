"""The seed's own layout: a `file:` image on one ext4 that both nodes mount from one LUN. It runs, and must not move."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from crossing import FILE, MOVE, NODES, rows, typed

from veery.lab.services import Lab
from veery.lab.xen import dom0
from veery.lab.xen.login import login, logout

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

PLACE = "/run/xen-images"
IMAGE = f"{PLACE}/busybox.img"


@pytest.fixture
async def image(xen: Lab) -> AsyncIterator[str]:
    """The image, on an ext4 that both nodes have mounted."""
    try:
        await xen.veery("stor", "volume", "create", "images", "256M")
        await xen.veery("stor", "volume", "create", "busybox", "128M")
        await xen.veery("stor", "image", "build", "busybox", "--volume", "busybox")
        disk, source = await login(xen, "test1", "images"), await login(xen, "test1", "busybox")
        await xen.run("test1", ["mkfs.ext4", "-q", "-F", disk], deadline=60)
        await xen.run("test1", ["sh", "-c", f"mkdir -p {PLACE}; mount -t ext4 {disk} {PLACE}"])
        await xen.run("test1", ["dd", f"if={source}", f"of={IMAGE}", "bs=1M", "conv=fsync"], deadline=60)
        await logout(xen, "test1", "busybox")
        other = await login(xen, "test2", "images")
        await xen.run("test2", ["sh", "-c", f"mkdir -p {PLACE}; mount -t ext4 {other} {PLACE}"])
        yield IMAGE
    finally:
        for node in NODES:
            await xen.veery(node, "destroy", "busybox", deadline=60, check=False)
            await xen.run(node, ["umount", PLACE], check=False)
            for volume in ("images", "busybox"):
                await logout(xen, node, volume)
        for volume in ("images", "busybox"):
            await xen.veery("stor", "volume", "delete", volume, check=False)


async def test_an_image_on_an_ext4_that_both_nodes_mount_is_not_moved(xen: Lab, image: str) -> None:
    text = FILE.format(kind="pv").replace("volume=busybox,", f"file:{image},")
    await xen.run("test1", ["tee", f"{dom0.STATE}/busybox.cfg"], stdin=text.encode())
    await xen.veery("test1", "create", f"{dom0.STATE}/busybox.cfg", deadline=60)
    boot = await typed(xen, "test1", "cat /proc/sys/kernel/random/boot_id")

    told = await xen.veery("test1", *MOVE, "test2", check=False)
    assert told.code == 1
    assert f"{image} is not on a filesystem that two nodes share" in told.err
    assert f"veery volume import NAME {image}" in told.err
    plan = await xen.veery("test1", "migrate", "--plan", "--json", "busybox", "test2", check=False)
    assert "storage" in {blocker["kind"] for blocker in json.loads(plan.out)["blockers"]}

    assert [name for name, _ in await rows(xen, "test1")] == ["busybox"]
    assert await rows(xen, "test2") == []
    assert await typed(xen, "test1", "cat /proc/sys/kernel/random/boot_id") == boot
