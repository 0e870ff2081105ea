"""Every key of a domain file: those of xl.cfg(5) in Xen 4.17 to 4.21, and those of xm.

`USED`: every driver uses the key. `XEN`: only Xen has it; the Xen driver passes it to xl, and other drivers warn.
`BOOTLOADER`: the Xen driver passes it to xl; other drivers refuse it, because their guest would start differently.
`IGNORED`: it has no effect in xl either, or its tool no longer exists; veery warns. `REFUSED`: it would change the
domain's nature or bind the domain to one machine; an error, unless its value is empty or 0.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum


class Use(Enum):
    """What veery does with a key."""

    USED = "used"
    XEN = "kept for Xen"
    BOOTLOADER = "handed to xl, refused elsewhere"
    IGNORED = "ignored"
    REFUSED = "refused"


class Kind(Enum):
    """The kind of value of a key. The text completes the error: KEY must be ..."""

    TEXT = "a 'string'"
    NUMBER = "a number"
    FLAG = "0 or 1"
    ITEMS = "a [ list ]"
    TEXT_OR_NUMBER = "a 'string' or a number"
    TEXT_OR_ITEMS = "a 'string' or a [ list ]"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `why` is the reason of a refusal or the text of a warning; `instead` is the hint."""

    kind: Kind
    use: Use
    why: str = ""
    instead: str = ""


def _of(kind: Kind, use: Use, names: str, why: str = "", instead: str = "") -> dict[str, Key]:
    return {name: Key(kind, use, why, instead) for name in names.split()}


_ONE_MACHINE = "it binds the domain to one machine, so the domain could never move"
_NO_EFFECT = "it has no effect in xl either"
_XM = "only xm knew it"

BOOTLOADER_HINT = "write type='hvm' to boot from its disk, or give kernel= and ramdisk= as files here"

