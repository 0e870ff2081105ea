"""Conversion of domain files to DomainSpecs and back: the meaning of each key of xl.cfg(5) in veery."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from veery.config import disk as disk_config
from veery.config import vif as vif_config
from veery.config import xlcfg
from veery.config.check import MOST_MEMORY, MOST_VCPUS, UUID, check_name, check_spec
from veery.config.cpus import check_cpus
from veery.config.keys import KEYS, Key, Kind, Use, is_strange, suggestion
from veery.config.xlcfg import Atom, Config, Items, Position, Setting, Value
from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec, DomainType, OnEvent, VifSpec

FOLDERS = (Path(), Path("/etc/xen"))  # xm's search path of a bare name
DEFAULT_MEMORY = 128  # MiB, xm's default
LARGEST_FILE = 1 << 20  # bytes
MOST_NAMED = 8  # keys in one warning

_EVENTS = ("on_poweroff", "on_reboot", "on_crash", "on_watchdog", "on_soft_reset")
_SECRET = frozenset({"vncpasswd", "spicepasswd"})
_PASSWORD = re.compile(r"""(vncpasswd|spicepasswd|password)=[^,"'\]]*""")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The domain of a file, the warnings for the user ("FILE:LINE:COLUMN: ..."), and the keys that the file sets."""

    spec: DomainSpec
    warnings: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()


def find_domain_file(name: str, folders: Iterable[Path | str] = FOLDERS) -> Path:
    """Return the file of `create NAME`: NAME as a path, or a bare NAME in one of the folders. Raises Refused."""
    searched = [Path(name)] if "/" in name else [Path(folder) / name for folder in folders]
    for path in searched:
        if path.is_file() or path == Path("/dev/null"):
            return path
    if "/" in name:
        raise Refused(f"no domain file {name}", hint="give the path of a file in xl.cfg(5)'s syntax")
    there = sorted({entry.name for path in searched if path.parent.is_dir() for entry in path.parent.iterdir()})
    close = difflib.get_close_matches(name, there, 1, 0.75)
    places = " or ".join(str(path.parent) for path in searched)
    hint = f"did you mean {close[0]}?" if close else "give the path of a file in xl.cfg(5)'s syntax"
    raise Refused(f"no domain file {name!r} in {places}", hint=hint)


def load_domain(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Return the domain of file `path`, with `key=value` settings of the command line added. Raises Refused."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint="give the path of a file in xl.cfg(5)'s syntax") from error
    if len(data) > LARGEST_FILE:
        raise Refused(f"{path}: larger than any domain file", hint="is it a disk image?")
    return parse_domain(data.decode("utf-8", "surrogateescape"), str(path), overrides)


def parse_domain(text: str, filename: str, overrides: Sequence[str] = ()) -> Loaded:
    """Return the domain that `text` describes. Raises Refused("FILE:LINE:COLUMN: what") with a hint."""
    reader = _Reader(xlcfg.read(text, filename, overrides, strangers=is_strange))
    spec = reader.domain()
    try:
        check_spec(spec)
    except Refused as error:
        reader.start.refuse(error.message, error.hint)
    return Loaded(spec, tuple(reader.warnings), frozenset(reader.config.settings))


def without_secrets(spec: DomainSpec) -> DomainSpec:
    """Return `spec` without the passwords of its screens, for display."""
    kept = ((key, value) for key, value in spec.xl if key not in _SECRET)
    return replace(spec, xl=tuple((key, _PASSWORD.sub(r"\1=", value)) for key, value in kept))


class _Reader:
    """The state while one domain file is converted to a spec."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.kept: list[tuple[str, str]] = []
        self.ignored: list[Setting] = []
        self.strange: list[Setting] = []

    # ---- the whole

    def domain(self) -> DomainSpec:
        for repeated in self.config.repeated:
            self.warn(repeated.at, f"{repeated.name} is set again below; the last value applies")
        for setting in self.config.settings.values():
            self.admit(setting)
        self.warn_of_ignored()
        kind = self.type()
        memory = self.number("memory", 1, MOST_MEMORY)
        if memory is None:
            memory = DEFAULT_MEMORY
            self.warn(self.start, f"memory is not given: the domain gets {memory} MiB")
        vcpus = self.number("vcpus", 1, MOST_VCPUS) or 1
        return DomainSpec(
            name=self.name(),
            uuid=self.uuid(),
            type=kind,
            kernel=self.kernel(kind),
            ramdisk=self.text("ramdisk"),
            cmdline=self.cmdline(),
            memory=memory,
            maxmem=self.at_least("maxmem", memory, "memory", MOST_MEMORY),
            vcpus=vcpus,
            maxvcpus=self.at_least("maxvcpus", vcpus, "vcpus", MOST_VCPUS),
            disks=self.disks(),
            vifs=self.vifs(),
            xl=tuple(self.kept),
            **self.events(),
        )

    def admit(self, setting: Setting) -> None:
        """Check a setting: its key and the kind of its value. Note its warnings. Raises Refused."""
        name = setting.name
        key = KEYS.get(name)
        if key is None and not re.fullmatch(r"[a-z][._0-9a-z]*", name):
            self.strange.append(setting)
            return
        if key is None:
            close = suggestion(name)
            setting.at.refuse(f"unknown key {name!r}", f"did you mean {close}?" if close else "remove it")
        _check_kind(setting, key)
        if key.use is Use.REFUSED and not _empty(setting.value):
            if name == "firmware" and self.type() is DomainType.HVM:
                key = Key(key.kind, Use.XEN)
            else:
                setting.at.refuse(f"{name} is not supported: {key.why}", key.instead)
        if name in ("cpus", "cpus_soft"):
            check_cpus(setting)
        if key.use is Use.XEN or (key.use is Use.BOOTLOADER and not _empty(setting.value)):
            self.kept.append((name, render_value(setting.value)))
        elif key.use is Use.IGNORED:
            self.ignored.append(setting)
        elif key.use is Use.USED and key.why:
            self.warn(setting.at, f"{name}: {key.why}; {key.instead}")

    def warn_of_ignored(self) -> None:
        """Warn of all keys that no driver carries out in one line, and of other programs' keys in one line."""
        if self.strange:
            shown = ", ".join(setting.name[:40] for setting in self.strange[:MOST_NAMED])
            more = f" and {len(self.strange) - MOST_NAMED} more" if len(self.strange) > MOST_NAMED else ""
            self.warn(self.strange[0].at, f"{shown}{more}: ignored, as by xm: keys of another program")
        if not self.ignored:
            return
        names = [setting.name for setting in self.ignored]
        reasons = dict.fromkeys(KEYS[name].why for name in names)
        advice = dict.fromkeys(KEYS[name].instead for name in names if KEYS[name].instead)
        verb = "is" if len(names) == 1 else "are"
        self.warn(self.ignored[0].at, f"{', '.join(names)} {verb} ignored: {'; '.join((*reasons, *advice))}")

    @property
    def start(self) -> Position:
        return Position(self.config.source, 1, 1)

    def warn(self, at: Position, what: str) -> None:
        self.warnings.append(f"{at}: {what}")

    # ---- values by key

    def atom(self, name: str) -> Atom | None:
        setting = self.config.settings.get(name)
        return setting.value if setting and isinstance(setting.value, Atom) else None

    def text(self, name: str) -> str:
        atom = self.atom(name)
        return atom.text if atom else ""

    def number(self, name: str, low: int, high: int) -> int | None:
        setting = self.config.settings.get(name)
        if setting is None:
            return None
        value = _number(setting)
        if not low <= value <= high:
            setting.value.at.refuse(f"{name} must be from {low} to {high}, not {value}", _HINTS.get(name, ""))
        return value

    def at_least(self, name: str, least: int, of: str, high: int) -> int:
        """Return number `name`, 0 if it is not given. Raises Refused if less than `least`, the value of key `of`."""
        value = self.number(name, 1, high)
        if value is not None and value < least:
            at = self.config.settings[name].value.at
            at.refuse(f"{name} {value} is less than {of} {least}", f"raise {name} or lower {of}")
        return value or 0

    def checked(self, atom: Atom) -> str:
        bad = re.search("[\x00-\x1f\x7f]", atom.text)
        if bad:
            atom.inside(bad.start()).refuse(f"{bad[0]!r} is not allowed here", "remove it")
        return atom.text

    def name(self) -> str:
        atom = self.atom("name")
        if atom is None:
            self.start.refuse("name is missing", 'add a line such as: name = "busybox"')
        try:
            check_name(atom.text)
        except Refused as error:
            atom.at.refuse(error.message, error.hint)
        return atom.text

    def uuid(self) -> str:
        atom = self.atom("uuid")
        if atom is None:
            return ""
        if not UUID.fullmatch(atom.text.lower()):
            atom.at.refuse(f"{atom.text!r} is not a UUID", "uuidgen prints one; or remove uuid")
        return atom.text.lower()

    def type(self) -> DomainType:
        atom, builder = self.atom("type"), self.atom("builder")
        kinds = {kind.value: kind for kind in DomainType}
        builders = {"hvm": DomainType.HVM, "generic": DomainType.PV, "linux": DomainType.PV}
        if atom and atom.text not in kinds:
            atom.at.refuse(f"{atom.text!r} is not a domain type", "types are pv, pvh and hvm")
        if builder and builder.text not in builders:
            builder.at.refuse(f"{builder.text!r} is not a builder", "remove builder and write type=")
        if atom and builder and kinds[atom.text] is not builders[builder.text]:
            builder.at.refuse(f"builder {builder.text!r} contradicts type {atom.text!r}", "remove builder")
        if atom:
            return kinds[atom.text]
        return builders[builder.text] if builder else DomainType.PV

    def kernel(self, kind: DomainType) -> str:
        atom = self.atom("kernel")
        path = self.checked(atom) if atom else ""
        if atom and kind is DomainType.HVM and Path(path).name == "hvmloader":
            self.warn(atom.at, "kernel hvmloader is ignored, as by xl: it is the firmware of an hvm domain")
            path = ""
        if not path and kind is not DomainType.HVM and not self.text("bootloader"):
            at = atom.at if atom else self.start
            at.refuse(f"kernel is missing: a {kind} domain needs one", 'add: kernel = "/boot/vmlinuz-..."')
        return path

    def cmdline(self) -> str:
        """Return the kernel's command line, joined as by xl's parse_cmdline."""
        cmdline, root, extra = (self.atom(name) for name in ("cmdline", "root", "extra"))
        if cmdline:
            for other in (root, extra):
                if other:
                    self.warn(other.at, "root= and extra= are ignored in favour of cmdline=")
            return cmdline.text
        if root:
            return f"root={root.text} {extra.text}" if extra else f"root={root.text}"
        return extra.text if extra else ""

    def events(self) -> dict[str, OnEvent]:
        actions = {action.value: action for action in OnEvent}
        found = {}
        for name in ("on_shutdown", *_EVENTS):
            atom = self.atom(name)
            if atom is None:
                continue
            if atom.text not in actions:
                atom.at.refuse(f"{atom.text!r} is not an action for {name}", "actions are " + " ".join(actions))
            found["on_poweroff" if name == "on_shutdown" else name] = actions[atom.text]
        return found

    def entries(self, name: str) -> list[Atom]:
        setting = self.config.settings.get(name)
        values = setting.value.values if setting and isinstance(setting.value, Items) else ()
        for value in values:
            if isinstance(value, Items):
                value.at.refuse(f"{name} cannot contain a list", f"write {name} = [ '...', '...' ]")
        return [value for value in values if isinstance(value, Atom)]

    def disks(self) -> tuple[DiskSpec, ...]:
        found: dict[int | None, DiskSpec] = {}
        for atom in self.entries("disk"):
            complaints = disk_config.read([atom.text]).complaints
            at = atom.inside(complaints[0].offset) if complaints else atom.at
            try:
                disk = disk_config.parse_disk(atom.text)
            except Refused as error:
                at.refuse(error.message, error.hint)
            number = disk_config.device_number(disk.vdev)
            if number in found:
                at.refuse(f"disk {disk.vdev} appears twice", "give each disk its own vdev: xvda, xvdb, ...")
            found[number] = disk
        return tuple(found.values())

    def vifs(self) -> tuple[VifSpec, ...]:
        found: list[VifSpec] = []
        for atom in self.entries("vif"):
            try:
                vif, warnings = vif_config.parse_vif(atom.text)
            except Refused as error:
                atom.at.refuse(error.message, error.hint)
            for warning in warnings:
                self.warn(atom.at, warning)
            if vif.mac and vif.mac in (other.mac for other in found):
                atom.at.refuse(f"mac {vif.mac} appears twice", "give each interface its own MAC, or none")
            found.append(vif)
        unfiltered = self.unfiltered(len(found))
        return tuple(replace(vif, filtered=number not in unfiltered) for number, vif in enumerate(found))

    def unfiltered(self, many: int) -> set[int]:
        """Return the numbers of the interfaces, of `many`, that may send from any MAC and address."""
        found = set()
        for atom in self.entries("vif_unfiltered"):
            if not re.fullmatch("[0-9]{1,4}", atom.text, re.ASCII) or int(atom.text) >= many:
                hint = "the first interface in vif= is 0: vif_unfiltered = [ 0 ]"
                atom.at.refuse(f"vif= has no interface {atom.text[:40]!r}", hint)
            found.add(int(atom.text))
        return found


