"""Disk specs: xl-disk-configuration(5), positional and keyed, as in Xen 4.17's xl, and veery's own keys.

The own keys are `volume=NAME` and the limits `bps=`, `iops=` and their `_rd` and `_wr`, which are those of QEMU.

A spec is scanned as libxlu scans it (tools/libs/util/libxlu_disk_l.l): at each position the rule that matches most
text wins, on a tie the earlier rule. The scanner keeps xl's oddities, because scripts and files rely on them.

`volume=NAME` replaces the target and the format. The positional values after it are the vdev and the access, as
after the old prefix `file:`. `read` returns all that xl would know of a disk (the dry run prints it), `parse_disk` a
DiskSpec, and `render_disk` a spec again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from veery.errors import Refused
from veery.model.domain import DiskFormat, DiskLimits, DiskSpec

_FORMATS = {"": "raw", **{name: name for name in ("raw", "qcow", "qcow2", "vhd", "empty", "qed")}}
_BACKENDS = ("phy", "tap", "qdisk", "standalone")
_SPECIFICATIONS = ("xen", "virtio")
LIMIT_NAMES = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
KEY_NAMES = (
    *("access", "backend", "backendtype", "cdrom", "devtype", "direct-io-safe", "discard", "format", "no-discard"),
    *("script", "specification", "target", "trusted", "untrusted", "vdev", "volume", *LIMIT_NAMES),
)
LEAST_BPS = 4096  # bytes per second: a lower value is a mistake in the unit, and no guest boots with it
MOST_A_SECOND = 10**15  # QEMU's own limit of both (block/throttle-groups.c, THROTTLE_VALUE_MAX)
_WAYS = ("_rd", "_wr")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(slots=True)
class DiskFields:
    """libxl_device_disk as xl fills it (libxl_types.idl). Fields that the spec does not set are "" or None."""

    backend_domname: str | None = None
    pdev_path: str | None = None
    volume: str | None = None
    vdev: str | None = None
    backend: str = ""
    format: str = ""
    script: str | None = None
    removable: bool = False
    readwrite: bool = True
    is_cdrom: bool = False
    direct_io_safe: bool = False
    discard_enable: bool | None = None
    specification: str = ""
    colo_enable: bool | None = None
    colo_host: str | None = None
    colo_port: int = 0
    colo_export: str | None = None
    active_disk: str | None = None
    hidden_disk: str | None = None
    trusted: bool | None = None
    limits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error that xl finds: xl's message, the text near it (None: the whole spec), its offset, and the spec."""

    what: str
    near: str | None
    offset: int
    spec: str


@dataclass(slots=True)
class DiskReading:
    """The result of reading specs: the disk, and complaints (xl exits 1 if there are any). `jammed`: instead of the
    last complaint, xl's scanner prints "flex scanner jammed" and exits 2."""

    fields: DiskFields = field(default_factory=DiskFields)
    complaints: list[Complaint] = field(default_factory=list)
    jammed: bool = False


