"""The places in libxl's JSON of the keys that only Xen has.

The fields and their order are those of libxl_types.idl, the values those of tools/xl/xl_parse.c, both of Xen 4.17.
Recorded outputs of the real tool are in tests/data/xl/4.17/create-keys.json. Fields that libxl derives from several
keys or from the host (`cpuid`, `vnuma`, `channel`, lists in `viridian`, affinities with "all") are not shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from veery.config import xlcfg
from veery.config.adjust import most_vcpus
from veery.config.cpus import processors, read_cpus
from veery.config.xlcfg import Atom, Items, Value
from veery.model.domain import DomainSpec, DomainType

Tree = dict[str, Any]

_B, _C, _SCHED, _TYPE = ("b_info",), ("c_info",), ("b_info", "sched_params"), ("b_info", "type")
_VNC, _SDL, _SPICE = (*_TYPE, "vnc"), (*_TYPE, "sdl"), (*_TYPE, "spice")
_HVM, _PVH, _PV = frozenset({DomainType.HVM}), frozenset({DomainType.PVH}), frozenset({DomainType.PV})
_ALL = frozenset(DomainType)
_KIB = 1024
_TSC = ("default", "always_emulate", "native", "native_paravirt")
_TIMER = ("delay_for_missed_ticks", "no_delay_for_missed_ticks", "no_missed_ticks_pending", "one_missed_tick_pending")
_ALTP2M = ("disabled", "mixed", "external", "limited")

_VGA = {"stdvga": "std", "std": "std", "cirrus": "cirrus", "qxl": "qxl", "none": "none"}


def _text(value: Value) -> Any:
    return value.text if isinstance(value, Atom) else None


def _flag(value: Value) -> Any:
    number = xlcfg.whole(value.text) if isinstance(value, Atom) else None
    return None if number is None else str(bool(number))


def _number(value: Value) -> Any:
    return xlcfg.whole(value.text) if isinstance(value, Atom) else None


def _some(value: Value) -> Any:
    """Return a number, or None for 0: that is the default, which libxl omits."""
    return _number(value) or None


def _mebibytes(value: Value) -> Any:
    number = _number(value)
    return None if number is None else number * _KIB


def _words(value: Value) -> Any:
    """Return a list of texts. Split a single text at its blanks."""
    if isinstance(value, Items):
        return [item.text for item in value.values if isinstance(item, Atom)] or None
    return value.text.split() or None


def _one(value: Value) -> Any:
    return _text(value)


def _many(value: Value) -> Any:
    return _words(value) if isinstance(value, Items) else None


def _named(*names: str, usual: str = "") -> Callable[[Value], Any]:
    """Return a converter to one of `names`, by its name or its number. It omits `usual`, the default."""

    def convert(value: Value) -> Any:
        text, number = _text(value) or "", _number(value)
        if number is not None and 0 <= number < len(names):
            text = names[number]
        return text if text in names and text != usual else None

    return convert


def _spelt(names: Mapping[str, str]) -> Callable[[Value], Any]:
    return lambda value: names.get(_text(value) or "")


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a key: `field` of the object at `path`. A value of None omits it. For domains of other types than
    `types` xl ignores the key."""

    path: tuple[str, ...]
    field: str
    convert: Callable[[Value], Any]
    types: frozenset[DomainType] = _ALL


def _same(
    path: tuple[str, ...], convert: Callable[[Value], Any], names: str, types: frozenset[DomainType] = _ALL
) -> Any:
    return {name: (_Place(path, name, convert, types),) for name in names.split()}


def _other(
    path: tuple[str, ...], convert: Callable[[Value], Any], types: frozenset[DomainType] = _ALL, **names: str
) -> Any:
    return {name: (_Place(path, field, convert, types),) for name, field in names.items()}


