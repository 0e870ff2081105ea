"""The check of a domain from any source: a domain file, a request, another node or a save file.

Later code uses the texts of a spec as paths, as options of programs and as lines of xl's file. So these functions
refuse every text that a domain file could not contain, with a one-line error."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from veery.config import disk as disk_config
from veery.config import vif as vif_config
from veery.config import xlcfg
from veery.config.keys import KEYS, Use
from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec, VifSpec
from veery.model.volume import CarriedDisk

MOST_MEMORY = 1 << 24  # MiB
MOST_VCPUS = 512
MOST_DISKS = 128
MOST_VIFS = 64
LONGEST_TEXT = 4096  # characters: the longest path of Linux
LONGEST_PART = 240  # bytes of one name in a path: Linux allows 255, and an incomplete file has a longer name
LONGEST_CMDLINE = 64 << 10  # characters; kernels accept fewer
LONGEST_VALUE = 64 << 10  # characters of a setting that is kept for Xen
LARGEST_LUGGAGE = 256 << 10  # bytes
LARGEST_DISK = 1 << 60  # bytes
LARGEST_NUMBER = (1 << 63) - 1  # the largest integer of the store and the kernel
LONGEST_SHOWN = 60  # characters of a refused text that the message repeats

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOVE = re.compile(r"[0-9a-z]{1,32}")
_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INTERFACE = re.compile(r"(?!-)[^\s/,\x00-\x1f\x7f]{0,15}")
_WORD = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99})?")
_ADDRESSES = re.compile(r"[0-9A-Fa-f.:/ ]{0,1000}")
_MACHINE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FEATURE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
_CPU = re.compile(rf"{_FEATURE}(,([+-]{_FEATURE}|{_FEATURE}=[A-Za-z0-9_.-]{{1,64}})){{0,256}}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREADABLE = re.compile("[\x00\ud800-\udfff]")  # characters that program arguments and JSON cannot contain
_HINT = "a domain file cannot contain this value: see docs/domain-files.md"


def short(value: object) -> str:
    """Return `value` for an error message: quoted, in one line, of limited length."""
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def check_name(name: str) -> None:
    """Raise Refused unless `name` can name a domain: xm allowed it (tools/python/xen/xend/XendDomainInfo.py,
    check_name), and it does not look like a domid, a UUID or an option."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}", name):
        raise Refused(f"{short(name)} is not a valid domain name", hint="use up to 100 letters, digits and _ - . : +")
    if name.isdigit():
        raise Refused(f"the name {name} reads like a domid", hint="add a letter to it")
    if UUID.fullmatch(name.lower()):
        raise Refused(f"the name {name} reads like a UUID", hint="choose another name")
    if name == "Domain-0":
        raise Refused("the name Domain-0 is reserved for the machine itself", hint="choose another name")


def check_uuid(uuid: str) -> None:
    """Raise Refused unless `uuid` is a canonical UUID in lower case: it is used as a folder name."""
    if not UUID.fullmatch(uuid):
        raise Refused(f"{short(uuid)} is not a UUID", hint="write it in lower case with dashes, as uuidgen does")


def check_move(move: str) -> None:
    """Raise Refused unless `move` is the id of a move: it is used as a file name."""
    if not _MOVE.fullmatch(move):
        raise Refused(f"{short(move)} is not the id of a move", hint="veery moves shows the ids")


def check_text(what: str, text: str, longest: int = LONGEST_TEXT) -> None:
    """Raise Refused if `text` is too long or has a control character."""
    if len(text) > longest:
        raise Refused(f"{what} has {len(text)} characters, at most {longest} are allowed", hint="make it shorter")
    if bad := _CONTROL.search(text):
        raise Refused(f"{what} cannot contain {short(bad[0])}", hint=f"remove this character from {what}")


def check_path(what: str, path: str) -> None:
    """Raise Refused unless `path` is absolute, without `..`, control characters and names that are too long."""
    check_text(what, path)
    if any(len(part.encode()) > LONGEST_PART for part in path.split("/")):
        raise Refused(f"{what} has a name of more than {LONGEST_PART} bytes", hint="choose a shorter name")
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise Refused(f"{what} {short(path)} is not an absolute path", hint="give the absolute path, without ..")


