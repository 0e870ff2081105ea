"""One device as QEMU wants it: the same dictionaries serve the command line (JSON) and QMP's hot-plug.

Options: qemu(1), docs/system/devices; QAPI's BlockdevOptions, NetdevTapOptions, SecretProperties."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from veery.errors import Refused
from veery.hypervisor.qemu.build import disk_id, vif_id
from veery.hypervisor.qemu.choice import Choice
from veery.model.domain import DiskFormat, DiskSpec
from veery.model.volume import AttachedDisk, AttachedVif, IscsiLun, LocalDisk

Options = dict[str, Any]
PLAIN = Choice()

_FORMATS = {
    DiskFormat.RAW: "raw",
    DiskFormat.QCOW: "qcow",
    DiskFormat.QCOW2: "qcow2",
    DiskFormat.VHD: "vpc",
    DiskFormat.QED: "qed",
}
_NICS = {"e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}


def secret_id(disk: AttachedDisk) -> str:
    """Return the id of the object that holds the disk's CHAP password."""
    return f"secret-{disk_id(disk.spec)}"


def secret(disk: AttachedDisk) -> str:
    """Return the disk's CHAP password, "" where it has none."""
    return disk.source.password if isinstance(disk.source, IscsiLun) else ""


def blockdev(disk: AttachedDisk, handed: str = "", choice: Choice = PLAIN) -> Options | None:
    """Return the block node that a disk's device reads and writes; None for an empty drive. `handed` is the name of a
    file or block device that veeryd has opened and passed to QEMU; `choice` is the node's.

    Raises Refused for a format that QEMU does not know."""
    source, spec = disk.source, disk.spec
    if source is None:
        return None
    common: Options = {
        "node-name": disk_id(spec),
        "read-only": not spec.readwrite or spec.cdrom,
        "discard": "ignore" if spec.discard is False else "unmap",
    }
    if isinstance(source, IscsiLun):
        lun: Options = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": source.portal,
            "target": source.iqn,
            "lun": source.lun,
            "initiator-name": source.initiator,
        }
        if source.password:
            lun |= {"user": source.user, "password-secret": secret_id(disk)}
        return common | lun
    driver = _FORMATS.get(source.format)
    if driver is None:
        raise Refused(f"disk {spec.vdev}: QEMU has no format {source.format}")
    return common | {"driver": driver, "file": _protocol(source, spec, handed, choice)}


def past_cache(source: LocalDisk, spec: DiskSpec) -> bool:
    """Return whether the disk is opened with O_DIRECT, past the host's cache."""
    return source.block or source.direct or spec.direct_io_safe


def _protocol(source: LocalDisk, spec: DiskSpec, handed: str, choice: Choice) -> Options:
    """Return the node of the file itself. It bypasses the host's cache where possible: the other node of a move would
    not see cached data, and all of it would be written out while the domain is paused. A block device always bypasses
    it; a file does where its filesystem can, or the domain file says so (direct-io-safe)."""
    aio = choice.aio(source, direct=past_cache(source, spec)) if not spec.cdrom else ""
    return {
        "driver": "host_device" if source.block else "file",
        "filename": handed or source.path,
        **({"aio": aio} if aio else {}),
        "cache": {"direct": past_cache(source, spec)},
        "discard": "ignore" if spec.discard is False else "unmap",
    }


def io_thread(disk: AttachedDisk) -> str:
    """Return the id of the thread that a disk may have."""
    return f"io-{disk_id(disk.spec)}"


def disk_device(disk: AttachedDisk, slot: int, *, bootindex: int | None = None, threaded: bool = False) -> Options:
    """Return the guest's side of a disk; its serial number is its name in the domain file. `threaded`: it has its own
    thread."""
    name = disk_id(disk.spec)
    options: Options
    if disk.spec.cdrom:
        options = {"driver": "ide-cd", "id": name, "bus": f"ide.{slot}"}
    else:
        options = {"driver": "virtio-blk-pci", "id": name, "bus": f"port{slot}", "serial": disk.spec.vdev[:20]}
        if threaded:
            options["iothread"] = io_thread(disk)
    if disk.source is not None:
        options["drive"] = name
    if bootindex is not None:
        options["bootindex"] = bootindex
    return options


