"""`veery.toml`: one node's settings, declared once, unknown keys refused with their line."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from veery.errors import Refused
from veery.model.verdict import SensorMode

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """The relocation server, as xend-config.sxp had it.

    `hosts_allow`: regular expressions separated by spaces, each matched from the beginning of the address or host
    name of the caller; "" lets every node of the cluster in (its certificate is checked all the same)."""

    address: str = ""
    port: int = 8002
    hosts_allow: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The HTTP API between nodes. `address` "" means the node's own."""

    address: str = ""
    port: int = 8001
    group: str = ""  # members of this group may use the unix socket too


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """The voter's ports, and seconds that a call may take. `quota`: MiB that the store's file may have, the same on
    each voter. A cluster of a thousand domains needs a few."""

    client_port: int = 2379
    peer_port: int = 2380
    deadline: float = 4.0
    quota: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Where volumes are: `pool` a folder for sparse files, `group` an LVM volume group; `portal_port` is tgtd's.
    `address` is this node's on the storage network ("": the node's own): tgtd listens there, and a hypervisor's iSCSI
    sessions come from there.
    `local` is a folder for the disks that come in with their domain (migrate --with-disks); "": the path they had."""

    pool: str = ""
    group: str = ""
    local: str = ""
    address: str = ""
    portal_port: int = 3260


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """`filter`: hold each interface of a QEMU domain to its MAC, and to the addresses that its file names."""

    filter: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The qemu driver. `accel`: auto (KVM when it really boots a guest, else TCG), kvm or tcg. `iothreads` (a thread
    for each disk), `vhost` (the kernel carries packets) and `aio` (io_uring and native aio) are on, off, or auto: on
    under KVM."""

    binary: str = "qemu-system-x86_64"
    accel: str = "auto"
    machine: str = ""  # "": the driver's pinned default
    user: str = "auto"
    """Whom QEMU runs as: a name, a UID, a range of UIDs with one for each domain; "": root; auto: the user veery-qemu
    where there is one, else root."""
    iothreads: Switch = "auto"
    vhost: Switch = "auto"
    hugepages: Literal["", "2M", "1G"] = ""  # of which the memory of domains is made; "": ordinary pages
    numa_node: int = -1  # where the memory and processors of domains are taken first; -1: wherever
    aio: Switch = "auto"
    cgroup: str = ""  # folder of a cgroup (version 2) that the host leaves to us; "": no limits for domains