KEYS: dict[str, Key] = {
    **_of(Kind.TEXT, Use.USED, "name uuid type kernel ramdisk cmdline root extra"),
    **_of(Kind.TEXT, Use.USED, "builder", "it is deprecated", "write type="),
    **_of(Kind.NUMBER, Use.USED, "memory maxmem vcpus maxvcpus"),
    **_of(Kind.TEXT, Use.USED, "on_poweroff on_reboot on_crash on_watchdog on_soft_reset"),
    **_of(Kind.TEXT, Use.USED, "on_shutdown", "it is xm's; read as on_poweroff", "write on_poweroff="),
    **_of(Kind.ITEMS, Use.USED, "disk vif"),
    **_of(Kind.ITEMS, Use.USED, "vif_unfiltered"),  # veery's own key; xl ignores keys that it does not know
    # ---- Xen alone: scheduling, tuning, graphics, firmware, device model
    **_of(
        Kind.TEXT,
        Use.XEN,
        "init_seclabel seclabel pool pvshim_path pvshim_cmdline pvshim_extra vuart device_tree passthrough "
        "firmware_override bios bios_path_override smbios_firmware acpi_firmware ms_vm_genid "
        "device_model_override device_model_version device_model_stubdomain_seclabel device_model_user "
        "stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk keymap vga hdtype spicehost spicepasswd "
        "spice_image_compression spice_streaming_video boot soundhw vendor_device gic_version tee "
        "vnclisten vncpasswd display xauthority",
    ),
    **_of(
        Kind.NUMBER,
        Use.XEN,
        "cpu_weight cap period slice latency extratime shadow_memory rtc_timeoffset videoram max_event_channels "
        "max_grant_frames max_maptrack_frames max_grant_version mmio_hole rdm_mem_boundary usbversion spiceport "
        "spicetls_port spiceusbredirection stubdomain_memory vmtrace_buf_kb vncdisplay",
    ),
    **_of(
        Kind.FLAG,
        Use.XEN,
        "hap oos pvshim e820_host localtime acpi nestedhvm pae acpi_s3 acpi_s4 acpi_laptop_slate nx hpet vpt_align "
        "apic altp2mhvm vnc vncunused sdl opengl dm_restrict stdvga spice spicedisable_ticketing spiceagent_mouse "
        "spicevdagent spice_clipboard_sharing nographic usb vkb_device xen_platform_pci xend_suspend_evtchn_compat "
        "msr_relaxed vpmu device_model_stubdomain_override",
    ),
    # xl.cfg(5) of Xen 4.18 to 4.21
    **_of(Kind.ITEMS, Use.XEN, "smbios llc_colors"),
    **_of(Kind.TEXT, Use.XEN, "bootloader_user arm_sci"),
    **_of(Kind.TEXT_OR_NUMBER, Use.XEN, "sve"),
    **_of(Kind.NUMBER, Use.XEN, "altp2m_count nr_spis xenstore_feature_mask"),
    **_of(
        Kind.FLAG,
        Use.XEN,
        "assisted_xapic assisted_x2apic bootloader_restrict hvm_pirq trap_unmapped_accesses xen_platform_pci_bar_uc",
    ),
    **_of(Kind.TEXT_OR_NUMBER, Use.XEN, "tsc_mode timer_mode altp2m"),
    **_of(Kind.TEXT_OR_ITEMS, Use.XEN, "cpus cpus_soft cpuid viridian serial usbdevice"),
    **_of(
        Kind.ITEMS,
        Use.XEN,
        "vnuma vfb channel vkb vsnd vdispl pvcalls usbctrl mca_caps device_model_args device_model_args_pv "
        "device_model_args_hvm",
    ),
    **_of(Kind.TEXT, Use.BOOTLOADER, "bootloader"),
    **_of(Kind.TEXT_OR_ITEMS, Use.BOOTLOADER, "bootloader_args"),
    # ---- refused
    **_of(Kind.TEXT, Use.REFUSED, "firmware", "veery starts the kernel itself", "give kernel= and ramdisk="),
    **_of(Kind.ITEMS, Use.REFUSED, "pci dtdev usbdev ioports irqs iomem vscsi vusb", _ONE_MACHINE, "remove it"),
    **_of(Kind.TEXT_OR_NUMBER, Use.REFUSED, "gfx_passthru", _ONE_MACHINE, "remove it"),
    **_of(Kind.TEXT, Use.REFUSED, "rdm", _ONE_MACHINE, "remove it"),
    **_of(Kind.ITEMS, Use.REFUSED, "p9", "it shares a folder of one machine", "give the domain a volume"),
    **_of(Kind.ITEMS, Use.REFUSED, "virtio", "veery does not serve its backend", "remove it"),
    **_of(Kind.ITEMS, Use.REFUSED, "vtpm", "the secrets of a vTPM cannot move", "remove it"),
    **_of(Kind.FLAG, Use.REFUSED, "nomigrate", "every domain of veery can be moved", "remove it"),
    **_of(
        Kind.FLAG,
        Use.REFUSED,
        "driver_domain blkif netif tpmif",
        "the node itself serves disks and interfaces",
        "remove it",
    ),
    **_of(
        Kind.TEXT, Use.REFUSED, "restart", "xm itself had dropped it", "write on_poweroff=, on_reboot= and on_crash="
    ),
    **_of(Kind.FLAG, Use.REFUSED, "pvh", "Xen 4.10 removed it", "write type = 'pvh'"),
    # ---- ignored
    **_of(Kind.FLAG, Use.IGNORED, "pci_msitranslate pci_power_mgmt pci_permissive pci_seize", "it goes with pci="),
    **_of(Kind.ITEMS, Use.IGNORED, "vif2", _NO_EFFECT),
    **_of(Kind.TEXT_OR_NUMBER, Use.IGNORED, "vncviewer device_model", _NO_EFFECT),
    **_of(
        Kind.TEXT_OR_NUMBER,
        Use.IGNORED,
        "ip gateway netmask hostname interface dhcp nfs_server nfs_root",
        "xm added it to the kernel's command line",
        "add it to extra=",
    ),
    **_of(Kind.TEXT_OR_NUMBER, Use.IGNORED, "on_xend_start on_xend_stop", _XM, "see veery create --help"),
    **_of(
        Kind.TEXT_OR_NUMBER,
        Use.IGNORED,
        "bootargs bootentry cpu cpu_cap cpuid_check description fda fdb features guest_os_type isa loader "
        "machine_address_size memory_sharing monitor monitor_path nics parallel s3_integrity superpages "
        "suppress_spurious_page_faults target vcpu_avail vhpt vncconsole",
        _XM,
    ),
    **_of(Kind.TEXT_OR_ITEMS, Use.IGNORED, "access_control", _XM),
}


def is_strange(name: str) -> bool:
    """Return whether `name`, which is not in lower case, is a key of another program: unlike any key known here."""
    small = name.lower()
    return name not in ("True", "False", "None") and small not in KEYS and not suggestion(small)


def suggestion(name: str) -> str:
    """Return the key that a user probably meant by the unknown `name`; "" if none. Never suggest a refused key."""
    usual = {"mem": "memory", "cpu_count": "vcpus", "ncpus": "vcpus", "disks": "disk", "vifs": "vif", "nic": "vif"}
    if name in usual:
        return usual[name]
    offered = [key for key, about in KEYS.items() if about.use in (Use.USED, Use.XEN, Use.BOOTLOADER)]
    return next(iter(difflib.get_close_matches(name, offered, 1, 0.7)), "")
