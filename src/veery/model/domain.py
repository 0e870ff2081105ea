"""Domains: what a domain file asks for (`DomainSpec`) and what a driver sees (`DomainReading`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DomainType(StrEnum):
    """How the guest meets its hypervisor, as `type=` in xl.cfg(5)."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


class OnEvent(StrEnum):
    """What to do when a domain ends by itself, as `on_poweroff=` and its kin in xl.cfg(5)."""

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"
    SOFT_RESET = "soft-reset"


class DiskFormat(StrEnum):
    """Image formats of xl-disk-configuration(5)."""

    RAW = "raw"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    QED = "qed"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLimits:
    """What a guest may read and write on one disk a second, in bytes (`bps`) and operations (`iops`): both together,
    or reads (`_rd`) and writes (`_wr`) apart. 0: no limit."""

    bps: int = 0
    bps_rd: int = 0
    bps_wr: int = 0
    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """One disk, as xl-disk-configuration(5) describes it; `volume` and `limits` are veery's.

    `vdev` is kept as written (`xvda`); a driver translates it for its guest. `target` is the path or
    device named by the file, "" where `volume` is set or the drive is an empty CD-ROM.
    """

    vdev: str
    target: str = ""
    volume: str = ""
    format: DiskFormat = DiskFormat.RAW
    readwrite: bool = True
    cdrom: bool = False
    removable: bool = False
    backend: str = ""
    backendtype: str = ""
    script: str = ""
    direct_io_safe: bool = False
    discard: bool | None = None
    specification: str = ""
    trusted: bool | None = None
    limits: DiskLimits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VifSpec:
    """One network interface, as xl-network-configuration(5) describes it.

    `mac` is "" until the domain's record is made; from then on it is fixed (prefix 00:16:3e).
    `rate` is kept as written ("10Mb/s@50ms"). Not `filtered`, the guest may send from any MAC and address.
    """

    bridge: str = ""
    mac: str = ""
    vifname: str = ""
    script: str = ""
    ip: str = ""
    backend: str = ""
    type: str = ""
    model: str = ""
    gatewaydev: str = ""
    rate: str = ""
    mtu: int = 0
    trusted: bool | None = None
    devid: int = -1
    filtered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """One domain as its file asks for it. Memory in MiB. `cmdline` is root= and extra= joined as xl does.

    `xl` holds settings that mean something to Xen alone, as (key, value in the file's own syntax): the Xen driver
    hands them to xl, others pass them over."""

    name: str
    uuid: str = ""
    type: DomainType = DomainType.PV
    kernel: str = ""
    ramdisk: str = ""
    cmdline: str = ""
    memory: int = 128
    maxmem: int = 0
    vcpus: int = 1
    maxvcpus: int = 0
    disks: tuple[DiskSpec, ...] = ()
    vifs: tuple[VifSpec, ...] = ()
    on_poweroff: OnEvent = OnEvent.DESTROY
    on_reboot: OnEvent = OnEvent.RESTART
    on_crash: OnEvent = OnEvent.DESTROY
    on_watchdog: OnEvent = OnEvent.DESTROY
    on_soft_reset: OnEvent = OnEvent.SOFT_RESET
    xl: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A change of a running domain that its record keeps; None: as it is. `maxmem` in MiB; `vcpus` are online.

    `hard` and `soft` are the processors (as in `cpus=` of xl.cfg(5)) that virtual processor `vcpu` may and should run
    on; without `vcpu` they are those of all. `weight` and `cap` are the scheduler's."""

    maxmem: int | None = None
    vcpus: int | None = None
    vcpu: int | None = None
    hard: str | None = None
    soft: str | None = None
    weight: int | None = None
    cap: int | None = None


class DomainState(StrEnum):
    """What a domain does now; the letters of xm's State column stand in `LETTERS`."""

    RUNNING = "running"
    BLOCKED = "blocked"  # runnable but idle
    PAUSED = "paused"  # by a user, or held by a move
    SHUTDOWN = "shutdown"  # ended by itself, still there (on_*=preserve, or about to be handled)
    CRASHED = "crashed"  # the guest panicked, still there
    INCOMING = "incoming"  # half a domain: a move is loading it
    DYING = "dying"  # being destroyed


LETTERS: dict[DomainState, str] = {  # column positions as xl list prints them: r b p s c d
    DomainState.RUNNING: "r-----",
    DomainState.BLOCKED: "-b----",
    DomainState.PAUSED: "--p---",
    DomainState.INCOMING: "--p---",
    DomainState.SHUTDOWN: "---s--",
    DomainState.CRASHED: "----c-",
    DomainState.DYING: "-----d",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReading:
    """One domain as the driver sees it on its node, now. `domid` counts up on a node, as Xen's do.

    `memory` in MiB as given now, `cpu_seconds` the processor time it used here, `started` seconds of the
    Unix epoch at which the guest booted (kept over moves), `pid` 0 where the driver has no process. `reason` says why
    it stands, where an error of a disk has stopped it.
    """

    name: str
    uuid: str
    domid: int
    state: DomainState
    memory: int
    vcpus: int
    cpu_seconds: float
    started: float
    pid: int = 0
    reason: str = ""

    @property
    def held(self) -> bool:
        """Whether it is paused by order. One that an error of its disk has stopped is not: let go, it tries again."""
        return self.state is DomainState.PAUSED and not self.reason


class DomainEnd(StrEnum):
    """Why a domain stopped by itself: the value of a driver's event."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    CRASH = "crash"
    WATCHDOG = "watchdog"
    DIED = "died"  # its process is gone and nobody asked for it


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A driver's news: domain `uuid` stopped by itself, for the reason `end`."""

    uuid: str
    end: DomainEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuReading:
    """One row of vcpu-list: number, processor it last ran on (-1 unknown), seconds used."""

    number: int
    cpu: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """One node's machine: what `veery info` prints and placement counts with. Memory in MiB, cpu_mhz in MHz.

    `software` maps names ("qemu", "xen", "kernel") to versions; `facts` holds driver-specific rows
    (for xen: what `xl info` prints, in its order); `domain0` is the machine's own row among its domains, where the
    hypervisor has one.
    """

    host: str
    release: str
    version: str
    machine: str
    cpus: int
    cpu_mhz: float
    cpu_model: str
    memory_total: int
    memory_free: int
    accelerator: str
    software: dict[str, str]
    facts: dict[str, str]
    domain0: DomainReading | None = None