@dataclass(frozen=True, slots=True, kw_only=True)
class Xen:
    """The xen driver. `xl`: the program; `xenstore`: the folder of xenstore-read and xenstore-watch ("": as PATH finds
    them)."""

    xl: str = "xl"
    xenstore: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLimits:
    """How many moves may be under way at once: `out` of this node, `into` it, and from it to any one other node.
    `copies`: how many of those out of it copy at the same time; 0: one, or two with eight processors and more."""

    out: int = 8
    into: int = 8
    link: int = 8
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What a node does by itself when it has lost the cluster: its domains with shared disks are stopped at once, and
    ended after `end` seconds. 0 turns it off."""

    end: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSettings:
    """The node's own watchdog: `device` is /dev/watchdog, or a unix socket of a program that does the same ("": none);
    `timeout`: seconds without a feed after which it ends the node."""

    device: str = ""
    timeout: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSettings:
    """[power.NODE]: how another node's power is switched off. `agent` is one of Debian's fence-agents, `options` are
    its own; its password stands alone in `password_file`, which only root may read. `deadline`: seconds for a call."""

    agent: str
    options: dict[str, str] = field(default_factory=dict)
    password_file: str = ""
    deadline: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HaSettings:
    """The brain, on voters; seconds. `cycle`: from one look at the cluster to the next. `leader_ttl`: of the leader's
    lease. `silence`: a node whose lease has ended is judged so much later. `sign`: a heartbeat on storage that is
    younger is a sign of life. `away`: for how long a node whose daemon was stopped in good order is not judged.
    `out`, `into`: how many domains it moves out of a node, and into one, at once."""

    cycle: float = 0.5
    leader_ttl: int = 4
    silence: float = 0.5
    sign: float = 2.5
    away: float = 60.0
    out: int = 1
    into: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """The node's sensors. `sensors`: the mode of each that is to have another than it ships with. `pace`: the times
    between two readings, as a factor of those that ship. `root`: the folder under which sensors read; with another than
    / no program is run, and their outputs are read from files there, as `veery sensors --case` does."""

    sensors: dict[str, SensorMode] = field(default_factory=dict)
    pace: float = 1.0
    root: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """Whom the node calls, the same on each voter: the one that leads sends. `command`: a program and its arguments;
    `mail`: a recipient, with `sender` and the mail server `smtp` (HOST:PORT); `webhook`: a URL, with the file of its
    token. `level`: alarm, or warning for both."""

    level: str = "alarm"
    command: list[str] = field(default_factory=list)
    mail: str = ""
    sender: str = ""
    smtp: str = "localhost:25"
    webhook: str = ""
    webhook_token_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The guest's kernel, whose modules go into the images that this node builds: a vmlinuz, and its
    lib/modules/VERSION; "" means the kernel that this node itself runs."""

    kernel: str = ""
    modules: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One node. `state` survives a reboot (records, etcd's data, volumes); `run` does not (sockets, pids)."""

    state: str = "/var/lib/veery"
    run: str = "/run/veery"
    log: str = "info"
    presence_ttl: int = 5  # seconds a node counts as present after its last sign
    relocation: Relocation = field(default_factory=Relocation)
    api: Api = field(default_factory=Api)
    etcd: Etcd = field(default_factory=Etcd)
    storage: StorageSettings = field(default_factory=StorageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    qemu: Qemu = field(default_factory=Qemu)
    xen: Xen = field(default_factory=Xen)
    moves: MoveLimits = field(default_factory=MoveLimits)
    guard: GuardSettings = field(default_factory=GuardSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    power: dict[str, PowerSettings] = field(default_factory=dict)
    ha: HaSettings = field(default_factory=HaSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    image: Image = field(default_factory=Image)


FEED_SLACK = 3.0  # seconds by which the last feed of a watchdog may be older than its node's lease
DEFAULT_PATH = Path("/etc/veery/veery.toml")


def load(path: Path) -> Settings:
    """The settings in `path`; defaults where there is no such file. Raises Refused with file and line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {error}", hint="name another with --settings, or mend it") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}", hint="see docs/settings.md for the keys") from error
    unknown = _unknown(data, Settings, ())
    if unknown:
        line = _line_of(text, unknown[-1])
        raise Refused(f"{path}:{line}: unknown key {'.'.join(unknown)!r}", hint="see docs/settings.md for the keys")
    try:
        settings = msgspec.convert(data, type=Settings)
    except msgspec.ValidationError as error:
        raise Refused(f"{path}: {error}", hint="see docs/settings.md for the keys") from error
    if min(settings.moves.out, settings.moves.into, settings.moves.link, settings.moves.copies + 1) < 1:
        raise Refused(f"{path}:{_line_of(text, 'moves')}: limits of moves are 1 or more", hint="see docs/settings.md")
    _check_ends(settings, f"{path}:{_line_of(text, 'watchdog')}")
    _check_storage(settings.storage, f"{path}:{_line_of(text, 'storage')}")
    if not settings.health.pace > 0:
        raise Refused(f"{path}:{_line_of(text, 'health')}: health.pace is more than 0", hint="see docs/settings.md")
    _check_alarms(settings.alarms, f"{path}:{_line_of(text, 'alarms')}")
    return settings


def _check_storage(storage: StorageSettings, where: str) -> None:
    """Raises Refused where [storage] names no address."""
    try:
        ipaddress.ip_address(storage.address or "::")
    except ValueError as error:
        hint = "give the one that this node has on the storage network: ip -brief address"
        raise Refused(f"{where}: storage.address is no IP address: {storage.address!r}", hint=hint) from error


def _check_alarms(alarms: AlarmSettings, where: str) -> None:
    """Raises Refused where an alarm could not be sent as [alarms] has it."""
    hint = "see docs/settings.md"
    if alarms.level not in ("alarm", "warning"):
        raise Refused(f"{where}: alarms.level is alarm or warning, not {alarms.level!r}", hint=hint)
    if alarms.command and not alarms.command[0].startswith("/"):
        raise Refused(f"{where}: alarms.command begins with a program's whole path", hint=hint)
    if not re.fullmatch(r"\S+:\d{1,5}", alarms.smtp):
        raise Refused(f"{where}: alarms.smtp is HOST:PORT, not {alarms.smtp!r}", hint=hint)
    if any(re.search(r"[\s<>]", each) for each in (alarms.mail, alarms.sender)):
        raise Refused(f"{where}: alarms.mail and alarms.sender are bare addresses (name@host)", hint=hint)
    if alarms.webhook and not re.match(r"https?://[^/\s]+", alarms.webhook):
        raise Refused(f"{where}: alarms.webhook is a URL (https://...), not {alarms.webhook!r}", hint=hint)


def _check_ends(settings: Settings, where: str) -> None:
    """The guard has ended a lost node's domains before its watchdog ends the node: domains get that much of a chance to
    go on. Raises Refused."""
    watchdog = settings.watchdog
    if watchdog.device and not 0 < settings.guard.end <= watchdog.timeout - FEED_SLACK:
        raise Refused(
            f"{where}: watchdog.timeout {watchdog.timeout} is not {FEED_SLACK:g} s more than guard.end",
            hint="the guard must be on, and through before the watchdog fires: raise timeout, or lower guard.end",
        )


def _unknown(data: dict[str, object], kind: type, path: tuple[str, ...]) -> tuple[str, ...]:
    fields = {item.name: item.type for item in msgspec.inspect.type_info(kind).fields}  # type: ignore[attr-defined]
    for key, value in data.items():
        if key not in fields:
            return (*path, key)
        inner = fields[key]
        if isinstance(value, dict) and isinstance(inner, msgspec.inspect.DataclassType):
            found = _unknown(value, inner.cls, (*path, key))
            if found:
                return found
        if isinstance(value, dict) and isinstance(inner, msgspec.inspect.DictType):
            for name, item in value.items():
                of = inner.value_type
                if isinstance(item, dict) and isinstance(of, msgspec.inspect.DataclassType):
                    found = _unknown(item, of.cls, (*path, key, name))
                    if found:
                        return found
    return ()


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*(\[.*)?[\"']?{re.escape(key)}\b", line):
            return number
    return 1
