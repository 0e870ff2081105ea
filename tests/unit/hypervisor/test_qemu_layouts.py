"""QEMU's command line, whole, for each layout and accelerator. A domain that runs, or is saved, by a layout must find
the same line on each node and with each later version of veery: a golden file of a layout in use never changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veery.errors import Refused
from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.argv import Wiring, build_argv
from veery.hypervisor.qemu.build import CPU, HYPERV, LAYOUTS, Build, bits_for, lay_out
from veery.model import codec
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, VifSpec
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, IscsiLun, LocalDisk

GOLDEN = Path(__file__).parents[2] / "data" / "qemu" / "argv"
LUN = IscsiLun(
    portal="172.16.31.3:3260", iqn="iqn.2026-11.lab:web", lun=1, initiator="iqn.i", user="u", password="s3cret"
)
BLOCK = LocalDisk(path="/dev/vg/data", format=DiskFormat.RAW, block=True)
VOLUME, DATA = DiskSpec(vdev="xvda", volume="web"), DiskSpec(vdev="xvdb", target="/dev/vg/data")
DRIVE = DiskSpec(vdev="hdc", cdrom=True, readwrite=False)
VIFS = (
    VifSpec(bridge="xenbr0", mac="00:16:3e:00:00:01", mtu=9000),
    VifSpec(bridge="xenbr0", mac="00:16:3e:00:00:02", model="e1000"),
)
SPEC = DomainSpec(
    name="web",
    uuid="7c2f4b1e-0000-4000-8000-000000000001",
    kernel="/boot/vmlinuz",
    ramdisk="/boot/initrd",
    cmdline="root=/dev/xvda",
    memory=512,
    maxmem=1024,
    vcpus=2,
    maxvcpus=4,
    disks=(VOLUME, DATA, DRIVE),
    vifs=VIFS,
)
ATTACHED = Attachments(
    disks=(
        AttachedDisk(spec=VOLUME, source=LUN),
        AttachedDisk(spec=DATA, source=BLOCK),
        AttachedDisk(spec=DRIVE, source=None),
    ),
    vifs=tuple(AttachedVif(spec=vif, device=f"vif1.{number}") for number, vif in enumerate(VIFS)),
)
WIRING = Wiring(
    monitors=(5, 6), console=7, console_log=Path("/run/console.log"), secrets={"secret-disk-xvda": 9}, agent=8
)


def built(layout: int, accel: str, **changes: Any) -> Build:
    spec = replace(SPEC, **changes)
    return lay_out(
        spec, machine="pc-q35-9.0", accel=accel, started=1.0, vendor="GenuineIntel", phys_bits=46, layout=layout
    )


def line(layout: int, accel: str, **changes: Any) -> str:
    words = build_argv("qemu", SPEC, ATTACHED, built(layout, accel, **changes), WIRING, incoming=True)
    return "\n".join(words) + "\n"


@pytest.mark.parametrize("accel", ["tcg", "kvm"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_no_byte_of_a_layout_changes(layout: int, accel: str) -> None:
    assert line(layout, accel) == (GOLDEN / f"layout-{layout}-{accel}.txt").read_text()


def test_no_byte_of_a_windows_guest_changes() -> None:
    windows = line(3, "kvm", xl=(("viridian", "1"),))
    assert windows == (GOLDEN / "layout-3-kvm-viridian.txt").read_text()
    assert ",".join(HYPERV) in windows


@pytest.mark.parametrize(
    ("layout", "accel", "value", "wanted"),
    [
        (3, "kvm", "1", True),
        (3, "kvm", "[ 'base', 'freq' ]", True),
        (3, "kvm", "0", False),
        (3, "kvm", "[ ]", False),
        (3, "tcg", "1", False),
        (2, "kvm", "1", False),
    ],
)
def test_hyperv_is_for_those_who_ask_under_kvm(layout: int, accel: str, value: str, wanted: bool) -> None:
    plan = built(layout, accel, xl=(("viridian", value),))
    assert plan.viridian is wanted
    assert ("hv-relaxed" in plan.model) is wanted


def test_only_layout_3_pins_the_width_of_physical_addresses() -> None:
    assert built(3, "kvm").model == f"{CPU},vendor=GenuineIntel,phys-bits=40,enforce"
    for layout, accel in ((1, "kvm"), (2, "kvm"), (3, "tcg")):
        assert "phys-bits" not in built(layout, accel).model
        assert built(layout, accel).phys_bits == 0


@pytest.mark.parametrize(
    ("memory", "given", "wanted"),
    [
        (512, 0, 0),  # no node tells
        (512, 39, 39),  # a desktop's processor
        (512, 46, 40),  # QEMU's own, which fits into more
        (960 << 10, 46, 40),
        (961 << 10, 46, 46),
        (4 << 20, 52, 52),
    ],
)
def test_the_width_is_qemus_own_while_that_is_enough(memory: int, given: int, wanted: int) -> None:
    plan = lay_out(
        replace(SPEC, memory=memory, maxmem=0), machine="m", accel="kvm", started=1.0, vendor="v", phys_bits=given
    )
    assert plan.phys_bits == wanted


def test_memory_that_no_processor_can_address_is_refused() -> None:
    assert bits_for(960 << 10) == 40
    assert bits_for((960 << 10) + 1) == 41
    with pytest.raises(Refused, match="do not fit into the 39 bits"):
        lay_out(replace(SPEC, memory=500 << 10, maxmem=0), machine="m", accel="kvm", started=1.0, phys_bits=39)


def test_a_record_without_a_layout_is_one_of_layout_1() -> None:
    old = codec.decode(b'{"accel": "kvm", "memory": 512, "ports": 8}', Build)
    assert (old.layout, old.vendor, old.model) == (1, "", CPU)
    new = lay_out(SPEC, machine="pc-q35-9.0", accel="kvm", started=1.0)
    assert new.layout == 3
    assert codec.decode(codec.encode(new), Build) == new


def test_only_layout_2_pins_the_vendor_and_insists_on_the_processor() -> None:
    assert built(1, "kvm").model == CPU
    assert built(2, "kvm").model == f"{CPU},vendor=GenuineIntel,enforce"
    assert built(2, "tcg").model == f"{CPU},enforce"
    assert built(2, "tcg").vendor == "", "TCG emulates its own, whatever the machine is"


def test_a_domain_of_an_older_veery_has_the_vendor_of_the_machine_it_runs_on() -> None:
    old = Build(accel="kvm", memory=512, ports=8)
    assert old.seen_on("AuthenticAMD").vendor == "AuthenticAMD"
    assert old.seen_on("AuthenticAMD").model == CPU, "its command line is as it was"
    assert built(2, "kvm").seen_on("AuthenticAMD").vendor == "GenuineIntel"
    assert replace(old, accel="tcg").seen_on("AuthenticAMD").vendor == ""


def test_what_differs_between_kernels_is_off_in_layout_2() -> None:
    vif = ATTACHED.vifs[0]
    device = devices.vif_device(vif, 3, 2)
    assert [device[name] for name in ("host_uso", "guest_uso4", "guest_uso6", "queue_reset")] == [False] * 4
    assert set(devices.vif_device(vif, 3, 1)) < set(device)
