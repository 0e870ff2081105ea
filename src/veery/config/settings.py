"""`veery.toml`: the settings of one node. Each key is declared once here; unknown keys are refused with their line."""

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
    name of the caller; "" admits every node of the cluster. The certificate is checked in any case."""

    address: str = ""
    port: int = 8002
    hosts_allow: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The HTTP API between nodes. `address`: "" is the node's own address."""

    address: str = ""
    port: int = 8001
    group: str = ""  # its members may use the unix socket too


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """The ports of a voter's etcd. `deadline`: seconds for a call. `quota`: maximum size of the store's file in MiB,
    the same on each voter. A cluster of a thousand domains needs a few MiB."""

    client_port: int = 2379
    peer_port: int = 2380
    deadline: float = 4.0
    quota: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The storage of volumes. `pool`: folder for sparse files. `group`: LVM volume group. `portal_port`: port of tgtd.
    `address`: this node's address on the storage network ("": the node's own). tgtd listens there, and a hypervisor's
    iSCSI sessions come from there. `local`: folder for disks that arrive with their domain (migrate --with-disks); "":
    the same path as on the source."""

    pool: str = ""
    group: str = ""
    local: str = ""
    address: str = ""
    portal_port: int = 3260


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """The network of domains. `filter`: restrict interfaces of QEMU domains to their MACs and addresses."""

    filter: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The qemu driver. `accel`: auto (KVM if it really boots a guest, else TCG), kvm or tcg. `iothreads` (a thread for
    each disk), `vhost` (packets handled by the kernel) and `aio` (io_uring and native aio) are on, off, or auto: on
    under KVM."""

    binary: str = "qemu-system-x86_64"
    accel: str = "auto"
    machine: str = ""  # "": the driver's pinned default
    user: str = "auto"
    """The user of QEMU: a name, a UID, or a range of UIDs with one for each domain. "": root. auto: the user veery-qemu
    if it exists, else root."""
    iothreads: Switch = "auto"
    vhost: Switch = "auto"
    hugepages: Literal["", "2M", "1G"] = ""  # page size of domains' memory; "": ordinary pages
    numa_node: int = -1  # preferred NUMA node of domains' memory and processors; -1: any
    aio: Switch = "auto"
    cgroup: str = ""  # folder of a cgroup (v2) delegated to veery; "": no limits for domains


@dataclass(frozen=True, slots=True, kw_only=True)
class Xen:
    """The xen driver. `xl`: the program; `xenstore`: the folder of xenstore-read and xenstore-watch ("": found in PATH
    them)."""

    xl: str = "xl"
    xenstore: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLimits:
    """The limits of simultaneous moves: `out` of this node, `into` it, and over one `link` to another node. `copies`:
    how many of the moves out of it copy at the same time; 0: one, or two with eight processors and more."""

    out: int = 8
    into: int = 8
    link: int = 8
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """The guard of a node that has lost the cluster. It pauses domains with shared disks immediately, and destroys them
    after `end` seconds. 0 turns the guard off."""

    end: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSettings:
    """The node's own watchdog. `device`: /dev/watchdog, or the unix socket of an equivalent program ("": none).
    `timeout`: seconds without a feed after which it resets the node."""

    device: str = ""
    timeout: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSettings:
    """[power.NODE]: the power switch of another node. `agent`: one of Debian's fence-agents. `options`: options of the
    agent. `password_file`: a file with only its password, which only root may read. `deadline`: seconds for a call."""

    agent: str
    options: dict[str, str] = field(default_factory=dict)
    password_file: str = ""
    deadline: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HaSettings:
    """The brain, on voters; times in seconds. `cycle`: interval of observations. `leader_ttl`: the leader's lease.
    `silence`: delay between the end of a node's lease and the judgement of the node. `sign`: a younger heartbeat on
    storage is a sign of life. `away`: time in which a node with a cleanly stopped daemon is not judged. `out`, `into`:
    domains that the brain moves out of a node, and into a node, at once."""

    cycle: float = 0.5
    leader_ttl: int = 4
    silence: float = 0.5
    sign: float = 2.5
    away: float = 60.0
    out: int = 1
    into: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """The node's sensors. `sensors`: modes of sensors that differ from the default. `pace`: factor of the default
    intervals between readings. `root`: the folder under which sensors read. With a folder other than / no program runs;
    the sensors read recorded outputs from files there, as `veery sensors --case` does."""

    sensors: dict[str, SensorMode] = field(default_factory=dict)
    pace: float = 1.0
    root: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """The recipients of alarms. They should be the same on each voter, because the leader sends. `command`: a program
    and its arguments. `mail`: a recipient, with `sender` and the mail server `smtp` (HOST:PORT). `webhook`: a URL, with
    the file of its token. `level`: alarm, or warning for both levels."""

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
    lib/modules/VERSION. "": the kernel that this node itself runs."""

    kernel: str = ""
    modules: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one node. `state` survives a reboot (records, etcd's data, volumes), `run` does not (sockets)."""

    state: str = "/var/lib/veery"
    run: str = "/run/veery"
    log: str = "info"
    presence_ttl: int = 5  # seconds of a node's lease: it counts as present so long after its last renewal
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