class _Scanner:
    """The state while one disk is read from one or several specs."""

    def __init__(self) -> None:
        self.reading = DiskReading()
        self.disk = self.reading.fields
        self.access_set = False
        self.format_given = False  # set by a deprecated prefix or by volume=: no positional format follows
        self.spec = ""
        self.offset = 0

    def complain(self, what: str, near: str | None) -> None:
        self.reading.complaints.append(Complaint(what, near, self.offset, self.spec))

    def scan(self, spec: str) -> None:
        """Read `spec` and add it to the disk."""
        self.spec, self.offset = spec, 0
        while self.offset < len(spec):
            length, text, action = 0, "", None
            longest = 0
            for pattern, candidate in _RULES:
                match = pattern.match(spec, self.offset)
                if match and match.end() - self.offset > longest:
                    longest = match.end() - self.offset
                    text, action = match["text"], candidate
                    length = len(text)
            if action is None:
                return self.bad_syntax()
            if not action(self, text):
                return None
            self.offset += length
        return None

    def bad_syntax(self) -> None:
        """Complain of the rest of the line, as libxlu's LEXERR state does. It overlooks a character that ends the spec,
        and flex itself gives up before a newline."""
        rest = self.spec[self.offset :].split("\n", 1)[0]
        if self.spec.startswith("\n", self.offset + 1):
            self.reading.jammed = True
        if len(rest) > 1 or self.reading.jammed:
            self.complain("bad disk syntax", rest)

    # ---- actions of the rules; False ends the scan of this spec

    def text_field(self, name: str, label: str, value: str) -> bool:
        if getattr(self.disk, name):
            self.complain(f"{label} respecified", value)
        else:
            setattr(self.disk, name, value)
        return True

    def choice(self, name: str, value: str, near: str) -> bool:
        if getattr(self.disk, name) not in ("", value):
            self.complain(f"{name} respecified", near)
        else:
            setattr(self.disk, name, value)
        return True

    def flag(self, name: str, value: bool) -> bool:
        setattr(self.disk, name, value)
        return True

    def set_format(self, value: str) -> bool:
        if value in _FORMATS:
            return self.choice("format", _FORMATS[value], value)
        return self.wrong("unknown value for format", value)

    def set_access(self, value: str) -> bool:
        if value in ("r", "ro", "rw", "w", ""):
            return self.flag("readwrite", value not in ("r", "ro"))
        return self.wrong("unknown value for access", value)

    def set_backend(self, value: str) -> bool:
        return (
            self.choice("backend", value, value)
            if value in _BACKENDS
            else self.wrong("unknown value for backendtype", value)
        )

    def set_specification(self, value: str) -> bool:
        if value in _SPECIFICATIONS:
            return self.choice("specification", value, value)
        return self.wrong("unknown value for specification", value)

    def set_colo_port(self, value: str) -> bool:
        port = c_int(value)
        if not port:
            return self.wrong("unknown value for colo_port", value)
        self.disk.colo_port = port
        return True

    def set_volume(self, value: str) -> bool:
        self.format_given = True
        if not value:
            return self.wrong("volume without a name", None)
        if self.disk.pdev_path is None:
            self.disk.pdev_path = ""
        return self.text_field("volume", "volume", value)

    def set_limit(self, name: str, value: str) -> bool:
        number = _a_second(name, value)
        if number is None:
            return self.wrong(f"unfit value for {name}", value)
        if self.disk.limits.get(name, number) != number:
            return self.wrong(f"{name} respecified", value)
        self.disk.limits[name] = number
        return True

    def wrong(self, what: str, near: str | None) -> bool:
        self.complain(what, near)
        return True

    def stop(self, what: str, near: str) -> bool:
        self.complain(what, near)
        return False

    def set_prefix(self, text: str) -> bool:
        self.format_given = True
        prefix = text.removesuffix(":")
        if prefix in ("raw", "qcow", "qcow2", "vhd"):
            return self.set_format(prefix)
        if prefix in ("iscsi", "nbd", "enbd", "drbd"):
            return self.text_field("script", "script", f"block-{prefix}")
        return True

    def positional(self, text: str) -> bool:
        value = text.removesuffix(",")
        disk = self.disk
        if self.reading.complaints:
            return True
        if disk.pdev_path is None:
            return self.text_field("pdev_path", "target", value)
        if not self.format_given and not disk.format:
            if not disk.pdev_path and self.vdev_and_type(value):
                disk.format = "empty"
                return True
            return self.set_format(value)
        if disk.vdev is None:
            return self.vdev_and_type(value) or self.text_field("vdev", "vdev", value)
        if not self.access_set:
            self.access_set = True
            return self.set_access(value)
        return self.stop("too many positional parameters", value)

    def vdev_and_type(self, value: str) -> bool:
        """Read the old positional form VDEV:TYPE. Returns False if `value` has no colon."""
        vdev, colon, kind = value.rpartition(":")
        if not colon:
            return False
        self.text_field("vdev", "vdev", vdev)
        if kind in ("cdrom", "disk"):
            self.disk.is_cdrom = kind == "cdrom"
        else:
            self.complain("unknown deprecated type", kind)
        return True

    def finish(self) -> DiskReading:
        """Check the whole disk, as xlu_disk_parse does."""
        disk = self.disk
        if self.reading.complaints:
            return self.reading
        disk.format = disk.format or "raw"
        if disk.is_cdrom:
            disk.removable, disk.readwrite = True, False
            if not disk.pdev_path and not disk.volume:
                disk.format = "empty"
        self.offset = 0
        if disk.vdev is None:
            self.complain("no vdev specified", None)
        elif disk.pdev_path is None and not disk.removable:
            self.complain("no target specified (and device not removable)", None)
        elif disk.volume and disk.pdev_path:
            self.complain("volume and target exclude each other", None)
        elif disk.volume and disk.format != "raw":
            self.complain("a volume's format is raw", None)
        elif disk.volume and (disk.script or disk.backend_domname):
            self.complain("volume excludes script and backend", None)
        elif disk.limits and disk.is_cdrom:
            self.complain("a CD-ROM drive has no limits", None)
        elif any(f"{name}{way}" in disk.limits for name in ("bps", "iops") if name in disk.limits for way in _WAYS):
            self.complain("a limit of both ways excludes one of either", None)
        return self.reading


