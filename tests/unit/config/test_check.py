"""What may be a domain, whoever describes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from veery.config.check import check_disk, check_luggage, check_move, check_path, check_spec, check_vif
from veery.config.domain import parse_domain, without_secrets
from veery.errors import Refused
from veery.model.domain import DiskLimits, DiskSpec, DomainSpec, VifSpec

UUID = "6f3c1a52-9d7e-4b7c-8c55-0d5a4a3c1b2e"
DISK = DiskSpec(vdev="xvda", volume="web.1")
VIF = VifSpec(bridge="xenbr0", mac="00:16:3e:00:00:01", vifname="web0", rate="10Mb/s@50ms", mtu=1500)
GOOD = DomainSpec(
    name="web",
    uuid=UUID,
    kernel="/boot/vmlinuz",
    cmdline="root=/dev/xvda ro",
    disks=(DISK, DiskSpec(vdev="xvdb", target="/srv/a,b=c.img"), DiskSpec(vdev="xvdc", cdrom=True)),
    vifs=(VIF, VifSpec()),
    xl=(("cpu_weight", "512"), ("vfb", '[ "vnc=1,vncpasswd=secret" ]'), ("vncpasswd", '"secret"')),
)
HOSTILE = ("/etc/cron.d/x", "../../x", "a\nb = 1", "a,b=c", "a\x1b[31m", "a\x00b", "\udcff", "x" * 100_000, "-x y")
NUMBERS = (-1, -(1 << 70), 1 << 40, 1 << 70)


def test_a_domain_as_files_describe_them_is_good() -> None:
    assert check_spec(GOOD, settled=True) is GOOD


@pytest.mark.parametrize("field", ["name", "uuid"])
@pytest.mark.parametrize("value", [*HOSTILE, UUID.upper(), "{" + UUID + "}", UUID + "\n", "."])
def test_names_that_become_paths(field: str, value: str) -> None:
    with pytest.raises(Refused) as caught:
        check_spec(dataclasses.replace(GOOD, **{field: value}))  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_a_domain_that_has_run_has_a_uuid() -> None:
    new = dataclasses.replace(GOOD, uuid="")
    assert check_spec(new) is new
    with pytest.raises(Refused, match="not a UUID"):
        check_spec(new, settled=True)


@pytest.mark.parametrize("field", ["kernel", "ramdisk"])
@pytest.mark.parametrize("value", ["/boot/a\nb", "/boot/\x1b[2J", "/boot/\udcff", "/" + "a" * 5000])
def test_paths_hold_no_control_signs(field: str, value: str) -> None:
    with pytest.raises(Refused, match=field):
        check_spec(dataclasses.replace(GOOD, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["memory", "maxmem", "vcpus", "maxvcpus"])
@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_have_bounds(field: str, value: int) -> None:
    with pytest.raises(Refused, match=field):
        check_spec(dataclasses.replace(GOOD, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"disks": tuple(DiskSpec(vdev=f"d{number}p0", target="/x") for number in range(200))},
        {"vifs": (VifSpec(),) * 100},
        {"disks": (DISK, DISK)},
        {"disks": (DISK, DiskSpec(vdev="51712", target="/x"))},  # xvda by its number
        {"vifs": (VIF, VIF)},
        {"cmdline": "a\x00b"},
        {"cmdline": "a" * (1 << 20)},
        {"xl": (("kernel", '"/x"'),)},
        {"xl": (("nosuch", "1"),)},
        {"xl": (("cpu_weight", '1\nbootloader = "/bin/sh"'),)},
        {"xl": (("cpu_weight", '1; bootloader = "/bin/sh"'),)},
        {"xl": (("cpu_weight = 1; bootloader", '"/bin/sh"'),)},
        {"xl": (("cpu_weight", "1"), ("cpu_weight", "2"))},
        {"xl": (("vfb", "["),)},
    ],
)
def test_what_no_domain_file_could_give(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        check_spec(dataclasses.replace(GOOD, **changes))


TEXTS = [field.name for field in dataclasses.fields(DiskSpec) if field.type == "str"]


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", ["a,readwrite", "a\nb", "a\x1b[31m", "a\x00b", "\udcff", "x" * 100_000])
def test_texts_of_a_disk(field: str, value: str) -> None:
    base = DiskSpec(vdev="xvda", target="/srv/x.img") if field not in ("target", "volume") else DiskSpec(vdev="xvda")
    disk = dataclasses.replace(base, **{field: value})  # type: ignore[arg-type]
    if field == "target" and value == "a,readwrite":
        assert check_disk(disk) is disk  # the target stands last, and may hold commas
        return
    with pytest.raises(Refused):
        check_disk(disk)


@pytest.mark.parametrize("value", ["../xvda", "/dev/sda", "", "xvda.raw", "XVDA"])
def test_a_vdev_is_one_that_xen_numbers(value: str) -> None:
    with pytest.raises(Refused):
        check_disk(DiskSpec(vdev=value, target="/x"))


VIF_TEXTS = [field.name for field in dataclasses.fields(VifSpec) if field.type == "str"]


@pytest.mark.parametrize("field", VIF_TEXTS)
@pytest.mark.parametrize("value", ["a,script=x", "a\nb", "a\x1b[31m", "a\x00b", "\udcff", "x" * 100_000])
def test_texts_of_an_interface(field: str, value: str) -> None:
    with pytest.raises(Refused):
        check_vif(dataclasses.replace(VifSpec(), **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "vif",
    [
        VifSpec(mac="00-16-3E-00-00-01"),
        VifSpec(mac="01:16:3e:00:00:01"),
        VifSpec(bridge="../net"),
        VifSpec(bridge="-netns"),
        VifSpec(vifname="."),
        VifSpec(vifname="sixteen-letters-"),
        VifSpec(mtu=-1),
        VifSpec(mtu=1 << 40),
        VifSpec(devid=-5),
    ],
)
def test_interfaces_that_are_none(vif: VifSpec) -> None:
    with pytest.raises(Refused):
        check_vif(vif)


@pytest.mark.parametrize(
    "luggage",
    [
        b'{"machine":"pc-q35-9.0,kernel-irqchip=off"}',
        b'{"machine":"none -device x"}',
        b'{"cpu":"qemu64,+pni -device x"}',
        b'{"cpu":"qemu64,,x"}',
        b'{"cpu":7}',
        b'{"memory":-1}',
        b'{"ports":1000000000}',
        b'{"slots":{"disk\\u0000":1}}',
        b'{"started":1e999}',
        b"\xff",
        b"[" * 100_000,
        b"{" + b" " * (1 << 20) + b"}",
    ],
)
def test_luggage_adds_no_option(luggage: bytes) -> None:
    with pytest.raises(Refused):
        check_luggage(luggage)


def test_luggage_of_drivers() -> None:
    check_luggage(
        b'{"machine":"pc-q35-9.0","cpu":"qemu64,+pni,+sse4.1","memory":512,"ports":8,"slots":{"disk-xvda":0}}'
    )
    check_luggage(b'{"machine":"pc-q35-9.0","cpu":"host,migratable=on","processor":[255,4294967295],"xen":"4.17"}')
    check_luggage(b"null")


@pytest.mark.parametrize("value", [*HOSTILE, "", "A1", "a.b"])
def test_ids_of_moves(value: str) -> None:
    with pytest.raises(Refused):
        check_move(value)


@pytest.mark.parametrize("value", ["", "srv", "../srv", "/srv/../etc", "/srv\n", "/" + "x" * 5000])
def test_absolute_paths(value: str) -> None:
    with pytest.raises(Refused):
        check_path("the folder", value)


@pytest.mark.parametrize(
    "limits",
    [
        DiskLimits(bps=-1),
        DiskLimits(bps=4095),
        DiskLimits(iops=10**15 + 1),
        DiskLimits(iops_wr=1 << 70),
        DiskLimits(bps=8192, bps_wr=8192),
    ],
)
def test_limits_of_a_disk(limits: DiskLimits) -> None:
    check_disk(DiskSpec(vdev="xvda", volume="v", limits=DiskLimits(bps=4096, iops=1)))
    with pytest.raises(Refused):
        check_disk(DiskSpec(vdev="xvda", volume="v", limits=limits))
    with pytest.raises(Refused):
        check_disk(DiskSpec(vdev="hdc", cdrom=True, limits=DiskLimits(bps=4096)))


def test_the_file_parser_asks_the_same_check() -> None:
    with pytest.raises(Refused, match=r"^web:1:1: ramdisk cannot contain"):
        parse_domain('name="web"\nkernel="/k"\nmemory=64\nramdisk="/x\\x1b"\n', "web")


def test_passwords_are_not_shown() -> None:
    shown = without_secrets(GOOD)
    assert "secret" not in repr(shown)
    assert dict(shown.xl) == {"cpu_weight": "512", "vfb": '[ "vnc=1,vncpasswd=" ]'}
    assert dataclasses.replace(shown, xl=GOOD.xl) == GOOD