PLACES: dict[str, tuple[_Place, ...]] = {
    **_same(_C, _flag, "hap oos xend_suspend_evtchn_compat"),
    **_other(_C, _text, pool="pool_name"),
    **_other(_SCHED, _number, cpu_weight="weight"),
    **_same(_SCHED, _number, "cap period slice latency extratime"),
    **_same(_B, _named(*_TSC, usual="default"), "tsc_mode"),
    **_same(_B, _named(*_TIMER), "timer_mode", _HVM | _PVH),
    **_same(_B, _named(*_ALTP2M, usual="disabled"), "altp2m"),
    **_other(
        _B, _mebibytes, videoram="video_memkb", shadow_memory="shadow_memkb", stubdomain_memory="stubdomain_memkb"
    ),
    **_same(_B, _some, "rtc_timeoffset vmtrace_buf_kb"),
    **_same(_B, _number, "max_grant_frames max_maptrack_frames max_grant_version"),
    **_other(_B, _some, max_event_channels="event_channels"),
    **_same(_B, _flag, "localtime acpi dm_restrict vpmu"),
    **_other(_B, _flag, nestedhvm="nested_hvm", device_model_stubdomain_override="device_model_stubdomain"),
    **_same(_B, _flag, "apic", _HVM),
    **_same(
        _B, _text, "device_tree device_model_user stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk bootloader"
    ),
    **_other(
        _B, _text, device_model_override="device_model", device_model_stubdomain_seclabel="device_model_ssid_label"
    ),
    **_same(
        _B,
        _spelt({"qemu-xen": "qemu_xen", "qemu-xen-traditional": "qemu_xen_traditional"}),
        "device_model_version",
    ),
    **_other(_B, _words, device_model_args="extra", device_model_args_pv="extra_pv", device_model_args_hvm="extra_hvm"),
    **_same(_B, _words, "bootloader_args"),
    **_same(_TYPE, _text, "pvshim_path pvshim_cmdline pvshim_extra", _PVH),
    **_same(_TYPE, _flag, "pvshim", _PVH),
    **_same(_TYPE, _flag, "e820_host", _PV),
    **_same(_TYPE, _text, "bios smbios_firmware acpi_firmware keymap hdtype boot soundhw vendor_device", _HVM),
    **_other(_TYPE, _text, _HVM, firmware_override="firmware", bios_path_override="system_firmware"),
    **_same(
        _TYPE,
        _flag,
        "pae acpi_s3 acpi_s4 acpi_laptop_slate nx hpet vpt_align nographic usb vkb_device xen_platform_pci viridian",
        _HVM,
    ),
    **_other(_TYPE, _flag, _HVM, altp2mhvm="altp2m"),
    **_same(_TYPE, _some, "usbversion", _HVM),
    **_other(_TYPE, _mebibytes, _HVM, mmio_hole="mmio_hole_memkb", rdm_mem_boundary="rdm_mem_boundary_memkb"),
    **_other((*_TYPE, "vga"), lambda value: "std" if _number(value) else "cirrus", _HVM, stdvga="kind"),
    **_other((*_TYPE, "vga"), _spelt(_VGA), _HVM, vga="kind"),  # stands above stdvga=
    **_other(_VNC, _flag, _HVM, vnc="enable", vncunused="findunused"),
    **_other(_VNC, _text, _HVM, vnclisten="listen", vncpasswd="passwd"),
    **_other(_VNC, _some, _HVM, vncdisplay="display"),
    **_other(_SDL, _flag, _HVM, sdl="enable", opengl="opengl"),
    **_same(_SDL, _text, "display xauthority", _HVM),
    **_other(
        _SPICE,
        _flag,
        _HVM,
        spice="enable",
        spicedisable_ticketing="disable_ticketing",
        spiceagent_mouse="agent_mouse",
        spicevdagent="vdagent",
        spice_clipboard_sharing="clipboard_sharing",
    ),
    **_other(
        _SPICE,
        _text,
        _HVM,
        spicehost="host",
        spicepasswd="passwd",
        spice_image_compression="image_compression",
        spice_streaming_video="streaming_video",
    ),
    **_other(_SPICE, _some, _HVM, spiceport="port", spicetls_port="tls_port", spiceusbredirection="usbredirection"),
    "serial": (_Place(_TYPE, "serial", _one, _HVM), _Place(_TYPE, "serial_list", _many, _HVM)),
    "usbdevice": (_Place(_TYPE, "usbdevice", _one, _HVM), _Place(_TYPE, "usbdevice_list", _many, _HVM)),
    **_other(("b_info", "arch_arm"), _text, vuart="vuart", gic_version="gic_version"),
    **_same(_B, _text, "tee"),
    **_other(("b_info", "arch_x86"), _flag, msr_relaxed="msr_relaxed"),
}

