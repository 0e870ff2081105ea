"""The support of each driver for each key of a domain file, a disk and an interface.

The tables below are complete: tests compare them with the key tables of the parsers. `table` renders them for
docs/domain-files.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from veery.config import disk as disk_config
from veery.config.keys import BOOTLOADER_HINT, KEYS, Use
from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec, OnEvent, VifSpec


class Does(Enum):
    """What a driver does with a key."""

    CARRIED_OUT = "carried out"
    HANDED_ON = "handed to xl"
    WARNED = "warned about"  # no effect; `create` and `attach` warn
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Row:
    """One key: what each driver does with it, and a note for the manual."""

    qemu: Does
    xen: Does
    note: str = ""


XEN = "xen"
"""The name of the driver that passes everything to xl. Every other driver is treated like the QEMU driver."""

_DONE, _XL, _WARNED, _REFUSED = Does.CARRIED_OUT, Does.HANDED_ON, Does.WARNED, Does.REFUSED
_KEYS = {
    Use.USED: Row(_DONE, _DONE),
    Use.XEN: Row(_WARNED, _XL),
    Use.BOOTLOADER: Row(_REFUSED, _XL),
    Use.IGNORED: Row(_WARNED, _WARNED),
    Use.REFUSED: Row(_REFUSED, _REFUSED),
}
_NOTES = {
    "type": "hvm is refused on Xen",
    "vif_unfiltered": "the filter is qemu's alone",
    "on_crash": "the qemu driver writes no core: it warns about coredump-*",
    "viridian": "under qemu with KVM: a list is read as 1",
    "firmware": "for hvm: handed to xl, warned about under qemu",
}

_BOTH = frozenset({"viridian"})
"""Keys for Xen that the qemu driver supports too."""

DISK_KEYS: dict[str, Row] = {
    "target": Row(_DONE, _DONE),
    "volume": Row(_DONE, _DONE),
    "vdev": Row(_DONE, _DONE),
    "format": Row(_DONE, _DONE),
    "access": Row(_DONE, _DONE),
    "devtype": Row(_DONE, _XL, "cdrom"),
    "backendtype": Row(_DONE, _XL, "under qemu QEMU serves each of them"),
    "backend": Row(_WARNED, _XL, "0 and Domain-0 are the node itself"),
    "script": Row(_REFUSED, _XL),
    "direct-io-safe": Row(_DONE, _XL),
    "discard": Row(_DONE, _XL),
    "specification": Row(_WARNED, _XL, "virtio is what a guest of QEMU has"),
    "trusted": Row(_WARNED, _XL),
    **dict.fromkeys(
        disk_config.LIMIT_NAMES, Row(_DONE, _WARNED, "what the guest may read and write; xl has no limits")
    ),
    "colo": Row(_REFUSED, _REFUSED),
}

VIF_KEYS: dict[str, Row] = {
    "mac": Row(_DONE, _DONE),
    "bridge": Row(_DONE, _DONE),
    "vifname": Row(_DONE, _XL),
    "mtu": Row(_DONE, _XL),
    "ip": Row(_DONE, _XL, "what the guest may send from; told to the neighbours after a move"),
    "type": Row(_DONE, _XL, "a guest of QEMU has its model, or virtio"),
    "model": Row(_DONE, _XL, "under qemu: virtio, e1000, e1000e, rtl8139; warned about otherwise"),
    "rate": Row(_DONE, _XL, "under qemu by tc, in both directions; warned about where tc cannot"),
    "script": Row(_WARNED, _XL),
    "gatewaydev": Row(_WARNED, _XL),
    "backend": Row(_WARNED, _XL, "0 and Domain-0 are the node itself"),
    "devid": Row(_WARNED, _XL),
    "trusted": Row(_WARNED, _XL),
    "colo": Row(_REFUSED, _REFUSED),
}

_NODE = ("", "0", "Domain-0")
_MODELS = ("", "virtio", "virtio-net", "virtio-net-pci", "netfront", "e1000", "e1000e", "rtl8139")
_OFF = (
    *("vnc", "sdl", "opengl", "spice", "nographic", "usb", "stdvga", "localtime", "nestedhvm", "pvshim", "e820_host"),
    *("dm_restrict", "vncunused", "spicevdagent", "spice_clipboard_sharing", "spiceagent_mouse", "hvm_pirq"),
    *("xend_suspend_evtchn_compat", "shadow_memory", "rtc_timeoffset"),
)
"""Keys that have no effect when they are 0."""


def domain_key(name: str) -> Row:
    """Return what each driver does with key `name` of a domain file."""
    row = Row(_DONE, _XL) if name in _BOTH else _KEYS[KEYS[name].use]
    return Row(row.qemu, row.xen, _NOTES.get(name, ""))


def check(spec: DomainSpec, driver: str) -> None:
    """Raise Refused if `driver` cannot start `spec` as asked."""
    if driver == XEN:
        return
    names = [name for name, _ in spec.xl if KEYS[name].use is Use.BOOTLOADER] if spec.xl else []
    if names:
        raise Refused(f"{spec.name}: {names[0]}= is not supported here: QEMU runs no bootloader", hint=BOOTLOADER_HINT)
    for disk in spec.disks:
        check_disk(disk, driver)


def check_disk(disk: DiskSpec, driver: str) -> None:
    """Raise Refused if `driver` cannot attach `disk` as asked."""
    if disk.script and driver != XEN:
        raise Refused(
            f"disk {disk.vdev}: the qemu driver does not run script={disk.script}",
            hint="remove script= and give a file, a block device or a volume: veery volume list",
        )


def left_out(spec: DomainSpec, driver: str) -> tuple[str, ...]:
    """Return the settings of `spec` that `driver` does not carry out, as a warning names them."""
    if driver == XEN:
        return tuple(f"disk {disk.vdev} {each}" for disk in spec.disks for each in _limits(disk))
    found = [
        name
        for name, value in spec.xl
        if name not in _BOTH and not (_nothing(value) or (name in _OFF and value == "0"))
    ]
    if spec.on_crash in (OnEvent.COREDUMP_DESTROY, OnEvent.COREDUMP_RESTART):
        found.append(f"on_crash={spec.on_crash.value}")
    for disk in spec.disks:
        found += [f"disk {disk.vdev} {each}" for each in _disk(disk)]
    for number, vif in enumerate(spec.vifs):
        found += [f"vif {number} {each}" for each in _vif(vif)]
    return tuple(found)


def left_out_of_disk(disk: DiskSpec, driver: str) -> tuple[str, ...]:
    """Return the settings of one disk that `driver` does not carry out."""
    return tuple(_limits(disk) if driver == XEN else _disk(disk))


def left_out_of_vif(vif: VifSpec, driver: str) -> tuple[str, ...]:
    """Return the settings of one interface that `driver` does not carry out."""
    return () if driver == XEN else tuple(_vif(vif))


def sentence(names: tuple[str, ...], driver: str) -> str:
    """Return the one-line warning about `names`; "" if there are none."""
    return f"the {driver} driver does not carry out: {', '.join(names)}" if names else ""


def _nothing(value: str) -> bool:
    return value in ("''", '""', "[ ]")


def _limits(disk: DiskSpec) -> list[str]:
    """Return the settings of a disk that xl does not carry out: the limits."""
    values = [(name, getattr(disk.limits, name, 0)) for name in disk_config.LIMIT_NAMES]
    return [f"{name}={value}" for name, value in values if value]


def _disk(disk: DiskSpec) -> list[str]:
    found = [
        (f"backend={disk.backend}", disk.backend not in _NODE),
        (f"specification={disk.specification}", disk.specification not in ("", "virtio")),
        ("trusted" if disk.trusted else "untrusted", disk.trusted is not None),
    ]
    return [text for text, asked in found if asked]


def _vif(vif: VifSpec) -> list[str]:
    found = [
        (f"script={vif.script}", vif.script),
        (f"gatewaydev={vif.gatewaydev}", vif.gatewaydev),
        (f"backend={vif.backend}", vif.backend not in _NODE),
        (f"model={vif.model}", vif.model not in _MODELS),
        (f"devid={vif.devid}", vif.devid >= 0),
        ("trusted" if vif.trusted else "untrusted", vif.trusted is not None),
    ]
    return [text for text, asked in found if asked]


# ---- the manual


def table() -> str:
    """Return the table of docs/domain-files.md. Keys with the same support and note share a row."""
    rows: dict[tuple[str, Does, Does, str], list[str]] = {}
    for where, keys in (
        ("domain", {name: domain_key(name) for name in sorted(KEYS)}),
        ("disk", DISK_KEYS),
        ("vif", VIF_KEYS),
    ):
        for name, row in keys.items():
            rows.setdefault((where, row.qemu, row.xen, row.note), []).append(name)
    lines = ["| in | keys | qemu | xen | note |", "|---|---|---|---|---|"]
    for (where, qemu, xen, note), names in rows.items():
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {where} | {listed} | {qemu.value} | {xen.value} | {note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
