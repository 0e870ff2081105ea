"""Domains: the spec of a domain file (`DomainSpec`) and the reading of a driver (`DomainReading`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DomainType(StrEnum):
    """The type of a guest, as `type=` in xl.cfg(5)."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


class OnEvent(StrEnum):
    """The action when a domain ends by itself, as `on_poweroff=` and similar keys in xl.cfg(5)."""

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
    """The limits of a guest's reads and writes on one disk per second, in bytes (`bps`) and operations (`iops`): reads
    and writes together, or separately (`_rd`, `_wr`). 0: no limit."""

    bps: int = 0
    bps_rd: int = 0
    bps_wr: int = 0
    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """One disk, as xl-disk-configuration(5) describes it; `volume` and `limits` are veery's own.

    `vdev` is kept as written (`xvda`); a driver translates it for its guest. `target` is the path or
    device in the file, "" if `volume` is set or the drive is an empty CD-ROM.
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

    `mac` is "" until the domain's record is created; then it is fixed (prefix 00:16:3e).
    `rate` is kept as written ("10Mb/s@50ms"). If not `filtered`, the guest may send from any MAC and IP address.
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
    """One domain as its file describes it. Memory in MiB. `cmdline` is root= and extra=, joined as by xl.

    `xl` has settings that only Xen supports, as (key, value in the file's syntax): the Xen driver passes them to xl,
    other drivers ignore them."""

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
    """A change of a running domain that its record stores; None: no change. `maxmem` in MiB. `vcpus`: number online.

    `hard` and `soft`: the processors (as in `cpus=` of xl.cfg(5)) on which virtual processor `vcpu` may and should run;
    without `vcpu`, all of them. `weight` and `cap`: those of the scheduler."""

    maxmem: int | None = None
    vcpus: int | None = None
    vcpu: int | None = None
    hard: str | None = None
    soft: str | None = None
    weight: int | None = None
    cap: int | None = None


class DomainState(StrEnum):
    """The state of a domain. `LETTERS` has the letters of xm's State column."""

    RUNNING = "running"
    BLOCKED = "blocked"  # runnable but idle
    PAUSED = "paused"  # by a user, or held by a move
    SHUTDOWN = "shutdown"  # ended by itself, but still exists (on_*=preserve, or not handled yet)
    CRASHED = "crashed"  # the guest panicked, but the domain still exists
    INCOMING = "incoming"  # incomplete: a move is loading it
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
    """The present reading of one domain by the driver of its node. `domid` counts up on a node, as in Xen.

    `memory`: present MiB. `cpu_seconds`: processor time used on this node. `started`: boot time of the guest in seconds
    of the Unix epoch (kept over moves). `pid`: 0 if the driver has no process. `reason`: the disk error that paused
    the domain, if any.
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
    def faulty(self) -> bool:
        """True if an error of its disk has paused the domain."""
        return self.state is DomainState.PAUSED and bool(self.reason)

    @property
    def held(self) -> bool:
        """True if the domain is paused by an order. A domain paused by a disk error is not: resumed, it tries again."""
        return self.state is DomainState.PAUSED and not self.reason


class DomainEnd(StrEnum):
    """The reason why a domain ended by itself: the value of a driver's event."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    CRASH = "crash"
    WATCHDOG = "watchdog"
    DIED = "died"  # its process ended without an order


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """An event of a driver: domain `uuid` ended by itself, for the reason `end`."""

    uuid: str
    end: DomainEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuReading:
    """One row of vcpu-list: number, last processor (-1: unknown), seconds used."""

    number: int
    cpu: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """The machine of one node, for `veery info` and placement. Memory in MiB, cpu_mhz in MHz.

    `software` maps names ("qemu", "xen", "kernel") to versions. `facts` has driver-specific rows (for xen: the output
    of `xl info`, in its order). `domain0` is the machine's own row among its domains, if the hypervisor has one.
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