_Action = Callable[[_Scanner, str], bool]


def _valued(key: str, action: _Action) -> tuple[re.Pattern[str], _Action]:
    return re.compile(f"(?P<text>{key}=[^,]*,?)"), lambda scan, text: action(
        scan, text[len(key) + 1 :].removesuffix(",")
    )


def _limit(name: str) -> tuple[re.Pattern[str], _Action]:
    return _valued(name, lambda scan, value: scan.set_limit(name, value))


def _text(key: str, name: str) -> tuple[re.Pattern[str], _Action]:
    return _valued(key, lambda scan, value: scan.text_field(name, key, value))


def _word(key: str, name: str, value: bool) -> tuple[re.Pattern[str], _Action]:
    return re.compile(f"(?P<text>{key},?)"), lambda scan, _: scan.flag(name, value)


def _plain(pattern: str, action: _Action) -> tuple[re.Pattern[str], _Action]:
    return re.compile(pattern), action


# The rules in libxlu's order, which decides ties. A pattern's group `text` is consumed; what stands after it counts
# for the length of the match only (flex's trailing context).
_RULES: tuple[tuple[re.Pattern[str], _Action], ...] = (
    _plain(r"(?P<text>[ \t\n]+)(?:[^ \t\n].*)?", lambda scan, _: True),
    _valued("format", _Scanner.set_format),
    _word("cdrom", "is_cdrom", True),
    _word("devtype=cdrom", "is_cdrom", True),
    _word("devtype=disk", "is_cdrom", False),
    _plain(r"(?P<text>devtype=[^,]*,?)", lambda scan, text: scan.wrong("unknown value for type", text)),
    _valued("access", _Scanner.set_access),
    _text("backend", "backend_domname"),
    _valued("backendtype", _Scanner.set_backend),
    _valued("specification", _Scanner.set_specification),
    _text("vdev", "vdev"),
    _text("script", "script"),
    _valued("volume", _Scanner.set_volume),
    *map(_limit, LIMIT_NAMES),
    _word("direct-io-safe", "direct_io_safe", True),
    _word("discard", "discard_enable", True),
    _word("no-discard", "discard_enable", False),
    _word("colo", "colo_enable", True),
    _word("no-colo", "colo_enable", False),
    _text("colo-host", "colo_host"),
    _valued("colo-port", _Scanner.set_colo_port),
    _text("colo-export", "colo_export"),
    _text("active-disk", "active_disk"),
    _text("hidden-disk", "hidden_disk"),
    _word("trusted", "trusted", True),
    _word("untrusted", "trusted", False),
    _plain(
        r"(?P<text>target=.*)",
        lambda scan, text: scan.text_field("pdev_path", "target", text[len("target=") :].removesuffix(",")),
    ),
    _plain(r"(?P<text>[a-z][-a-z0-9]*=[^,],?)", lambda scan, text: scan.wrong("unknown parameter", text)),
    _plain(r"(?P<text>(?:raw|qcow2?|vhd|iscsi|e?nbd|drbd|tapdisk|tap2?|aio|ioemu|file|phy):).*", _Scanner.set_prefix),
    _plain(
        r"(?P<text>[a-z][a-z0-9]*:)(?:[^a-z0-9].*)?",
        lambda scan, text: scan.stop("unknown deprecated disk prefix", text),
    ),
    _plain(r"(?P<text>[^=,]*,|[^=,]+,?)", _Scanner.positional),
)


