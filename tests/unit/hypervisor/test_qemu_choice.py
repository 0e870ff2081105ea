"""What a node gives to domains that their guests do not see: by command line and by QMP."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_qemu_layouts import ATTACHED, GOLDEN, SPEC, WIRING, built

from veery.config.settings import Qemu, Switch
from veery.errors import Failed, Refused
from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.argv import build_argv, carries, threads
from veery.hypervisor.qemu.choice import Choice, choose, has_uring
from veery.model.domain import DiskFormat, DiskSpec
from veery.model.volume import AttachedDisk, LocalDisk

ALL = Choice(iothreads=True, vhost=True, uring=True)
TAP = devices.tap_id(ATTACHED.vifs[0])
HOST_SIDE = {"iothread", "aio", "vhost", "vhostfd"}


def line(layout: int, choice: Choice) -> list[str]:
    build = built(layout, "kvm")
    vhosts = {devices.tap_id(vif): 20 for vif in ATTACHED.vifs if carries(build, vif, choice)}
    wiring = replace(WIRING, choice=choice, vhosts=vhosts)
    return build_argv("qemu", SPEC, ATTACHED, build, wiring, incoming=True)


def options(words: list[str], option: str) -> list[dict[str, object]]:
    return [json.loads(value) for word, value in itertools.pairwise(words) if word == option and value.startswith("{")]


def test_no_byte_of_the_quickest_line_changes() -> None:
    assert "\n".join(line(3, ALL)) + "\n" == (GOLDEN / "layout-3-kvm-quick.txt").read_text()


@pytest.mark.parametrize("layout", [1, 2, 3])
def test_a_guest_sees_the_same_whatever_its_node_chose(layout: int) -> None:
    plain, quick = (options(line(layout, choice), "-device") for choice in (Choice(), ALL))
    assert [{key: value for key, value in each.items() if key not in HOST_SIDE} for each in quick] == plain


def test_older_layouts_keep_what_they_had() -> None:
    assert line(1, replace(ALL, uring=False)) == line(1, Choice())
    assert line(2, replace(ALL, uring=False, vhost=False)) == line(2, Choice())
    (disk, _, drive), (virtio, e1000) = ATTACHED.disks, ATTACHED.vifs
    assert [threads(built(layout, "kvm"), disk, ALL) for layout in (1, 2, 3)] == [False, False, True]
    assert not threads(built(3, "kvm"), drive, ALL)
    assert [carries(built(layout, "kvm"), virtio, ALL) for layout in (1, 2, 3)] == [False, True, True]
    assert not carries(built(3, "kvm"), e1000, ALL), "QEMU emulates it"


def test_each_disk_has_its_own_thread() -> None:
    words = line(3, ALL)
    made = [each["id"] for each in options(words, "-object") if each["qom-type"] == "iothread"]
    used = [each["iothread"] for each in options(words, "-device") if "iothread" in each]
    assert made == used == ["io-disk-xvda", "io-disk-xvdb"]


@pytest.mark.parametrize(
    ("block", "direct", "wanted"),
    [(False, True, "io_uring"), (True, True, "native"), (False, False, None)],
)
def test_disks_are_read_as_proxmox_reads_them(block: bool, direct: bool, wanted: str | None) -> None:
    spec = DiskSpec(vdev="xvda")
    source = LocalDisk(path="/d", format=DiskFormat.QCOW2, block=block, direct=direct)
    for disk, expected in ((spec, wanted), (replace(spec, cdrom=True), None)):
        node = devices.blockdev(AttachedDisk(spec=disk, source=source), choice=ALL)
        assert node is not None
        assert node["file"].get("aio") == expected
    plain = devices.blockdev(AttachedDisk(spec=spec, source=source))
    assert plain is not None
    assert "aio" not in plain["file"]


def test_a_tap_that_is_handed_over_is_carried_by_the_kernel_too() -> None:
    vif = ATTACHED.vifs[0]
    assert devices.netdev(vif, "tap", "vhost") == {
        "type": "tap",
        "id": TAP,
        "fd": "tap",
        "vhost": True,
        "vhostfd": "vhost",
    }
    assert devices.netdev(vif)["vhost"] is False


@pytest.mark.parametrize(
    ("accel", "switch", "there", "wanted"),
    [
        ("kvm", "auto", True, True),
        ("kvm", "off", True, False),
        ("kvm", "on", False, False),
        ("tcg", "auto", True, False),
        ("tcg", "on", True, False),
    ],
)
def test_the_kernel_carries_packets_where_it_can_and_kvm_gains(
    tmp_path: Path, accel: str, switch: Switch, there: bool, wanted: bool
) -> None:
    if there:
        (tmp_path / "vhost").touch()
    assert choose(Qemu(vhost=switch), accel, vhost=tmp_path / "vhost").vhost is wanted


def host(root: Path, *, free: int = 512) -> Path:
    pages = root / "kernel/mm/hugepages/hugepages-2048kB"
    pages.mkdir(parents=True)
    (pages / "free_hugepages").write_text(f"{free}\n")
    node = root / "devices/system/node/node1"
    node.mkdir(parents=True)
    (node / "cpulist").write_text("4-6,9\n")
    return root


def test_huge_pages_and_a_numa_node_are_the_nodes_own(tmp_path: Path) -> None:
    root = host(tmp_path)
    choice = choose(Qemu(hugepages="2M", numa_node=1, aio="off"), "tcg", root=root)
    assert choice.free_pages(root) == 1024
    assert choice.processors(root) == {4, 5, 6, 9}
    plain, large = line(3, Choice()), line(3, choice)
    (before,), (after,) = (
        [each for each in options(words, "-object") if each["id"] == "pc.ram"] for words in (plain, large)
    )
    assert after == before | {
        "qom-type": "memory-backend-memfd",
        "share": True,
        "hugetlb": True,
        "hugetlbsize": 2 << 20,
        "prealloc": True,
        "prealloc-threads": 4,
        "host-nodes": [1],
        "policy": "preferred",
    }
    assert options(plain, "-device") == options(large, "-device")
    assert line(1, choice) == line(1, Choice()), "its memory is no object"


def test_memory_that_no_pages_make_up_is_an_obstacle() -> None:
    huge = Choice(huge=2048)
    assert huge.obstacle(512, 3) == ("", "")
    assert "2 MiB pages" in huge.obstacle(511, 3)[0]
    assert "layout 1" in huge.obstacle(512, 1)[0]
    assert Choice().obstacle(511, 1) == ("", "")


@pytest.mark.parametrize(("settings", "hint"), [(Qemu(hugepages="1G"), "hugepages"), (Qemu(numa_node=7), "numa_node")])
def test_what_the_host_has_not_is_refused_with_the_way_out(tmp_path: Path, settings: Qemu, hint: str) -> None:
    with pytest.raises(Refused) as refused:
        choose(settings, "kvm", root=host(tmp_path))
    assert hint in refused.value.hint


def test_a_pool_that_is_gone_is_no_room(tmp_path: Path) -> None:
    with pytest.raises(Failed):
        Choice(huge=2048).free_pages(tmp_path)


def test_threads_are_for_kvm_unless_it_is_said() -> None:
    assert choose(Qemu(iothreads="auto"), "kvm").iothreads
    assert not choose(Qemu(iothreads="auto"), "tcg").iothreads
    assert choose(Qemu(iothreads="on"), "tcg").iothreads
    assert not choose(Qemu(iothreads="off"), "kvm").iothreads


@pytest.mark.parametrize(("level", "apart", "never"), [("2", False, True), ("1", True, True), ("2", True, True)])
def test_a_kernel_that_gives_no_io_uring_is_believed(tmp_path: Path, level: str, apart: bool, never: bool) -> None:
    switch = tmp_path / "io_uring_disabled"
    switch.write_text(f"{level}\n")
    assert has_uring(switch, apart=apart) is not never
    assert not choose(Qemu(aio="off"), "kvm").uring