FEED_SLACK = 3.0  # seconds by which the last feed of a watchdog can be older than the node's lease
DEFAULT_PATH = Path("/etc/veery/veery.toml")


def load(path: Path) -> Settings:
    """Return the settings in `path`, or the defaults if there is no such file. Raises Refused with file and line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {error}", hint="correct the file, or give another with --settings") from error
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
        raise Refused(
            f"{path}:{_line_of(text, 'moves')}: limits of moves must be at least 1", hint="see docs/settings.md"
        )
    _check_ends(settings, f"{path}:{_line_of(text, 'watchdog')}")
    _check_storage(settings.storage, f"{path}:{_line_of(text, 'storage')}")
    if not settings.health.pace > 0:
        raise Refused(
            f"{path}:{_line_of(text, 'health')}: health.pace must be more than 0", hint="see docs/settings.md"
        )
    _check_alarms(settings.alarms, f"{path}:{_line_of(text, 'alarms')}")
    return settings


def _check_storage(storage: StorageSettings, where: str) -> None:
    """Raise Refused if storage.address is not an IP address."""
    try:
        ipaddress.ip_address(storage.address or "::")
    except ValueError as error:
        hint = "give this node's address on the storage network: ip -brief address"
        raise Refused(f"{where}: storage.address is not an IP address: {storage.address!r}", hint=hint) from error


def _check_alarms(alarms: AlarmSettings, where: str) -> None:
    """Raise Refused if no alarm can be sent with the values of [alarms]."""
    hint = "see docs/settings.md"
    if alarms.level not in ("alarm", "warning"):
        raise Refused(f"{where}: alarms.level must be alarm or warning, not {alarms.level!r}", hint=hint)
    if alarms.command and not alarms.command[0].startswith("/"):
        raise Refused(f"{where}: alarms.command must begin with the absolute path of a program", hint=hint)
    if not re.fullmatch(r"\S+:\d{1,5}", alarms.smtp):
        raise Refused(f"{where}: alarms.smtp must be HOST:PORT, not {alarms.smtp!r}", hint=hint)
    if any(re.search(r"[\s<>]", each) for each in (alarms.mail, alarms.sender)):
        raise Refused(f"{where}: alarms.mail and alarms.sender must be bare addresses (name@host)", hint=hint)
    if alarms.webhook and not re.match(r"https?://[^/\s]+", alarms.webhook):
        raise Refused(f"{where}: alarms.webhook must be a URL (https://...), not {alarms.webhook!r}", hint=hint)


def _check_ends(settings: Settings, where: str) -> None:
    """Raise Refused unless the guard destroys a lost node's domains before the watchdog resets the node. So domains
    keep a chance to continue."""
    watchdog = settings.watchdog
    if watchdog.device and not 0 < settings.guard.end <= watchdog.timeout - FEED_SLACK:
        raise Refused(
            f"{where}: watchdog.timeout {watchdog.timeout} must be {FEED_SLACK:g} s more than guard.end",
            hint="the guard must be on, and end before the watchdog fires: raise timeout, or lower guard.end",
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
