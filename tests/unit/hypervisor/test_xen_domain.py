"""Domain files as xl is given them, and what stands in the way of a domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from veery.config.domain import parse_domain
from veery.errors import Refused
from veery.hypervisor.xen import config, machine, parse
from veery.hypervisor.xen.registry import numbered
from veery.hypervisor.xen.statedir import Build, Home, Record, Stage
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, DomainType, OnEvent, VifSpec
from veery.model.plan import Obstacle
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, IscsiLun, LocalDisk

SEED = Path(__file__).parents[2] / "data/xl/busybox"
UUID = "6f3c1a52-9d7e-4b7c-8c55-0d5a4a3c1b2e"
LUN = IscsiLun(
    portal="172.16.31.3:3260", iqn="iqn.2015-02.com.stu31:v1", lun=1, initiator="iqn.x:test1", user="u", password="p"
)
INFO = parse.Info(
    version="4.17.5",
    major=4,
    minor=17,
    capabilities=("xen-3.0-x86_64", "hvm-3.0-x86_64"),
    virtual=("pv", "hvm", "hap", "shadow"),
    processor=(0xFF, 0x1),
    cpus=1,
    cpu_mhz=2100.0,
    memory_total=1023,
    memory_free=600,
    rows={},
)


def seed() -> DomainSpec:
    spec = parse_domain(SEED.read_text(), "busybox").spec
    vifs = tuple(replace(vif, mac="00:16:3e:28:bb:f6") for vif in spec.vifs)
    return replace(spec, uuid=UUID, vifs=vifs)


def attached(spec: DomainSpec, source: IscsiLun | LocalDisk) -> Attachments:
    return Attachments(
        disks=tuple(AttachedDisk(spec=disk, source=source) for disk in spec.disks),
        vifs=tuple(AttachedVif(spec=vif, device="") for vif in spec.vifs),
    )


def test_the_seeds_file_for_xl() -> None:
    spec = seed()
    local = LocalDisk(path="/scsistore/busybox.img", format=DiskFormat.RAW, block=False)
    again = parse_domain(config.text(spec, attached(spec, local), {}, {}), "for xl").spec
    assert (again.name, again.uuid, again.type, again.memory) == ("busybox", UUID, DomainType.PV, 512)
    assert (again.kernel, again.ramdisk, again.cmdline) == (spec.kernel, spec.ramdisk, spec.cmdline)
    assert again.cmdline == "root=/dev/xvda ro selinux=0 init=/bin/sh"
    assert [(disk.vdev, disk.target, disk.backendtype) for disk in again.disks] == [
        ("xvda", "/scsistore/busybox.img", "phy")
    ]
    assert [(vif.bridge, vif.mac) for vif in again.vifs] == [("xenbr0", "00:16:3e:28:bb:f6")]
    assert {again.on_poweroff, again.on_reboot, again.on_crash} == {OnEvent.PRESERVE}  # the node acts on ends


def test_a_volume_is_the_device_that_the_kernel_has_it_under() -> None:
    spec = replace(seed(), disks=(DiskSpec(vdev="xvda", volume="v1"),))
    text = config.text(spec, attached(spec, LUN), {"xvda": Path("/dev/veery/v1")}, {})
    assert "volume=" not in text
    (disk,) = parse_domain(text, "for xl").spec.disks
    assert (disk.target, disk.backendtype, disk.format) == ("/dev/veery/v1", "phy", DiskFormat.RAW)


def test_luns_and_interfaces_get_our_hotplug_scripts() -> None:
    disks = (DiskSpec(vdev="xvda", volume="v1"), DiskSpec(vdev="xvdb", volume="v2", script="block-own"))
    vifs = (VifSpec(bridge="xenbr0", mac="00:16:3e:00:00:01"), VifSpec(mac="00:16:3e:00:00:02", script="vif-route"))
    spec = replace(seed(), disks=disks, vifs=vifs)
    devices = {"xvda": Path("/dev/veery/v1"), "xvdb": Path("/dev/veery/v2")}
    text = config.text(spec, attached(spec, LUN), devices, {"disk": "/x/veery-block", "nic": "/x/veery-vif"})
    made = parse_domain(text, "for xl").spec
    assert [disk.script for disk in made.disks] == ["/x/veery-block", "block-own"]
    assert [vif.script for vif in made.vifs] == ["/x/veery-vif", "vif-route"]


def test_formats_are_left_to_dom0s_qemu() -> None:
    spec = seed()
    text = config.text(spec, attached(spec, LocalDisk(path="/a.qcow2", format=DiskFormat.QCOW2, block=False)), {}, {})
    (disk,) = parse_domain(text, "for xl").spec.disks
    assert (disk.format, disk.backendtype) == (DiskFormat.QCOW2, "")


def test_interfaces_are_named_as_xen_names_them() -> None:
    vifs = tuple(AttachedVif(spec=spec, device="") for spec in (VifSpec(), VifSpec(devid=4), VifSpec(vifname="web")))
    assert [vif.device for vif in numbered(Attachments(vifs=vifs), 7).vifs] == ["vif7.0", "vif7.4", "web"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": DomainType.HVM}, "hvm is not run on Xen here, because"),
        ({"kernel": "/missing/vmlinuz"}, "kernel /missing/vmlinuz is not there"),
        ({"uuid": ""}, "no UUID"),
    ],
)
def test_what_cannot_be_here(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()
    spec = replace(seed(), kernel=str(tmp_path / "vmlinuz"), ramdisk="")
    config.check(spec)
    with pytest.raises(Refused, match=said):
        config.check(replace(spec, **changes))


def test_a_move_that_nothing_hinders() -> None:
    spec = replace(seed(), kernel="", ramdisk="")
    assert machine.obstacles(spec, machine.build(spec, INFO, 1.0), INFO) == ()


@pytest.mark.parametrize(
    ("plan", "info", "kind", "said"),
    [
        ({"dirty_log": False}, {}, Obstacle.VERSION, "cannot move PV domains live"),
        ({"dirty_log": False, "type": DomainType.PVH}, {}, None, ""),
        ({"xen": "4.18"}, {}, Obstacle.VERSION, "Xen 4.17 is older than 4.18"),
        ({"xen": "4.9"}, {}, None, ""),
        ({"processor": (0x1FF, 0x1)}, {}, Obstacle.CPU, "0.8"),
        ({"type": DomainType.PVH}, {"capabilities": ("xen-3.0-x86_64",)}, Obstacle.DRIVER, "runs no pvh domains"),
        ({"memory": 590}, {}, Obstacle.MEMORY, "606 MiB"),
    ],
)
def test_what_hinders_a_move(
    plan: dict[str, object], info: dict[str, object], kind: Obstacle | None, said: str
) -> None:
    spec = replace(seed(), kernel="", ramdisk="")
    built: Build = replace(machine.build(spec, INFO, 1.0), **plan)  # type: ignore[arg-type]
    found = machine.obstacles(spec, built, replace(INFO, **info))  # type: ignore[arg-type]
    assert [blocker.kind for blocker in found] == ([kind] if kind else [])
    assert all(said in blocker.reason and blocker.hint for blocker in found)


def test_a_start_without_memory_or_type() -> None:
    machine.refuse_unfit(seed(), INFO)
    with pytest.raises(Refused, match="not enough memory: 616 MiB"):
        machine.refuse_unfit(replace(seed(), memory=600), INFO)
    with pytest.raises(Refused, match="this Xen runs no pvh domains"):
        machine.refuse_unfit(replace(seed(), type=DomainType.PVH), replace(INFO, capabilities=("xen-3.0-x86_64",)))
    with pytest.raises(Refused, match="too old"):
        machine.check(replace(INFO, minor=13))


def test_a_record_survives_a_restart(tmp_path: Path) -> None:
    spec = seed()
    local = LocalDisk(path="/dev/sdb", format=DiskFormat.RAW, block=True)
    for source in (LUN, local):
        attachments = replace(attached(spec, source), domid=3)
        record = Record(
            domid=3, spec=spec, attachments=attachments, build=machine.build(spec, INFO, 1.0), stage=Stage.RUNNING
        )
        home = Home(tmp_path / "domain")
        home.make(record, "name = 'x'\n", b"past")
        assert home.read() == record
        assert home.console_log.read_bytes() == b"past"
    home.remove()
    home.write(record)
    assert home.read() is None


def test_a_bootloader_is_handed_to_xl_as_it_stands() -> None:
    text = f"name='a'\nuuid='{UUID}'\nmemory=64\nbootloader='pygrub'\nbootloader_args=['-q']\nvnc=1\n"
    spec = parse_domain(text, "f").spec
    config.check(spec)
    lines = config.text(spec, Attachments(), {}, {}).splitlines()
    assert {'bootloader = "pygrub"', 'bootloader_args = [ "-q" ]', "vnc = 1"} <= set(lines)
    assert not any(line.startswith("kernel") for line in lines)
