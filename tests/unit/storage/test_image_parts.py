"""The parts of the image: module dependencies, the archive, the scripts."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from veery.errors import Refused
from veery.host.run import run
from veery.storage import guestfiles
from veery.storage.image import Entry, cpio
from veery.storage.modules import MODULE_MAX_BYTES, ModuleTree, alias_file, dep_file


def module(folder: Path, path: str, depends: str = "", *aliases: str) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = [f"depends={depends}", *(f"alias={alias}" for alias in aliases), "license=GPL"]
    file.write_bytes(b"\x7fELF\0\0" + b"".join(field.encode() + b"\0" for field in fields) + b"\1\2")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "6.1.0-test"
    module(folder, "kernel/virtio/virtio_pci.ko", "virtio_ring,virtio", "pci:v00001AF4d*")
    module(folder, "kernel/virtio/virtio_ring.ko", "virtio")
    module(folder, "kernel/virtio/virtio.ko")
    module(folder, "kernel/net/virtio_net.ko", "net_failover,virtio_ring", "virtio:d00000001v*")
    module(folder, "kernel/net/net_failover.ko", "failover")
    module(folder, "kernel/net/failover.ko")
    module(folder, "kernel/net/xen-netfront.ko", "", "xen:vif")
    module(folder, "kernel/net/e1000.ko")
    (folder / "modules.builtin").write_text("kernel/drivers/block/virtio_blk.ko\nkernel/drivers/acpi/button.ko\n")
    return folder


def test_dependencies_come_first_and_strangers_stay_out(tree: Path) -> None:
    order = ModuleTree(tree).load_order()
    names = [one.name for one in order]
    assert names == ["virtio", "virtio_ring", "virtio_pci", "failover", "net_failover", "virtio_net", "xen_netfront"]
    lines = dict(line.split(":", 1) for line in dep_file(order).splitlines())
    assert lines["kernel/net/virtio_net.ko"].split() == [
        "kernel/net/net_failover.ko",
        "kernel/net/failover.ko",
        "kernel/virtio/virtio_ring.ko",
        "kernel/virtio/virtio.ko",
    ]
    assert lines["kernel/virtio/virtio.ko"] == ""
    assert "alias xen:vif xen_netfront\n" in alias_file(order)


def test_a_kernel_without_disks_is_refused(tree: Path) -> None:
    (tree / "modules.builtin").write_text("")
    with pytest.raises(Refused, match="has no module virtio_blk"):
        ModuleTree(tree).load_order()


def test_modules_packed_with_xz_are_unpacked_for_the_guest(tree: Path) -> None:
    plain = {one.name: ModuleTree(tree).content(one) for one in ModuleTree(tree).load_order()}
    for file in tree.rglob("*.ko"):
        file.with_name(f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes()))
        file.unlink()
    packed = ModuleTree(tree)
    order = packed.load_order()
    assert {one.name: packed.content(one) for one in order} == plain
    assert all(one.path.suffix == ".ko" for one in order)


def test_a_packed_module_that_is_damaged_is_refused(tree: Path) -> None:
    file = tree / "kernel/net/e1000.ko"
    whole = lzma.compress(file.read_bytes())
    file.unlink()
    for damaged in (b"not xz", whole[:-20], lzma.compress(bytes(MODULE_MAX_BYTES + 2), preset=0)):
        (tree / "kernel/net/e1000.ko.xz").write_bytes(damaged)
        with pytest.raises(Refused, match="e1000"):
            ModuleTree(tree).read("e1000")


async def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = [
        Entry("bin"),
        Entry("bin/tool", data=b"#!/bin/sh\nodd"),
        Entry("bin/link", link="tool"),
        Entry("console", 0o600, device=(5, 1)),
    ]
    archive = b"".join(cpio(entries))
    assert len(archive) % 4 == 0
    listing = (await run(["busybox", "cpio", "-itv"], stdin=archive, deadline=20)).out
    assert "drwxr-xr-x" in listing
    assert "bin/link -> tool" in listing
    (tmp_path / "archive").write_bytes(archive)
    command = 'cd "$0" && busybox cpio -idm bin bin/tool bin/link < archive'
    await run(["sh", "-c", command, tmp_path], deadline=20)
    assert (tmp_path / "bin/link").read_bytes() == b"#!/bin/sh\nodd"
    assert os.access(tmp_path / "bin/tool", os.X_OK)


@pytest.mark.parametrize(
    "script", [guestfiles.INIT, guestfiles.RCS, guestfiles.POWER_BUTTON, guestfiles.WRITER, guestfiles.PROFILE]
)
async def test_scripts_are_sound_to_the_shell_that_runs_them(script: str) -> None:
    result = await run(["busybox", "sh", "-n"], stdin=script.encode(), deadline=10, check=False)
    assert (result.code, result.err) == (0, "")


async def test_the_writer_goes_on_where_it_left_off(tmp_path: Path) -> None:
    script, record = tmp_path / "writer", tmp_path / "record"
    script.write_text(guestfiles.WRITER)
    for _ in range(2):
        await run(["timeout", "0.6", "busybox", "sh", script, record, "0.1"], deadline=20, check=False)
    rows = [line.split() for line in record.read_text().splitlines()]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 2
    assert {row[1] for row in rows} == {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
