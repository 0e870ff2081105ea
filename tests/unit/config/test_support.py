"""What each driver does with each key: the tables are complete, the manual has them, nothing is dropped in silence."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from veery.config import disk as disk_config
from veery.config import vif as vif_config
from veery.config.domain import parse_domain
from veery.config.keys import KEYS, Use
from veery.config.support import (
    DISK_KEYS,
    VIF_KEYS,
    Does,
    check,
    domain_key,
    left_out,
    left_out_of_disk,
    sentence,
    table,
)
from veery.errors import Refused
from veery.model.domain import DiskLimits, DiskSpec, DomainSpec, OnEvent, VifSpec

MANUAL = Path(__file__).parents[3] / "docs" / "domain-files.md"
SPEC = DomainSpec(name="a", kernel="/k")
ASKED_OF_DISKS = {
    "backend": "storage",
    "specification": "xen",
    "trusted": False,
}
ASKED_OF_VIFS = {
    "script": "vif-route",
    "backend": "net",
    "model": "ne2k_pci",
    "gatewaydev": "eth0",
    "trusted": True,
    "devid": 3,
}


def test_the_manual_has_the_tables() -> None:
    assert table() in MANUAL.read_text(), "run: .venv/bin/python -m veery.config.support, and put it there"


def test_every_key_that_a_reader_knows_is_in_a_table() -> None:
    flags = {"untrusted": "trusted", "no-discard": "discard", "cdrom": "devtype"}
    assert {flags.get(name, name) for name in disk_config.KEY_NAMES} | {"colo"} == set(DISK_KEYS)
    assert {flags.get(name, name) for name in vif_config.KEY_NAMES} | {"colo"} == set(VIF_KEYS)
    assert all(domain_key(name) for name in KEYS)


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.use is Use.XEN and name != "viridian"])
def test_what_is_kept_for_xen_is_warned_of_elsewhere(name: str) -> None:
    spec = replace(SPEC, xl=((name, "1"),))
    assert left_out(spec, "qemu") == (name,)
    assert left_out(spec, "xen") == ()
    assert domain_key(name).qemu is Does.WARNED


def test_hyperv_is_for_both() -> None:
    assert left_out(replace(SPEC, xl=(("viridian", "1"),)), "qemu") == ()
    assert (domain_key("viridian").qemu, domain_key("viridian").xen) == (Does.CARRIED_OUT, Does.HANDED_ON)


@pytest.mark.parametrize(("key", "value"), [("vnc", "0"), ("sdl", "0"), ("pool", '""'), ("vfb", "[ ]")])
def test_a_key_that_asks_for_nothing_is_not_warned_of(key: str, value: str) -> None:
    assert left_out(replace(SPEC, xl=((key, value),)), "qemu") == ()


@pytest.mark.parametrize(("field", "value"), ASKED_OF_DISKS.items())
def test_a_disk_field_that_qemu_leaves_out_is_named(field: str, value: object) -> None:
    spec = replace(SPEC, disks=(replace(DiskSpec(vdev="xvda"), **{field: value}),))  # type: ignore[arg-type]
    assert len(left_out(spec, "qemu")) == 1
    assert left_out(spec, "qemu")[0].startswith("disk xvda ")
    assert left_out(spec, "xen") == ()


@pytest.mark.parametrize(("field", "value"), ASKED_OF_VIFS.items())
def test_an_interface_field_that_qemu_leaves_out_is_named(field: str, value: object) -> None:
    spec = replace(SPEC, vifs=(VifSpec(), replace(VifSpec(), **{field: value})))  # type: ignore[arg-type]
    assert len(left_out(spec, "qemu")) == 1
    assert left_out(spec, "qemu")[0].startswith("vif 1 ")
    assert left_out(spec, "xen") == ()


def test_every_field_is_carried_out_or_named() -> None:
    carried = ["vdev", "target", "volume", "format", "readwrite", "cdrom", "removable", "backendtype", "script"]
    carried += ["direct_io_safe", "discard"]
    assert {field.name for field in fields(DiskSpec)} == {*carried, "limits", *ASKED_OF_DISKS}
    carried = ["bridge", "mac", "vifname", "ip", "type", "rate", "mtu", "filtered"]
    assert {field.name for field in fields(VifSpec)} == {*carried, *ASKED_OF_VIFS}


def test_limits_of_disks_are_left_out_by_xl_alone() -> None:
    spec = replace(SPEC, disks=(DiskSpec(vdev="xvda", volume="v", limits=DiskLimits(bps=4096, iops_wr=7)),))
    assert left_out(spec, "qemu") == ()
    assert left_out(spec, "xen") == ("disk xvda bps=4096", "disk xvda iops_wr=7")
    assert left_out_of_disk(spec.disks[0], "xen") == ("bps=4096", "iops_wr=7")


def test_the_node_itself_as_backend_is_not_warned_of() -> None:
    spec = replace(SPEC, disks=(DiskSpec(vdev="xvda", backend="0"),), vifs=(VifSpec(backend="Domain-0"),))
    assert left_out(spec, "qemu") == ()


def test_one_line_names_all() -> None:
    text = "name='a'\nmemory=64\nkernel='/k'\ncpus='0'\nvnc=1\non_crash='coredump-destroy'\nvif=['gatewaydev=eth0']"
    spec = parse_domain(text, "f").spec
    assert spec.on_crash is OnEvent.COREDUMP_DESTROY
    line = "the qemu driver does not carry out: cpus, vnc, on_crash=coredump-destroy, vif 0 gatewaydev=eth0"
    assert sentence(left_out(spec, "qemu"), "qemu") == line
    assert sentence((), "qemu") == ""


def test_a_bootloader_is_xls() -> None:
    spec = parse_domain("name='a'\nmemory=64\nbootloader='pygrub'\nbootloader_args=['-q']", "f").spec
    check(spec, "xen")
    assert dict(spec.xl) == {"bootloader": '"pygrub"', "bootloader_args": '[ "-q" ]'}
    with pytest.raises(Refused) as caught:
        check(spec, "qemu")
    assert "bootloader= is not supported here" in caught.value.message
    assert "type='hvm'" in caught.value.hint
    assert "kernel=" in caught.value.hint


def test_a_script_of_a_volume_is_refused_too() -> None:
    spec = replace(SPEC, disks=(DiskSpec(vdev="xvda", volume="v", script="block-rbd"),))
    with pytest.raises(Refused, match="does not run script=block-rbd"):
        check(spec, "qemu")
    check(spec, "xen")