def check_number(what: str, number: float, low: float, high: float) -> None:
    """Raise Refused unless `number` is from `low` to `high`. NaN is refused."""
    if not low <= number <= high:
        raise Refused(f"{what} must be from {low} to {high}, not {short(number)}", hint=f"choose another {what}")


def check_spec(spec: DomainSpec, *, settled: bool = False) -> DomainSpec:
    """Return `spec` if it is valid. With `settled` it must have a UUID, as a domain that has run. Raises Refused."""
    check_name(spec.name)
    if spec.uuid or settled:
        check_uuid(spec.uuid)
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        check_text(what, path)
    if len(spec.cmdline) > LONGEST_CMDLINE or _UNREADABLE.search(spec.cmdline):
        raise Refused(
            "the kernel's command line is too long or not valid text", hint="see root= and extra= in the file"
        )
    check_number("memory", spec.memory, 1, MOST_MEMORY)
    check_number("maxmem", spec.maxmem, 0, MOST_MEMORY)
    check_number("vcpus", spec.vcpus, 1, MOST_VCPUS)
    check_number("maxvcpus", spec.maxvcpus, 0, MOST_VCPUS)
    _check_count("disks", spec.disks, MOST_DISKS)
    _check_count("interfaces", spec.vifs, MOST_VIFS)
    for disk in spec.disks:
        check_disk(disk)
    for vif in spec.vifs:
        check_vif(vif)
    _check_once("disk", [disk_config.device_number(disk.vdev) for disk in spec.disks], [d.vdev for d in spec.disks])
    macs = [vif.mac for vif in spec.vifs if vif.mac]
    _check_once("mac", macs, macs)
    _check_once("key", [key for key, _ in spec.xl], [key for key, _ in spec.xl])
    for key, value in spec.xl:
        _check_setting(key, value)
    return spec


def check_disk(disk: DiskSpec) -> DiskSpec:
    """Return `disk` if a domain file can describe it. Raises Refused."""
    _check_texts(f"disk {short(disk.vdev)}", disk)
    if disk.volume and (not _VOLUME.fullmatch(disk.volume) or ".." in disk.volume):
        raise Refused(f"{short(disk.volume)} is not a valid volume name", hint="veery volume list shows the names")
    _check_program(disk.script)
    _check_word("backend", disk.backend)
    again = disk_config.parse_disk(disk_config.render_disk(disk))
    _check_same(f"disk {disk.vdev}", disk, again, ("vdev", "target", "volume", "backend", "backendtype", "script"))
    _check_same(f"disk {disk.vdev}", disk, again, ("specification", "limits"))
    return disk


def check_vif(vif: VifSpec) -> VifSpec:
    """Return `vif` if a domain file can describe it. Raises Refused."""
    _check_texts("an interface", vif)
    if vif.mac and not _MAC.fullmatch(vif.mac):
        raise Refused(f"invalid mac {short(vif.mac)}", hint="write mac=00:16:3e:xx:xx:xx in lower case")
    for what, name in (("bridge", vif.bridge), ("vifname", vif.vifname)):
        if not _INTERFACE.fullmatch(name) or name in (".", "..") or len(name.encode()) > 15:
            raise Refused(
                f"{what} {short(name)} is not an interface name", hint="up to 15 characters, no blank and no /"
            )
    _check_program(vif.script)
    for what, word in (("backend", vif.backend), ("model", vif.model), ("gatewaydev", vif.gatewaydev)):
        _check_word(what, word)
    if not _ADDRESSES.fullmatch(vif.ip):
        raise Refused(f"ip {short(vif.ip)} is not an address", hint="write ip=192.0.2.7")
    again, _ = vif_config.parse_vif(vif_config.render_vif(vif))
    texts = ("bridge", "mac", "vifname", "script", "ip", "backend", "type", "model", "gatewaydev", "mtu", "devid")
    _check_same("an interface", vif, again, texts)
    return vif