_HINTS = {
    "memory": "memory is in MiB, written as a plain number: memory = 512",
    "maxmem": "maxmem is in MiB, written as a plain number: maxmem = 1024",
    "vcpus": "write vcpus = 1",
    "maxvcpus": "write maxvcpus = 2",
}


def _number(setting: Setting) -> int:
    """Return the number as C's strtol reads it in base 0: 010 is octal, 0x10 is hexadecimal. Quotes are allowed."""
    hint = _HINTS.get(setting.name, f"write {setting.name} = 1")
    if not isinstance(setting.value, Atom):
        setting.value.at.refuse(f"{setting.name} must be a number", hint)
    atom = setting.value
    if setting.added:
        atom.at.refuse(f"+= cannot add to the number {setting.name}", hint)
    value = xlcfg.whole(atom.text)
    if value is None:
        atom.at.refuse(f"{setting.name} must be a number, not {atom.text[:40]!r}", hint)
    return value


def _check_kind(setting: Setting, key: Key) -> None:
    listed = isinstance(setting.value, Items)
    if listed and key.kind not in (Kind.ITEMS, Kind.TEXT_OR_ITEMS):
        setting.value.at.refuse(f"{setting.name} must be {key.kind.value}, not a list", "remove the [ ]")
    if not listed and key.kind is Kind.ITEMS:
        setting.value.at.refuse(
            f"{setting.name} must be {key.kind.value}, not a single value", f"write {setting.name} = [ '...' ]"
        )
    if key.kind in (Kind.NUMBER, Kind.FLAG):
        _number(setting)


