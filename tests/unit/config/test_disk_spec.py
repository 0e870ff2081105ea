"""Disk specs become DiskSpecs, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.config.disk import device_number, parse_disk, render_disk
from veery.errors import Refused
from veery.model.domain import DiskFormat, DiskLimits, DiskSpec


@pytest.mark.parametrize(
    ("spec", "disk"),
    [
        ("file:/scsistore/busybox.img,xvda,w", DiskSpec(vdev="xvda", target="/scsistore/busybox.img")),
        ("phy:/dev/vg/lv,xvdb,r", DiskSpec(vdev="xvdb", target="/dev/vg/lv", readwrite=False)),
        ("/a.qcow2,qcow2,hda,ro", DiskSpec(vdev="hda", target="/a.qcow2", format=DiskFormat.QCOW2, readwrite=False)),
        ("format=raw, vdev=sda1, access=rw, target=/a,b=c:d", DiskSpec(vdev="sda1", target="/a,b=c:d")),
        (
            "vdev=xvda,backendtype=qdisk,backend=stor,script=block-x,discard,direct-io-safe,specification=virtio,"
            "untrusted,target=t",
            DiskSpec(
                vdev="xvda",
                target="t",
                backendtype="qdisk",
                backend="stor",
                script="block-x",
                discard=True,
                direct_io_safe=True,
                specification="virtio",
                trusted=False,
            ),
        ),
        (
            ",,hdc:cdrom,r",
            DiskSpec(vdev="hdc", format=DiskFormat.EMPTY, readwrite=False, cdrom=True, removable=True),
        ),
        ("vdev=xvda,volume=busybox", DiskSpec(vdev="xvda", volume="busybox")),
        (
            "vdev=xvda,bps=20M,iops=500,volume=v",
            DiskSpec(vdev="xvda", volume="v", limits=DiskLimits(bps=20 << 20, iops=500)),
        ),
        (
            "/a,raw,xvda,w,bps_rd=4096,bps_wr=8K,iops_rd=1,iops_wr=1000000000000000",
            DiskSpec(vdev="xvda", target="/a", limits=DiskLimits(bps_rd=4096, bps_wr=8192, iops_rd=1, iops_wr=10**15)),
        ),
        ("volume=busybox,xvda,w", DiskSpec(vdev="xvda", volume="busybox")),
        (",raw,xvda,r,volume=busybox", DiskSpec(vdev="xvda", volume="busybox", readwrite=False)),
        (
            "volume=iso,vdev=hdc,cdrom",
            DiskSpec(vdev="hdc", volume="iso", readwrite=False, cdrom=True, removable=True),
        ),
    ],
)
def test_forms(spec: str, disk: DiskSpec) -> None:
    assert parse_disk(spec) == disk
    assert parse_disk(render_disk(disk)) == disk


def test_several_components_are_one_disk() -> None:
    assert parse_disk("volume=v", "vdev=xvdb", "access=ro") == DiskSpec(vdev="xvdb", volume="v", readwrite=False)


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("/a,raw", "no vdev specified", "vdev=xvda"),
        ("vdev=xvda", "no target specified", ""),
        ("/a,qcow3,xvda", "unknown value for format: 'qcow3'", "qcow2"),
        ("/a,raw,xvda,x", "unknown value for access: 'x'", "r or w"),
        ("/a,raw,xvda,w,more", "too many positional", "key=value"),
        ("vdev=xvda,bus=ide,target=/a", "unknown parameter: 'bus=i'", "specification"),
        ("/a=b,raw,xvda", "bad disk syntax", "target="),
        ("rbd:pool/x,xvda,w", "unknown value for format: 'xvda'", "raw"),
        ("md:/x,raw,xvda", "unknown deprecated disk prefix: 'md:'", "target="),
        ("/a,raw,sdz", "'sdz' is not a disk name", "xvda"),
        ("phy:,xvda,w", "disk xvda has no target", "volume=NAME"),
        ("volume=v,vdev=xvda,target=/a", "exclude each other", "not both"),
        ("/a,raw,xvda,w,volume=v", "exclude each other", "not both"),
        ("volume=v,vdev=xvda,format=qcow2", "format is raw", ""),
        ("volume=,vdev=xvda", "volume without a name", "volume list"),
        ("volume=v,vdev=xvda,script=s", "excludes script", ""),
        ("volume=v,vdev=xvda,bps=100", "unfit value for bps: '100'", "bytes per second, at least 4096"),
        ("volume=v,vdev=xvda,bps=", "unfit value for bps", "bps=20M"),
        ("volume=v,vdev=xvda,bps=-1", "unfit value for bps", "bps=20M"),
        ("volume=v,vdev=xvda,bps=1T", "unfit value for bps", "with K, M or G"),
        ("volume=v,vdev=xvda,bps=1000000000000001", "unfit value for bps", ""),
        ("volume=v,vdev=xvda,iops=1K", "unfit value for iops", "operations per second"),
        ("volume=v,vdev=xvda,iops=0", "unfit value for iops", ""),
        ("volume=v,vdev=xvda,iops=5,iops=6", "iops respecified", ""),
        ("volume=v,vdev=xvda,iops=5,iops_wr=6", "excludes one of either", "iops"),
        ("volume=v,vdev=xvda,bps=8K,bps_rd=8K", "excludes one of either", "bps_rd="),
        ("volume=v,vdev=hdc,cdrom,iops=5", "a CD-ROM drive has no limits", "for disks"),
        ("colo,vdev=xvda,target=/a", "COLO", "remove"),
        ("/a\tb,raw,xvda", "cannot contain '\\t'", "remove"),
        ("", "no vdev specified", ""),
    ],
)
def test_refusals(spec: str, message: str, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_disk(spec)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 51712),
        ("xvdb2", 51730),
        ("d1p2", 51730),
        ("d0", 51712),
        ("xvdq", 268439552),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),
        ("hda", 768),
        ("hdc1", 5633),
        ("sdb3", 2067),
        ("768", 768),
        ("0x300", 768),
        ("hde", None),
        ("sdq", None),
        ("xvda0", None),
        ("xvda256", None),
        ("vda", None),
        ("", None),
        ("4294967296", None),
        ("08", None),
    ],
)
def test_device_numbers(vdev: str, number: int | None) -> None:
    """The examples of xen-vbd-interface(7)."""
    assert device_number(vdev) == number


words = st.text("abc/._-:@ =é", min_size=1, max_size=12).filter(lambda text: text == text.strip(" "))
names = st.text("abcxyz09-_.", min_size=1, max_size=12)
disks = st.builds(
    DiskSpec,
    vdev=st.sampled_from(["xvda", "xvdb1", "hdc", "sda", "51712"]),
    target=st.text("abc/,=:;é \"'", min_size=1, max_size=20),
    format=st.sampled_from([DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.VHD, DiskFormat.QED]),
    readwrite=st.booleans(),
    backend=st.just("") | names,
    backendtype=st.sampled_from(["", "phy", "tap", "qdisk", "standalone"]),
    script=st.just("") | words,
    direct_io_safe=st.booleans(),
    limits=st.none()
    | st.builds(DiskLimits, bps=st.integers(4096, 10**15), iops_rd=st.integers(0, 10**15), iops_wr=st.just(1)),
    discard=st.sampled_from([None, True, False]),
    specification=st.sampled_from(["", "xen", "virtio"]),
    trusted=st.sampled_from([None, True, False]),
) | st.builds(DiskSpec, vdev=st.just("xvda"), volume=names, readwrite=st.booleans(), discard=st.booleans())


@given(disks)
def test_render_is_read_back(disk: DiskSpec) -> None:
    assert parse_disk(render_disk(disk)) == disk


pieces = st.sampled_from(
    ["vdev=", "xvda", ",", ":", "=", "volume=", "target=", "file:", "raw", "cdrom", "access=", "/a", "\n", "é"]
)


@given(st.text() | st.lists(pieces, max_size=10).map("".join))
def test_any_text_is_a_disk_or_refused(spec: str) -> None:
    try:
        disk = parse_disk(spec)
    except Refused as error:
        assert error.hint
    else:
        assert parse_disk(render_disk(disk)) == disk