_FIELDS = {
    "c_info": """
        type hap oos ssid_label name uuid pool_name run_hotplug_scripts driver_domain passthrough
        xend_suspend_evtchn_compat""",
    "b_info": """
        max_vcpus avail_vcpus vcpu_hard_affinity vcpu_soft_affinity numa_placement tsc_mode max_memkb target_memkb
        video_memkb shadow_memkb rtc_timeoffset exec_ssid_label localtime cpuid vnuma_nodes max_grant_frames
        max_maptrack_frames max_grant_version device_model_version device_model_stubdomain stubdomain_memkb
        stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk device_model device_model_ssid_label
        device_model_user extra extra_pv extra_hvm sched_params claim_mode event_channels kernel cmdline ramdisk
        device_tree acpi bootloader bootloader_args timer_mode nested_hvm apic dm_restrict tee type.pv type.pvh
        type.hvm arch_arm arch_x86 altp2m vmtrace_buf_kb vpmu""",
    "sched_params": "weight cap period extratime slice latency",
    "type": """
        pvshim pvshim_path pvshim_cmdline pvshim_extra e820_host firmware bios pae acpi_s3 acpi_s4 acpi_laptop_slate nx
        viridian hpet vpt_align mmio_hole_memkb altp2m system_firmware smbios_firmware acpi_firmware hdtype nographic
        vga vnc keymap sdl spice serial boot usb usbversion usbdevice vkb_device soundhw xen_platform_pci
        usbdevice_list vendor_device serial_list rdm rdm_mem_boundary_memkb""",
    "vnc": "enable listen passwd display findunused",
    "sdl": "enable opengl display xauthority",
    "spice": """
        enable port tls_port host disable_ticketing passwd agent_mouse vdagent clipboard_sharing usbredirection
        image_compression streaming_video""",
    "arch_arm": "gic_version vuart",
}
_ORDER = {name: fields.split() for name, fields in _FIELDS.items()}


def values(spec: DomainSpec) -> dict[str, Value]:
    """Parse the settings that are kept for Xen."""
    return {key: xlcfg.parse(f"{key} = {text}\n", key)[0].value for key, text in spec.xl}


def fill(config: Tree, spec: DomainSpec) -> frozenset[str]:
    """Add the settings kept for Xen to `config`, libxl's JSON of the rest. Return the keys that were added, and
    those that xl ignores for a domain of this type."""
    found, done = values(spec), set[str]()
    for key, place in ((key, place) for key, places in PLACES.items() if key in found for place in places):
        value = found[key]
        if spec.type not in place.types:
            done.add(key)
            continue
        what = place.convert(value)
        if what is not None:
            _node(config, place.path, spec.type)[place.field] = what
        if what is not None or _says_nothing(value):
            done.add(key)
    done |= _labels(config, found) | _affinities(config, spec, found) | _screens(config, spec, found)
    for name in ("c_info", "b_info"):
        config[name] = _sorted(config[name], name, spec.type)
    return frozenset(done)


def _says_nothing(value: Value) -> bool:
    return value.values == () if isinstance(value, Items) else value.text in ("", "0", "default", "disabled")


def _node(config: Tree, path: tuple[str, ...], kind: DomainType) -> Tree:
    node = config
    for name in path:
        node = node.setdefault(f"type.{kind.value}" if name == "type" else name, {})
    return node


