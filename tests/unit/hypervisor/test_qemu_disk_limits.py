"""What QEMU is told of a disk's limits."""

from __future__ import annotations

from veery.hypervisor.qemu.disklimits import throttle
from veery.hypervisor.xen import config
from veery.model.domain import DiskFormat, DiskLimits, DiskSpec
from veery.model.volume import AttachedDisk, LocalDisk

XVDA = DiskSpec(vdev="xvda", target="/srv/a.img", limits=DiskLimits(bps=20 << 20, iops_rd=500))


def test_all_six_values_are_told() -> None:
    assert throttle(XVDA) == {
        "id": "/machine/peripheral/disk-xvda/virtio-backend",
        "bps": 20 << 20,
        "bps_rd": 0,
        "bps_wr": 0,
        "iops": 0,
        "iops_rd": 500,
        "iops_wr": 0,
    }


def test_a_disk_without_limits_is_not_spoken_of() -> None:
    assert throttle(DiskSpec(vdev="xvda", target="/srv/a.img")) is None


def test_xl_is_told_of_none() -> None:
    source = LocalDisk(path="/srv/a.img", format=DiskFormat.RAW, block=False)
    text = config.disk(AttachedDisk(spec=XVDA, source=source), {}, {})
    assert "target=/srv/a.img" in text
    assert "ps" not in text.replace("/srv/a.img", "")
