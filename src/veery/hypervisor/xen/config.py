"""The domain file for xl: the domain's own, with volumes replaced by their devices on this node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from veery.config import disk as disk_config
from veery.config import vif as vif_config
from veery.config.adjust import fitting
from veery.config.domain import render_domain
from veery.errors import Refused
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, DomainType, OnEvent
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, IscsiLun, LocalDisk

Devices = Mapping[str, Path]
"""The kernel's device of each LUN under a disk, by the disk's vdev."""


def check(spec: DomainSpec) -> None:
    """Raise Refused for a domain that cannot run here, before anything is begun."""
    if not spec.uuid:
        raise Refused(f"{spec.name} has no UUID", hint="its record in the store must give it one")
    if spec.type is DomainType.HVM:
        raise Refused(
            f"{spec.name}: veery runs no hvm domains on Xen, because a move cannot carry their device model",
            hint='write type = "pvh", or "pv"',
        )
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        if path and not Path(path).is_file():
            raise Refused(f"{spec.name}: {what} {path} does not exist", hint="each node needs its own copy of it")
    for vif in spec.vifs:
        if not vif.mac:
            raise Refused(f"{spec.name}: an interface has no MAC", hint="its record in the store must give it one")


def text(
    spec: DomainSpec, attachments: Attachments, devices: Devices, scripts: Mapping[str, str], *, cpus: int = 0
) -> str:
    """Return the file for a host with `cpus` processors (0: not known). `scripts` are veery's hotplug scripts
    (scripts.install) for devices without one of their own. on_* say preserve, because the node acts on an end (xl's own
    watcher is not run: `create -e`). libxl cannot preserve a domain after a soft reset."""
    keep = OnEvent.PRESERVE
    plain = replace(
        fitting(spec, cpus) if cpus else spec,
        disks=tuple(_disk(disk, devices, scripts) for disk in attachments.disks),
        vifs=tuple(replace(vif.spec, script=vif.spec.script or scripts.get("nic", "")) for vif in attachments.vifs),
        on_poweroff=keep,
        on_reboot=keep,
        on_crash=keep,
        on_watchdog=keep,
        on_soft_reset=keep,
    )
    return render_domain(plain)


def disk(attached: AttachedDisk, devices: Devices, scripts: Mapping[str, str]) -> str:
    """Return one disk in the same form, for `xl block-attach`."""
    return disk_config.render_disk(_disk(attached, devices, scripts))


def vif(attached: AttachedVif, scripts: Mapping[str, str]) -> tuple[str, ...]:
    """Return an interface's words for `xl network-attach`."""
    spec = replace(attached.spec, script=attached.spec.script or scripts.get("nic", ""))
    return tuple(vif_config.render_vif(spec).split(","))


def _disk(attached: AttachedDisk, devices: Devices, scripts: Mapping[str, str]) -> DiskSpec:
    source, spec = attached.source, replace(attached.spec, limits=None)  # xl has no limits: support.py warns
    if isinstance(source, IscsiLun):
        target, script = str(devices[spec.vdev]), spec.script or scripts.get("disk", "")
        return replace(spec, volume="", format=DiskFormat.RAW, backendtype="phy", target=target, script=script)
    if isinstance(source, LocalDisk):
        # blkback serves devices, and files through a loop device that the script makes; QEMU in dom0 is only needed
        # for formats
        raw = source.format is DiskFormat.RAW
        backend = spec.backendtype or ("phy" if raw else "")
        return replace(spec, format=source.format, backendtype=backend, target=source.path)
    return spec