def check_luggage(raw: bytes) -> None:
    """Raise Refused unless `raw` (JSON) can be the cookie of a driver. The machine and processor are words to which no
    program option can be added. Numbers and lists have bounds."""
    if len(raw) > LARGEST_LUGGAGE:
        raise Refused(f"the driver's cookie has {len(raw)} bytes", hint="compare `veery version` on both nodes")
    try:
        build = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused("the driver's cookie is not JSON", hint="compare `veery version` on both nodes") from error
    for key, value in build.items() if isinstance(build, dict) else ():
        if key == "machine" and not (isinstance(value, str) and _MACHINE.fullmatch(value)):
            raise Refused(f"{short(value)} is not a machine type", hint="compare `veery version` on both nodes")
        if key == "cpu" and not (isinstance(value, str) and _CPU.fullmatch(value)):
            raise Refused(f"{short(value)} is not a processor model", hint="compare `veery version` on both nodes")
        if key == "memory" and isinstance(value, (int, float)):
            check_number("memory", value, 1, MOST_MEMORY)
        if key == "ports" and isinstance(value, (int, float)):
            check_number("ports", value, 0, MOST_DISKS + MOST_VIFS)
        for slot in _leaves(value) if key == "slots" else ():
            if isinstance(slot, (int, float)):
                check_number("slots", slot, 0, MOST_DISKS + MOST_VIFS)
    for value in _leaves(build):
        if isinstance(value, str):
            check_text("the driver's cookie", value)
        elif isinstance(value, (int, float)):
            check_number("a number in the driver's cookie", value, -LARGEST_NUMBER, LARGEST_NUMBER)


def check_carried(disks: Collection[CarriedDisk], spec: DomainSpec | None = None) -> None:
    """Raise Refused unless `disks` can move with a domain. With `spec` they must be disks of that domain."""
    _check_count("disks that move", disks, MOST_DISKS)
    known = None if spec is None else {disk.vdev for disk in spec.disks}
    for disk in disks:
        if disk_config.device_number(disk.vdev) is None or (known is not None and disk.vdev not in known):
            raise Refused(
                f"{short(disk.vdev)} is not a disk of the domain", hint="compare `veery version` on both nodes"
            )
        check_path(f"the path of {disk.vdev}", disk.path)
        if disk.target:
            check_path(f"the path of {disk.vdev}", disk.target)
        check_number(f"the size of {disk.vdev}", disk.size, 0, LARGEST_DISK)
        check_number(f"the size of {disk.vdev}", disk.allocated, 0, LARGEST_DISK)
        check_number(f"the inode of {disk.vdev}", disk.inode, 0, (1 << 64) - 1)
    _check_once("disk", [disk.vdev for disk in disks], [disk.vdev for disk in disks])


def _check_count(what: str, items: Collection[Any], most: int) -> None:
    if len(items) > most:
        raise Refused(f"{len(items)} {what} are too many", hint=f"a domain has at most {most}")


def _check_once(what: str, values: list[Any], shown: list[str]) -> None:
    for value, text in zip(values, shown, strict=True):
        if values.count(value) > 1:
            raise Refused(f"{what} {short(text)} appears twice", hint=f"give each {what} once")


def _check_texts(what: str, value: DiskSpec | VifSpec) -> None:
    for field in dataclasses.fields(value):
        text = getattr(value, field.name)
        if isinstance(text, str):
            check_text(f"{field.name} of {what}", text)


def _check_same(what: str, one: object, again: object, names: tuple[str, ...]) -> None:
    """Raise Refused if a field differs after rendering and parsing: it then contains more than its own value."""
    for name in names:
        if getattr(one, name) != getattr(again, name):
            raise Refused(f"{name} of {what} cannot be {short(getattr(one, name))}", hint=_HINT)


def _check_word(what: str, text: str) -> None:
    if not _WORD.fullmatch(text):
        raise Refused(f"{what} cannot be {short(text)}", hint="use letters, digits and _ - . : +")


def _check_program(script: str) -> None:
    """Check a hotplug script. xl takes it from /etc/xen/scripts or by its absolute path, and runs it as root."""
    if script.startswith("-") or ".." in PurePosixPath(script).parts:
        raise Refused(f"script cannot be {short(script)}", hint="give a file in /etc/xen/scripts, or an absolute path")


def _check_setting(key: str, value: str) -> None:
    """Check a setting that is kept for Xen. It becomes one line of xl's file, so it must be exactly this setting."""
    known = KEYS.get(key)
    if known is None or (known.use not in (Use.XEN, Use.BOOTLOADER) and key != "firmware"):
        raise Refused(f"{short(key)} is not a setting that is kept for Xen", hint=_HINT)
    check_text(key, value, LONGEST_VALUE)
    settings = xlcfg.parse(f"{key} = {value}\n", key)
    if [setting.name for setting in settings] != [key] or settings[0].added:
        raise Refused(f"{short(value)} is not a value for {key}", hint=_HINT)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