def _a_second(name: str, text: str) -> int | None:
    """Return the number of a limit; None if it is invalid. Bytes can have the units K, M and G."""
    match = re.fullmatch(r"([0-9]{1,16})([KMG]?)", text, re.ASCII)
    in_bytes = name.startswith("bps")
    if match is None or (match[2] and not in_bytes):
        return None
    number = int(match[1]) * _UNITS[match[2]]
    return number if (LEAST_BPS if in_bytes else 1) <= number <= MOST_A_SECOND else None


def c_int(text: str) -> int:
    """Return C's atoi of `text`: leading blanks, a sign, digits; the rest is ignored; 32 bits."""
    match = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", text, re.ASCII)
    value = max(-(1 << 63), min(int(match[1][:40]), (1 << 63) - 1)) if match else 0
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def read(specs: Sequence[str]) -> DiskReading:
    """Read one disk from `specs`, which add to each other, as in `xl block-attach DOMAIN SPEC...`."""
    scanner = _Scanner()
    for spec in specs:
        scanner.scan(spec)
        if scanner.reading.complaints:
            return scanner.reading
    return scanner.finish()


def device_number(vdev: str) -> int | None:
    """Return Xen's number of `vdev` (xen-vbd-interface(7)): xvda, hda, sda, d0p1 or the number itself. None if it is
    none of them."""
    match = re.fullmatch(r"(xvd|hd|sd)([a-z]{1,7})([1-9][0-9]{0,3})?", vdev)
    if match:
        letters = 0
        for letter in match[2]:
            letters = letters * 26 + ord(letter) - ord("a") + 1
        return _numbered(match[1], letters - 1, int(match[3] or 0))
    match = re.fullmatch(r"d([0-9]{1,7})p([0-9]{1,3})", vdev) or re.fullmatch(r"d([0-9]{1,7})(?!p)", vdev)
    if match:
        return _numbered("xvd", int(match[1]), int(match[2]) if match.lastindex == 2 else 0)
    if re.fullmatch(r"0x[0-9a-fA-F]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9}", vdev):
        number = int(vdev, 8 if re.fullmatch(r"0[0-7]+", vdev) else 0)
        return number if number < 1 << 31 else None
    return None


def _numbered(kind: str, disk: int, partition: int) -> int | None:
    if kind == "xvd" and disk < 1 << 20 and partition < 256:
        if disk < 16 and partition < 16:
            return 202 << 8 | disk << 4 | partition
        return 1 << 28 | disk << 8 | partition
    if kind == "hd" and disk < 4 and partition < 64:
        return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if kind == "sd" and disk < 16 and partition < 16:
        return 8 << 8 | disk << 4 | partition
    return None


def parse_disk(*specs: str) -> DiskSpec:
    """Return one disk from one spec or several (as in `block-attach`). Raises Refused; the message has no position.

    Besides the checks of xl's parser, this refuses what libxl would refuse later: a vdev without a Xen number, and an
    empty drive that is not a CD-ROM.
    """
    reading = read(specs)
    if reading.complaints:
        complaint = reading.complaints[0]
        raise Refused(_what(complaint), hint=hint_for(complaint))
    disk = reading.fields
    bad = re.search("[\x00-\x1f\x7f\ud800-\udfff]", "".join(specs))
    if bad:
        raise Refused(f"a disk spec cannot contain {bad[0]!r}", hint="remove it")
    if disk.colo_enable or any((disk.colo_host, disk.colo_port, disk.colo_export, disk.active_disk, disk.hidden_disk)):
        raise Refused("COLO disks are not supported", hint="remove the colo keys from the disk spec")
    vdev = disk.vdev or ""
    if device_number(vdev) is None:
        raise Refused(f"{vdev!r} is not a disk name", hint="name the disk xvda, xvdb, ... (vdev=xvda)")
    if not disk.pdev_path and not disk.volume and not disk.is_cdrom:
        raise Refused(
            f"disk {vdev} has no target", hint="give a file or device (target=/path) or a volume (volume=NAME)"
        )
    return DiskSpec(
        vdev=vdev,
        target=disk.pdev_path or "",
        volume=disk.volume or "",
        format=DiskFormat(disk.format),
        readwrite=disk.readwrite,
        cdrom=disk.is_cdrom,
        removable=disk.removable,
        backend=disk.backend_domname or "",
        backendtype=disk.backend,
        script=disk.script or "",
        direct_io_safe=disk.direct_io_safe,
        discard=disk.discard_enable,
        specification=disk.specification,
        trusted=disk.trusted,
        limits=DiskLimits(**disk.limits) if disk.limits else None,
    )