def tap_id(vif: AttachedVif) -> str:
    """Return the id of the host's side of an interface."""
    return f"{vif_id(vif.spec)}-tap"


def is_virtio(vif: AttachedVif) -> bool:
    """Return whether the guest sees a virtio interface, not one that QEMU emulates."""
    return vif.spec.model not in _NICS


def netdev(vif: AttachedVif, handed: str = "", vhost: str = "") -> Options:
    """Return the host's side of an interface: the tap that the node made. `handed` names the descriptor of a tap that
    veeryd has opened and passed to QEMU (getfd's name, or a number), `vhost` that of /dev/vhost-net ("": QEMU itself
    carries the packets)."""
    carried: Options = {"vhost": True, "vhostfd": vhost} if vhost else {"vhost": False}
    if handed:
        return {"type": "tap", "id": tap_id(vif), "fd": handed} | carried
    return {
        "type": "tap",
        "id": tap_id(vif),
        "ifname": vif.device,
        "script": "no",
        "downscript": "no",
    } | carried


LAYOUT_2_NIC: Options = {
    "host_uso": False,
    "guest_uso4": False,
    "guest_uso6": False,
    "queue_reset": False,
    "rx_queue_size": 1024,
}
"""Off in layout 2. QEMU takes the first three from the kernel of its node, and the fourth from its vhost-net where that
is on: with them a domain might not load on a node with an older kernel."""


def vif_device(vif: AttachedVif, slot: int, layout: int) -> Options:
    """Return the guest's side of an interface: virtio, unless the file names a model that QEMU emulates.

    No boot ROM: no domain boots from the network, and a ROM's size must be the same on both ends of a move."""
    name = vif_id(vif.spec)
    options: Options = {
        "driver": _NICS.get(vif.spec.model, "virtio-net-pci"),
        "id": name,
        "netdev": tap_id(vif),
        "mac": vif.spec.mac,
        "bus": f"port{slot}",
        "romfile": "",
    }
    if options["driver"] == "virtio-net-pci":
        if layout != 1:
            options |= LAYOUT_2_NIC
        if vif.spec.mtu:
            options["host_mtu"] = vif.spec.mtu
    return options


# ---- names in the guest


def guest_names(disks: Sequence[DiskSpec]) -> dict[str, str]:
    """Return the guest's names of the disks: {"xvda": "vda", ...}. Linux letters virtio disks in the order in which it
    finds them, whatever the domain file calls them."""
    hard = [disk for disk in disks if not disk.cdrom]
    return {disk.vdev: f"vd{_letters(number)}" for number, disk in enumerate(hard)}


def _letters(number: int) -> str:
    """Return the letters of a number: 0 is "a", 25 "z", 26 "aa", as sd and virtio-blk count
    (drivers/block/virtio_blk.c, virtblk_name_format)."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


_DEVICE = re.compile(r"(?<![\w/])/dev/((?:xvd|hd|sd)[a-z]+)(\d*)(?!\w)")
_CONSOLE = re.compile(r"(?<!\S)console=(?:hvc0|xvc0)(?=[,\s]|$)")


def command_line(cmdline: str, disks: Sequence[DiskSpec]) -> str:
    """Return a Xen guest's kernel command line as a QEMU guest needs it.

    Disks get the names that the guest will give them (`root=/dev/xvda1` becomes `root=/dev/vda1`). The Xen console
    becomes the serial port, which is added where no console is named."""
    names = guest_names(disks)

    def disk(match: re.Match[str]) -> str:
        base, part = match.groups()
        if base + part in names:  # a partition given as a disk of its own, as Xen allows
            return f"/dev/{names[base + part]}"
        if base in names:
            return f"/dev/{names[base]}{part}"
        if base.startswith("xvd"):
            return f"/dev/{base[1:]}{part}"
        return match.group(0)

    line = _CONSOLE.sub("console=ttyS0", _DEVICE.sub(disk, cmdline))
    if not re.search(r"(?<!\S)console=", line):
        line = f"{line} console=ttyS0".strip()
    return line
