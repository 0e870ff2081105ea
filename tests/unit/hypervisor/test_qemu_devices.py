"""A domain as QEMU is told of it: pure functions, no QEMU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from veery.errors import Refused
from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.argv import Wiring, build_argv
from veery.hypervisor.qemu.build import MAX_PORTS, Build, disk_id, lay_out, vif_id
from veery.hypervisor.qemu.domain import end_of
from veery.hypervisor.qemu.migration import local_disks
from veery.model import codec
from veery.model.domain import DiskFormat, DiskSpec, DomainEnd, DomainSpec, OnEvent, VifSpec
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, IscsiLun, LocalDisk

UUID = "7c2f4b1e-0000-4000-8000-000000000001"
XVDA = DiskSpec(vdev="xvda", volume="busybox")
LUN = IscsiLun(
    portal="172.16.31.3:3260", iqn="iqn.2026-11.lab:busybox", lun=1, initiator="iqn.i", user="u", password="s3cret"
)
VIF = AttachedVif(spec=VifSpec(bridge="xenbr0", mac="00:16:3E:00:00:01"), device="vif1.0")
WIRING = Wiring(
    monitors=(5, 6), console=7, console_log=Path("/run/a,b/console.log"), secrets={"secret-disk-xvda": 9}, agent=8
)


def spec(**changes: object) -> DomainSpec:
    values: dict[str, object] = {"name": "busybox", "uuid": UUID, "kernel": "/k", "disks": (XVDA,), "vifs": (VIF.spec,)}
    return DomainSpec(**(values | changes))  # type: ignore[arg-type]


def argv(domain: DomainSpec, attachments: Attachments, *, incoming: bool = False) -> list[str]:
    plan = lay_out(domain, machine="pc-q35-9.0", accel="tcg", started=1.0)
    return build_argv("qemu", domain, attachments, plan, WIRING, incoming=incoming)


def options(words: list[str], flag: str) -> list[str]:
    return [words[number + 1] for number, word in enumerate(words) if word == flag]


@pytest.mark.parametrize(
    ("cmdline", "wanted"),
    [
        ("root=/dev/xvda ro", "root=/dev/vda ro console=ttyS0"),
        ("root=/dev/xvda1 ro console=hvc0", "root=/dev/vda1 ro console=ttyS0"),
        ("root=/dev/xvdc x=/dev/xvda,/dev/xvdc2", "root=/dev/vdb x=/dev/vda,/dev/vdb2 console=ttyS0"),
        ("root=/dev/xvdd", "root=/dev/vdd console=ttyS0"),
        ("root=/dev/hda root=/dev/sda1", "root=/dev/hda root=/dev/sda1 console=ttyS0"),
        ("root=/dev/mapper/dev/xvda /dev/xvdax1y", "root=/dev/mapper/dev/xvda /dev/xvdax1y console=ttyS0"),
        ("console=tty0 console=xvc0,115200", "console=tty0 console=ttyS0,115200"),
        ("console=tty0 xconsole=hvc0", "console=tty0 xconsole=hvc0"),
        ("", "console=ttyS0"),
    ],
)
def test_a_xen_command_line_is_translated(cmdline: str, wanted: str) -> None:
    disks = (XVDA, DiskSpec(vdev="xvdb", cdrom=True), DiskSpec(vdev="xvdc"))
    assert devices.command_line(cmdline, disks) == wanted


def test_partitions_given_as_disks_become_whole_ones() -> None:
    disks = (DiskSpec(vdev="xvda2"), DiskSpec(vdev="xvda1"), DiskSpec(vdev="hda"))
    assert devices.guest_names(disks) == {"xvda2": "vda", "xvda1": "vdb", "hda": "vdc"}
    wanted = "root=/dev/vda swap=/dev/vdb x=/dev/vdc3 console=ttyS0"
    assert devices.command_line("root=/dev/xvda2 swap=/dev/xvda1 x=/dev/hda3", disks) == wanted


def test_the_letters_go_on_past_z() -> None:
    names = devices.guest_names([DiskSpec(vdev=f"d{number}") for number in range(703)])
    assert [names[f"d{number}"] for number in (0, 25, 26, 51, 52, 701, 702)] == [
        "vda", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa",
    ]  # fmt: skip


def test_no_password_stands_on_the_command_line() -> None:
    words = argv(spec(), Attachments(disks=(AttachedDisk(spec=XVDA, source=LUN),), vifs=(VIF,)))
    assert not [word for word in words if "s3cret" in word]
    assert json.loads(options(words, "-object")[-1]) == {
        "qom-type": "secret",
        "id": "secret-disk-xvda",
        "file": "/proc/self/fd/9",
    }
    node = json.loads(options(words, "-blockdev")[0])
    assert (node["password-secret"], node["user"], node["initiator-name"]) == ("secret-disk-xvda", "u", "iqn.i")
    open_lun = replace(LUN, user="", password="")
    words = argv(spec(), Attachments(disks=(AttachedDisk(spec=XVDA, source=open_lun),), vifs=(VIF,)))
    assert [json.loads(word)["id"] for word in options(words, "-object")] == ["pc.ram"]
    assert "user" not in json.loads(options(words, "-blockdev")[0])


def test_every_device_has_a_place_of_its_own_that_travels() -> None:
    plan = lay_out(spec(), machine="pc-q35-9.0", accel="tcg", started=1.0)
    assert plan.slots == {"disk-xvda": 0, "vif-00163e000001": 1}
    assert plan.ports == 8
    more = plan.plug("disk-xvdb", plan.free_port()).unplug("disk-xvda")
    assert more.slots == {"vif-00163e000001": 1, "disk-xvdb": 2}
    assert more.free_port() == 0
    assert codec.decode(codec.encode(more), Build) == more
    full = replace(plan, slots={f"disk-{port}": port for port in range(8)})
    with pytest.raises(Refused, match="all 8 places"):
        full.free_port()


def test_what_cannot_be_laid_out_is_refused() -> None:
    for bad in (
        spec(disks=(XVDA, XVDA)),
        spec(vifs=(VifSpec(bridge="b"),)),
        spec(disks=tuple(DiskSpec(vdev=f"xvd{number}") for number in range(MAX_PORTS))),
        spec(disks=tuple(DiskSpec(vdev=f"hd{number}", cdrom=True) for number in range(7))),
    ):
        with pytest.raises(Refused):
            lay_out(bad, machine="pc-q35-9.0", accel="tcg", started=1.0)
    disk = AttachedDisk(spec=XVDA, source=LocalDisk(path="/x", format=DiskFormat.EMPTY, block=False))
    with pytest.raises(Refused, match="no format"):
        devices.blockdev(disk)


def test_both_ends_of_a_move_build_the_same_machine() -> None:
    attachments = Attachments(disks=(AttachedDisk(spec=XVDA, source=LUN),), vifs=(VIF,))
    here, there = argv(spec(), attachments), argv(spec(), attachments, incoming=True)
    assert there == [*here, "-incoming", "defer"]
    device = [json.loads(word) for word in options(here, "-device")]
    places = {one["id"]: one.get("bus") for one in device}
    assert (places["disk-xvda"], places["vif-00163e000001"], places["port0"]) == ("port0", "port1", "pcie.0")
    (console,) = [word for word in options(here, "-chardev") if ",id=console," in word]
    assert "logfile=/run/a,,b/console.log,logappend=on" in console


def test_guest_memory_stays_out_of_dumps_and_is_not_shared() -> None:
    (board,) = options(argv(spec(disks=(), vifs=()), Attachments()), "-machine")
    assert {"dump-guest-core=off", "mem-merge=off"} <= set(board.split(","))


def test_endings_are_left_to_the_layer_above() -> None:
    words = argv(spec(disks=(), vifs=()), Attachments())
    assert options(words, "-action") == ["reboot=reset,shutdown=pause,panic=pause,watchdog=pause"]
    words = argv(spec(disks=(), vifs=(), on_reboot=OnEvent.DESTROY), Attachments())
    assert options(words, "-action")[0].startswith("reboot=shutdown,")
    assert end_of("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}) is DomainEnd.POWEROFF
    assert end_of("SHUTDOWN", {"guest": True, "reason": "guest-reset"}) is DomainEnd.REBOOT
    assert end_of("SHUTDOWN", {"guest": True, "reason": "guest-panic"}) is DomainEnd.CRASH
    assert end_of("GUEST_PANICKED", {"action": "pause"}) is DomainEnd.CRASH
    assert end_of("WATCHDOG", {"action": "pause"}) is DomainEnd.WATCHDOG
    assert end_of("STOP", {}) is None


def test_disks_without_a_kernel_are_booted_in_their_order() -> None:
    drive = DiskSpec(vdev="hdc", cdrom=True, readwrite=False)
    local = AttachedDisk(spec=XVDA, source=LocalDisk(path="/d", format=DiskFormat.QCOW2, block=True))
    words = argv(
        spec(kernel="", disks=(XVDA, drive), vifs=()),
        Attachments(disks=(local, AttachedDisk(spec=drive, source=None))),
    )
    device = {one["id"]: one for one in map(json.loads, options(words, "-device"))}
    assert device["disk-xvda"]["bootindex"] == 1
    assert (device["cd-hdc"]["driver"], device["cd-hdc"]["bus"], device["cd-hdc"]["bootindex"]) == (
        "ide-cd",
        "ide.0",
        2,
    )
    assert "drive" not in device["cd-hdc"]
    assert "sata=on" in options(words, "-machine")[0]
    node = json.loads(options(words, "-blockdev")[0])
    assert (node["driver"], node["file"]["driver"], node["file"]["cache"]) == ("qcow2", "host_device", {"direct": True})
    assert options(words, "-kernel") == []


@pytest.mark.parametrize(("block", "direct", "said"), [(b, d, s) for b in (0, 1) for d in (0, 1) for s in (0, 1)])
def test_the_hosts_cache_is_passed_by_where_that_goes(block: int, direct: int, said: int) -> None:
    source = LocalDisk(path="/d", format=DiskFormat.RAW, block=bool(block), direct=bool(direct))
    node = devices.blockdev(AttachedDisk(spec=replace(XVDA, direct_io_safe=bool(said)), source=source))
    assert node is not None
    assert node["file"]["cache"]["direct"] is bool(block or direct or said)


def test_every_local_disk_that_the_domain_writes_is_written_out_during_a_copy() -> None:
    def disk(vdev: str, *, block: bool = False, direct: bool = False, writes: bool = True) -> AttachedDisk:
        source = LocalDisk(path=f"/{vdev}", format=DiskFormat.RAW, block=block, direct=direct)
        return AttachedDisk(spec=DiskSpec(vdev=vdev, readwrite=writes), source=source)

    disks = (disk("a"), disk("b", block=True), disk("c", direct=True), disk("d", writes=False))
    lun = AttachedDisk(spec=XVDA, source=LUN)
    written = local_disks(Attachments(disks=(*disks, lun, AttachedDisk(spec=XVDA, source=None))))
    assert written == ["/a", "/b", "/c"], "past the page cache a drive still has its own"


def test_ids() -> None:
    assert disk_id(XVDA) == "disk-xvda"
    assert disk_id(replace(XVDA, cdrom=True)) == "cd-xvda"
    assert vif_id(VIF.spec) == "vif-00163e000001"
    e1000 = AttachedVif(spec=replace(VIF.spec, model="e1000", mtu=9000), device="t")
    assert devices.vif_device(e1000, 3, 2)["driver"] == "e1000"
    assert "host_mtu" not in devices.vif_device(e1000, 3, 2)
    assert "host_uso" not in devices.vif_device(e1000, 3, 2)
    assert devices.vif_device(replace(e1000, spec=replace(e1000.spec, model="")), 3, 2)["host_mtu"] == 9000
