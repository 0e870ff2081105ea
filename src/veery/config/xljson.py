"""The JSON of xl's dry runs (`xl -N block-attach`, `xl -N network-attach`, `xl create -n`) and of `xl list -l`.

It equals that of Xen 4.17 byte for byte: the order of libxl_types.idl, the format of yajl, without fields that have
libxl's default.

The recorded outputs of the real tool are in tests/data/xl/4.17.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from veery.config import disk as disk_config
from veery.config import vif as vif_config
from veery.config import xlkeys
from veery.config.adjust import most_memory, most_vcpus
from veery.config.disk import DiskFields, DiskReading
from veery.config.vif import COLO_FIELDS, VifFields
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, DomainType, OnEvent, VifSpec

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "\b": "\\b"}
_BLOCK_USAGE = """Usage: xl [-vtTfN] block-attach <Domain> <disk-spec-component(s)>...

Create a new virtual block device.

"""
Outcome = tuple[int, str, str]


def pretty(value: Any, indent: str = "") -> str:
    """Return `value` (dict, list, str, int, bool, None) as yajl's beautifier prints it, without the last newline."""
    inner = indent + "    "
    if isinstance(value, dict):
        lines = [f"{inner}{_string(key)}: {pretty(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)):
        return "[\n" + ",\n".join(inner + pretty(item, inner) for item in value) + f"\n{indent}]"
    if isinstance(value, str):
        return _string(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _string(text: str) -> str:
    escaped = (
        _ESCAPES.get(character) or (f"\\u{ord(character):04X}" if character < " " else character) for character in text
    )
    return '"' + "".join(escaped) + '"'


def _without_defaults(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs that differ from libxl's default: an absent string or flag, a zero (for a device id: None)."""
    return {name: value for name, value in pairs if value is not None and (value != 0 or name == "devid")}


def _defbool(value: bool | None) -> str | None:
    return None if value is None else str(value)


# ---- the dry runs


def dry_run_disk(specs: Sequence[str]) -> Outcome:
    """Return exit code, stdout and stderr of `xl -N block-attach 0 SPEC...`. Never raises.

    xl works on bytes. Texts here are those of the command line (UTF-8, other bytes as surrogates)."""
    if not specs:
        return 2, _BLOCK_USAGE, "'xl block-attach' requires at least 2 arguments.\n\n"
    reading = disk_config.read([_bytes(spec) for spec in specs])
    if reading.complaints:
        return 2 if reading.jammed else 1, "", _text(_complaints(reading))
    return 0, _text(f"disk: {pretty(disk_object(reading.fields))}\n\n"), ""


def dry_run_vif(tokens: Sequence[str]) -> Outcome:
    """Return exit code, stdout and stderr of `xl -N network-attach 0 TOKEN...`. Never raises."""
    reading = vif_config.read([_bytes(token) for token in tokens])
    said = _text("".join(line + "\n" for line in reading.said))
    if reading.failed:
        return 1, "", said
    return 0, _text(f"vif: {pretty(vif_object(reading.fields))}\n\n"), said


def _bytes(argument: str) -> str:
    """Return `argument` with one character per byte."""
    return argument.encode("utf-8", "surrogateescape").decode("latin-1")


def _text(output: str) -> str:
    return output.encode("latin-1").decode("utf-8", "surrogateescape")


def _complaints(reading: DiskReading) -> str:
    lines = []
    for complaint in reading.complaints[: -1 if reading.jammed else None]:
        near = f": near `{complaint.near}'" if complaint.near is not None else ""
        place = "command line: config parsing error in disk specification"
        lines.append(f"{place}: {complaint.what}{near} in `{complaint.spec}'\n")
    return "".join(lines) + ("flex scanner jammed\n" if reading.jammed else "")


def disk_object(disk: DiskFields) -> dict[str, Any]:
    """Return libxl_device_disk as JSON values. `volume` is veery's own field, after the path."""
    return _without_defaults(
        (
            ("backend_domname", disk.backend_domname),
            ("pdev_path", None if disk.volume else disk.pdev_path),
            ("volume", disk.volume),
            ("vdev", disk.vdev),
            ("backend", disk.backend or None),
            ("format", disk.format or None),
            ("script", disk.script),
            ("removable", int(disk.removable)),
            ("readwrite", int(disk.readwrite)),
            ("is_cdrom", int(disk.is_cdrom)),
            ("direct_io_safe", disk.direct_io_safe),
            ("discard_enable", _defbool(disk.discard_enable)),
            ("specification", disk.specification or None),
            ("colo_enable", _defbool(disk.colo_enable)),
            ("colo_host", disk.colo_host),
            ("colo_port", disk.colo_port),
            ("colo_export", disk.colo_export),
            ("active_disk", disk.active_disk),
            ("hidden_disk", disk.hidden_disk),
            ("trusted", _defbool(disk.trusted)),
            *((name, disk.limits.get(name)) for name in disk_config.LIMIT_NAMES),
        )
    )


def vif_object(nic: VifFields) -> dict[str, Any]:
    """Return libxl_device_nic as JSON values."""
    said = nic.strings
    first = (
        ("backend_domname", said.get("backend_domname")),
        ("devid", None if nic.devid == -1 else nic.devid),
        ("mtu", nic.mtu),
        ("model", said.get("model")),
        ("mac", ":".join(f"{octet:02x}" for octet in nic.mac) if any(nic.mac) else None),
        ("ip", said.get("ip")),
        ("bridge", said.get("bridge")),
        ("ifname", said.get("ifname")),
        ("script", said.get("script")),
        ("nictype", nic.nictype or None),
        ("rate_bytes_per_interval", nic.per_interval),
        ("rate_interval_usecs", nic.interval),
        ("gatewaydev", said.get("gatewaydev")),
    )
    colo = ((name, said.get(name)) for name in COLO_FIELDS)
    return _without_defaults((*first, *colo, ("trusted", _defbool(nic.trusted))))


# ---- whole domains

_ACTIONS = {
    OnEvent.RENAME_RESTART: "restart_rename",
    OnEvent.COREDUMP_DESTROY: "coredump_destroy",
    OnEvent.COREDUMP_RESTART: "coredump_restart",
    OnEvent.SOFT_RESET: "soft_reset",
}


def domain_json(spec: DomainSpec, domid: int) -> dict[str, Any]:
    """Return the element of `xl list -l` for a running domain: {"domid", "config": {"c_info", "b_info", ...}}.

    libxl keeps the settings as given and adds later decisions (libxl_domain.c, retrieve_domain_configuration_end):
    device ids, MACs, memory. It adds the scheduler's values too; this function knows only those that the file sets.
    """
    usual = "ioemu" if spec.type is DomainType.HVM else "vif"
    config, _ = config_json(replace(spec, vifs=tuple(replace(vif, type=vif.type or usual) for vif in spec.vifs)))
    info, build = config["c_info"], config["b_info"]
    config["c_info"] = {name: info[name] for name in ("type", "name")} | {"domid": 0xFFFFFFFF} | info
    running: dict[str, Any] = {}
    for name, value in build.items():
        if name == "sched_params":
            running |= {"video_memkb": 8192 if spec.type is DomainType.HVM else 0} if "video_memkb" not in build else {}
            running[name] = value
        elif name == "arch_x86":
            running[name] = {"msr_relaxed": "False"} | value
        else:
            running[name] = value
    config["b_info"] = running
    return {"domid": domid, "config": config}


def print_list(domains: Iterable[dict[str, Any]]) -> str:
    """Return the whole stdout of `xl list -l` for the `domain_json` of each domain."""
    return pretty(list(domains)) + "\n\n"


def print_config(spec: DomainSpec, given: Collection[str] = ("vcpus",)) -> tuple[str, tuple[str, ...]]:
    """Return the stdout of `xl create -n` for a file that sets the keys `given`, and the keys of the file that xl shows
    and this does not. Without a UUID in the file, generate one as xl does."""
    config, left = config_json(replace(spec, uuid=spec.uuid or str(uuids.uuid4())), given)
    return pretty(config) + "\n", left


def config_json(spec: DomainSpec, given: Collection[str] = ("vcpus",)) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return libxl_domain_config as JSON values, as xl fills it from a file that sets the keys `given`, and the keys
    that it does not show."""
    counted = not {"vcpus", "maxvcpus"}.isdisjoint(given)
    info = {"type": spec.type.value, "name": spec.name, "uuid": spec.uuid, "run_hotplug_scripts": "True"}
    build: dict[str, Any] = {
        **({"max_vcpus": most_vcpus(spec), "avail_vcpus": list(range(spec.vcpus))} if counted else {}),
        "max_memkb": most_memory(spec) * 1024,
        "target_memkb": spec.memory * 1024,
        "sched_params": {},
        "claim_mode": "True",
        **{name: text for name, text in (("kernel", spec.kernel), ("cmdline", spec.cmdline)) if text},
        **({"ramdisk": spec.ramdisk} if spec.ramdisk else {}),
        **_type_info(spec.type),
        "arch_arm": {},
        "arch_x86": {},
    }
    config: dict[str, Any] = {"c_info": info, "b_info": build}
    if spec.disks:
        config["disks"] = [disk_object(_disk_fields(disk)) for disk in spec.disks]
    if spec.vifs:
        config["nics"] = [vif_object(_vif_fields(vif, index)) for index, vif in enumerate(spec.vifs)]
    shown = xlkeys.fill(config, spec)
    events = (
        ("on_poweroff", spec.on_poweroff),
        ("on_reboot", spec.on_reboot),
        ("on_watchdog", spec.on_watchdog),
        ("on_crash", spec.on_crash),
        ("on_soft_reset", spec.on_soft_reset),
    )
    for name, action in events:
        if action is not OnEvent.DESTROY:  # libxl's default, whatever the event
            config[name] = _ACTIONS.get(action, action.value)
    return config, tuple(key for key, _ in spec.xl if key not in shown)


def _type_info(kind: DomainType) -> dict[str, Any]:
    parts = ("vga", "vnc", "sdl", "spice", "rdm") if kind is DomainType.HVM else ()
    return {f"type.{kind.value}": {part: {} for part in parts}}


def _disk_fields(disk: DiskSpec) -> DiskFields:
    return DiskFields(
        backend_domname=disk.backend or None,
        pdev_path=disk.target or ("" if disk.format is DiskFormat.EMPTY else None),
        volume=disk.volume or None,
        vdev=disk.vdev,
        backend=disk.backendtype,
        format=disk.format.value,
        script=disk.script or None,
        removable=disk.removable,
        readwrite=disk.readwrite,
        is_cdrom=disk.cdrom,
        direct_io_safe=disk.direct_io_safe,
        discard_enable=disk.discard,
        specification=disk.specification,
        trusted=disk.trusted,
        limits={name: value for name in disk_config.LIMIT_NAMES if (value := getattr(disk.limits, name, 0))},
    )


def _vif_fields(vif: VifSpec, index: int) -> VifFields:
    strings = {
        "backend_domname": vif.backend,
        "model": vif.model,
        "ip": vif.ip,
        "bridge": vif.bridge,
        "ifname": vif.vifname,
        "script": vif.script,
        "gatewaydev": vif.gatewaydev,
    }
    nic = vif_config.read([f"rate={vif.rate}"] if vif.rate else []).fields
    nic.strings = {name: text for name, text in strings.items() if text}
    nic.devid = index if vif.devid < 0 else vif.devid
    nic.mtu = vif.mtu
    nic.nictype = {"vif": "vif", "ioemu": "vif_ioemu"}.get(vif.type, "")
    nic.trusted = vif.trusted
    if vif.mac:
        nic.mac = tuple(int(octet, 16) for octet in vif.mac.split(":"))
    return nic
