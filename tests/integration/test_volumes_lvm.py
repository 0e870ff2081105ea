"""LVM-backed volumes: on this machine where its kernel has device-mapper, and always in a guest whose kernel has."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import veery
from veery.errors import Failed, Refused
from veery.host.run import run
from veery.lab import guest as lab_guest
from veery.model.units import MIB
from veery.storage import image
from veery.storage.lvm import LvmStore

# What the store promises (base.BytesStore), told as one story over a group of 120 MiB whose disk is full of 0xff.
# It runs here, and as a program of its own in the guest.
STORY = """
import asyncio, sys
from veery.errors import Refused
from veery.storage.lvm import LvmStore

MIB = 1 << 20

def content(path, offset, length):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)

async def story(group):
    store = LvmStore(group)
    free = await store.free()
    assert 100 * MIB < free <= 120 * MIB, free
    assert await store.size("disk-1.a") is None
    size = await store.create("disk-1.a", 9 * MIB)
    assert size == 12 * MIB, size  # extents of 4 MiB
    path = store.path("disk-1.a")
    assert str(path) == f"/dev/{group}/veery.disk-1.a"
    assert content(path, 0, size) == bytes(size), "old bytes show"
    assert await store.free() == free - size
    try:
        await store.create("disk-1.a", MIB)
    except Refused as error:
        assert "there already" in error.message
    else:
        raise AssertionError("made twice")
    try:
        await store.create("huge", 1 << 40)
    except Refused as error:
        assert "do not fit" in error.message
    else:
        raise AssertionError("made too large")
    assert await store.size("huge") is None
    with open(path, "r+b") as file:
        file.write(b"kept")
    assert await store.grow("disk-1.a", 17 * MIB) == 20 * MIB
    assert await store.grow("disk-1.a", 1 * MIB) == 20 * MIB
    assert content(path, 0, 4) == b"kept"
    assert content(path, size, 8 * MIB) == bytes(8 * MIB), "old bytes show in what was added"
    await store.clear("disk-1.a")
    assert content(path, 0, 4) == bytes(4)
    await store.delete("disk-1.a")
    await store.delete("disk-1.a")
    assert await store.free() == free
"""

GUEST_INIT = """#!/bin/sh
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib PYTHONHOME=/py PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1
exec </dev/console >/dev/console 2>&1
busybox insmod /dm-mod.ko
busybox ifconfig lo 127.0.0.1 up
vgcreate -y guest /dev/vdb
python -S /story.py guest
echo "story ended with $?"
sync
busybox poweroff -f
"""
LVM_CONF = "devices { obtain_device_list_from_udev=0 }\nactivation { udev_sync=0 udev_rules=0 }\n"


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * (124 * MIB))
    return path


@pytest.fixture
def group(full_disk: Path) -> Iterator[str]:
    """A volume group on a loop device of this machine."""
    name = f"veery{full_disk.stat().st_ino}"
    loop = order("losetup", "--find", "--show", full_disk)
    try:
        order("vgcreate", "--yes", name, loop)
        yield name
        order("vgremove", "--yes", name)
    finally:
        order("losetup", "--detach", loop)


def order(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


async def test_logical_volumes_on_this_machine(group: str) -> None:
    try:
        await LvmStore(group).create("probe", MIB)
    except Refused as error:
        assert "no device-mapper" in error.message
        assert "modprobe dm-mod" in error.hint
        pytest.skip("THIS KERNEL HAS NO DEVICE-MAPPER: LVM was tried in a guest only")
    await LvmStore(group).delete("probe")
    namespace: dict[str, object] = {}
    exec(STORY, namespace)
    await namespace["story"](group)  # type: ignore[operator]


@pytest.mark.slow
async def test_logical_volumes_in_a_guest(full_disk: Path, tmp_path: Path) -> None:
    guest = await asyncio.to_thread(lab_guest.fetch, lambda *_: None)
    ramdisk = tmp_path / "initramfs"
    await image.build_initramfs(ramdisk, kernel=guest.kernel, modules=guest.modules)
    root = tmp_path / "root"
    await asyncio.to_thread(stage, root, guest.modules)
    disk = tmp_path / "root.img"
    await run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, disk, "400M"], deadline=120)
    result = await run(
        [
            *("timeout", "220", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "384"),
            *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(guest.kernel), "-initrd", str(ramdisk)),
            *("-append", "console=ttyS0 quiet panic=-1 root=/dev/vda rw init=/init"),
            *("-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"),
            *("-drive", f"file={full_disk},if=virtio,format=raw,cache=unsafe"),
        ],
        deadline=240,
        check=False,
    )
    assert re.search(r"story ended with 0\s", result.out), result.out[-4000:]


def stage(root: Path, modules: Path) -> None:
    """A root filesystem with lvm2, and with this Python and this package to drive it."""
    for name in (
        "bin",
        "dev",
        "proc",
        "sys",
        "lib",
        "lib64",
        "etc/lvm",
        "run",
        "tmp",
        "var",
        "site",
        "py/lib",
        "py/bin",
    ):
        (root / name).mkdir(parents=True)
    (root / "sbin").symlink_to("bin")
    shutil.copy("/bin/busybox", root / "bin")
    for name in ("sh", "timeout"):
        (root / "bin" / name).symlink_to("busybox")
    programs = [Path(shutil.which(name) or Failed(name).message) for name in ("lvm", "blkdiscard")]
    python = Path(sys.executable).resolve()
    shutil.copy(python, root / "bin" / "python")
    for program in programs:
        shutil.copy(program, root / "bin")
    for name in ("vgcreate", "vgs", "lvs", "lvcreate", "lvextend", "lvremove"):
        (root / "bin" / name).symlink_to("lvm")
    standard = Path(sysconfig.get_paths()["stdlib"])
    target = root / "py/lib" / standard.name
    shutil.copytree(standard, target, ignore=_not_needed)
    for package in (Path(veery.__file__).parent, Path(msgspec.__file__).parent):
        shutil.copytree(package, root / "site" / package.name)
    binaries = [python, *programs, *target.glob("lib-dynload/*.so"), *Path(msgspec.__file__).parent.glob("*.so")]
    for library in _libraries(binaries):
        shutil.copy(library, root / ("lib64" if "ld-linux" in library else "lib"))
    shutil.copy(modules / "kernel/drivers/md/dm-mod.ko", root)
    (root / "etc/lvm/lvm.conf").write_text(LVM_CONF)
    (root / "story.py").write_text(STORY + "\nasyncio.run(story(sys.argv[1]))\n")
    (root / "init").write_text(GUEST_INIT)
    (root / "init").chmod(0o755)


def _not_needed(folder: str, names: list[str]) -> set[str]:
    unwanted = {"test", "tests", "site-packages", "dist-packages", "idlelib", "tkinter", "ensurepip", "lib2to3"}
    return {name for name in names if name in unwanted or name.startswith(("config-", "_test"))}


def _libraries(binaries: list[Path]) -> set[str]:
    out = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False, timeout=60).stdout
    return set(re.findall(r"(/\S+) \(0x", out))