def _empty(value: Value) -> bool:
    return not value.values if isinstance(value, Items) else value.text in ("", "0")


def render_value(value: Value) -> str:
    """Return `value` in the syntax of a domain file."""
    if isinstance(value, Items):
        return "[ " + ", ".join(render_value(item) for item in value.values) + " ]" if value.values else "[ ]"
    plain = not value.quoted and re.fullmatch("[0-9][0-9a-fx]*", value.text)
    return value.text if plain else xlcfg.quote(value.text)


def render_domain(spec: DomainSpec) -> str:
    """Return a domain file that `parse_domain` reads back as `spec`. xl reads it too, if no disk names a volume."""
    lines = [f"name = {xlcfg.quote(spec.name)}"]
    texts = (("uuid", spec.uuid), ("type", spec.type.value), ("kernel", spec.kernel), ("ramdisk", spec.ramdisk))
    lines += [f"{key} = {xlcfg.quote(text)}" for key, text in (*texts, ("cmdline", spec.cmdline)) if text]
    numbers = (
        ("memory", spec.memory),
        ("maxmem", spec.maxmem),
        ("vcpus", spec.vcpus),
        ("maxvcpus", spec.maxvcpus),
    )
    lines += [f"{key} = {number}" for key, number in numbers if number]
    lines += _rendered_list("disk", [disk_config.render_disk(disk) for disk in spec.disks])
    lines += _rendered_list("vif", [vif_config.render_vif(vif) for vif in spec.vifs])
    unfiltered = [str(number) for number, vif in enumerate(spec.vifs) if not vif.filtered]
    lines += [f"vif_unfiltered = [ {', '.join(unfiltered)} ]"] if unfiltered else []
    lines += [f"{name} = {xlcfg.quote(getattr(spec, name))}" for name in _EVENTS]
    lines += [f"{key} = {value}" for key, value in spec.xl]
    return "\n".join(lines) + "\n"


def _rendered_list(name: str, specs: list[str]) -> list[str]:
    if not specs:
        return []
    return [f"{name} = [", *(f"    {xlcfg.quote(text)}," for text in specs), "]"]