def _what(complaint: Complaint) -> str:
    near = f": {complaint.near!r}" if complaint.near is not None else ""
    return f"{complaint.what}{near} in disk {complaint.spec!r}"


def hint_for(complaint: Complaint) -> str:
    """Return the hint for a complaint: what to write instead."""
    if complaint.what.startswith("unfit value for "):
        return f"bps=20M: bytes per second, at least {LEAST_BPS}, with K, M or G; iops=500: operations per second"
    hints = {
        "a CD-ROM drive has no limits": "remove bps and iops: they are for disks",
        "a limit of both ways excludes one of either": "write bps=, or bps_rd= and bps_wr=; the same for iops",
        "unknown value for format": "formats are " + " ".join(name for name in _FORMATS if name),
        "unknown value for access": "access is r or w",
        "unknown value for backendtype": "backend types are " + " ".join(_BACKENDS),
        "unknown value for specification": "specifications are " + " ".join(_SPECIFICATIONS),
        "unknown value for type": "device types are disk and cdrom",
        "unknown deprecated type": "device types are disk and cdrom",
        "unknown parameter": "keys are " + " ".join(KEY_NAMES),
        "no vdev specified": "give the name that the guest sees: vdev=xvda",
        "unknown deprecated disk prefix": "write target=PATH as the last key; there a path can contain colons",
        "bad disk syntax": "write keys as vdev=xvda,format=raw,target=/path; a target with = or , needs target=",
        "too many positional parameters": "TARGET,FORMAT,VDEV,ACCESS are positional; write the rest as key=value",
        "volume without a name": "volume=NAME; veery volume list shows the names",
        "volume and target exclude each other": "give a volume or a target, not both",
    }
    return hints.get(complaint.what, "xl-disk-configuration(5) describes the spec")


def render_disk(disk: DiskSpec) -> str:
    """Return a spec that `parse_disk` reads back as `disk`. The target is last, where it can contain any character but
    control characters."""
    implied = disk.volume or (disk.cdrom and not disk.target)
    parts = [] if implied else [f"format={disk.format}"]
    parts.append(f"vdev={disk.vdev}")
    parts.append("devtype=cdrom" if disk.cdrom else f"access={'rw' if disk.readwrite else 'ro'}")
    named = (
        ("backendtype", disk.backendtype),
        ("backend", disk.backend),
        ("script", disk.script),
        ("specification", disk.specification),
        ("volume", disk.volume),
    )
    parts += [f"{key}={value}" for key, value in named if value]
    limits = [(name, getattr(disk.limits, name, 0)) for name in LIMIT_NAMES]
    parts += [f"{name}={value}" for name, value in limits if value]
    flags = (
        ("direct-io-safe", disk.direct_io_safe),
        ("discard", disk.discard is True),
        ("no-discard", disk.discard is False),
        ("trusted", disk.trusted is True),
        ("untrusted", disk.trusted is False),
    )
    parts += [word for word, said in flags if said]
    if disk.target or not (disk.volume or disk.cdrom):
        parts.append(f"target={disk.target}" + ("," if disk.target.endswith(",") else ""))
    return ",".join(parts)