def _sorted(node: Tree, name: str, kind: DomainType) -> Tree:
    order = _ORDER.get("type" if name == f"type.{kind.value}" else name)
    inner = {field: _sorted(value, field, kind) if isinstance(value, dict) else value for field, value in node.items()}
    if order is None:
        return inner
    return {field: inner[field] for field in sorted(inner, key=order.index)}


def _labels(config: Tree, found: Mapping[str, Value]) -> set[str]:
    """Set the labels: init_seclabel= applies while the domain is built, seclabel= otherwise."""
    label, first = (_text(found[key]) if key in found else None for key in ("seclabel", "init_seclabel"))
    if label or first:
        config["c_info"]["ssid_label"] = first or label
    if label and first:
        config["b_info"]["exec_ssid_label"] = label
    return {"seclabel", "init_seclabel"} & found.keys()


def _affinities(config: Tree, spec: DomainSpec, found: Mapping[str, Value]) -> set[str]:
    """Set cpus= and cpus_soft= as numbers, unless they depend on the processors of the host."""
    done = set()
    for key, field in (("cpus", "vcpu_hard_affinity"), ("cpus_soft", "vcpu_soft_affinity")):
        if key not in found:
            continue
        value = found[key]
        listed = isinstance(value, Items)
        many = most_vcpus(spec) if config["b_info"].get("max_vcpus") else 0
        count = min(many, len(value.values)) if isinstance(value, Items) else many
        maps = [processors(text) for text in read_cpus(key, dict(spec.xl)[key], most_vcpus(spec))[:count]]
        if None in maps:
            continue
        done.add(key)
        config["b_info"] |= {field: maps} if maps else {}
        config["b_info"] |= {"numa_placement": "False"} if listed else {}
    return done


# ---- screens of PV and PVH domains
_SCREEN = {
    "vnc": ("vnc", "enable", True),
    "vnclisten": ("vnc", "listen", False),
    "vncpasswd": ("vnc", "passwd", False),
    "vncdisplay": ("vnc", "display", None),
    "vncunused": ("vnc", "findunused", True),
    "sdl": ("sdl", "enable", True),
    "opengl": ("sdl", "opengl", True),
    "display": ("sdl", "display", False),
    "xauthority": ("sdl", "xauthority", False),
}
"""Object, field, and whether the field is a flag (None: a number)."""


def _screens(config: Tree, spec: DomainSpec, found: Mapping[str, Value]) -> set[str]:
    """Set vfb=, and the vnc= and sdl= of a PV domain, which xl converts to a vfb."""
    screens: list[Tree] = []
    done: set[str] = set()
    if "vfb" in found:
        done.add("vfb")
        for text in _words(found["vfb"]) or ():
            pairs = (pair.partition("=") for pair in text.split(","))
            screens.append(_screen({name.strip(): value.strip() for name, _, value in pairs}, len(screens)))
    if spec.type is not DomainType.HVM:
        asked = {key: _text(found[key]) or "" for key in (*_SCREEN, "keymap") if key in found}
        done |= asked.keys()
        if spec.type is DomainType.PV and _number(found.get("vnc", Items((), _NOWHERE))):
            screens.append(_screen(asked, len(screens)))
    if screens:
        config["vfbs"], config["vkbs"] = screens, [{"devid": number} for number in range(len(screens))]
    return done


_NOWHERE = xlcfg.Position("", 1, 1)


def _screen(asked: Mapping[str, str], number: int) -> Tree:
    screen: Tree = {"devid": number, "vnc": {}, "sdl": {}}
    for key, (part, field, flag) in _SCREEN.items():
        if key in asked:
            whole = xlcfg.whole(asked[key])
            value = asked[key] if flag is False else str(bool(whole)) if flag else whole
            if value or flag is False:
                screen[part][field] = value
    for part in ("vnc", "sdl"):
        screen[part] = _sorted(screen[part], part, DomainType.PV)
    return {**screen, **({"keymap": asked["keymap"]} if asked.get("keymap") else {})}
