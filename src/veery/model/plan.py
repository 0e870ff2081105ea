"""The plan of a move: its obstacles, the expected copy and the expected time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from veery.model.domain import DomainSpec
from veery.model.move import MoveSettings
from veery.model.node import Node
from veery.model.volume import CarriedDisk


class Obstacle(StrEnum):
    """The kind of a blocker."""

    DOMAIN = "domain"  # its state, its owner, another move of it
    NODE = "node"  # the target does not answer, or runs no domains
    PORT = "port"  # the relocation port: closed, filtered, hosts_allow, certificates
    NAME = "name"  # the target has a domain of this name
    DRIVER = "driver"  # hypervisor or accelerator differ
    VERSION = "version"  # the hypervisor's version, the machine type, the layout
    CPU = "cpu"  # processor features
    MEMORY = "memory"
    NETWORK = "network"  # a bridge
    KERNEL = "kernel"  # a file that boots the domain
    VOLUME = "volume"  # a volume's record, portal, or access to it
    STORAGE = "storage"  # a disk that only one node has


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """One reason why a move is impossible, and a hint how to remove it."""

    kind: Obstacle
    reason: str
    hint: str = ""


def no_room(wanted: int, free: int) -> tuple[Blocker, ...]:
    """Return the blocker of a node with `free` MiB for a domain that needs `wanted` MiB; none if it fits."""
    if wanted <= free:
        return ()
    reason = f"{wanted} MiB of memory are needed, {free} MiB are free"
    hint = "move or stop another domain there, or reduce its memory: veery mem-set --help"
    return (Blocker(kind=Obstacle.MEMORY, reason=reason, hint=hint),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """The abilities of a node's hypervisor. `version`: as it reports it. `machines`: its machine types. `features`: the
    processor features that guests can have under `accelerator` (dashes between words). `models`: the versioned CPU
    models that it fully supports. `vendor`: that of the processor ("GenuineIntel", "": unknown). `post_copy`: why the
    node cannot receive by post-copy ("": it can). `tsc_khz`: the frequency of the time stamp counter for guests under
    KVM (0: unknown). `tsc_scales`: guests can have another frequency. `phys_bits`: the width of physical addresses (0:
    unknown)."""

    driver: str
    version: str
    accelerator: str
    machines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    post_copy: str = ""
    models: tuple[str, ...] = ()
    vendor: str = ""
    tsc_khz: int = 0
    tsc_scales: bool = False
    phys_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """The memory of a domain, estimated from samples of its pages; bytes. `total`: all memory. `used`: memory that is
    not zero.

    `dirtied`: how many bytes differ after how many seconds: ((0.1, 4096.0), ...), in order of seconds. `packed`: the
    size of a sample after compression, divided by its size before; 1.0 if it does not compress."""

    total: int
    used: int
    dirtied: tuple[tuple[float, float], ...] = ()
    packed: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """The fixed times of a move besides the copy of memory; ms. `before`: before COPY. `copy`: the fixed part of COPY.
    `stand`: the hypervisor's downtime with little left to send. `away`: from then until the domain runs on the target
    (LOADED, COMMIT, FINISH). `after`: CONFIRM."""

    before: float
    copy: float
    stand: float
    away: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The path between the two nodes. `rate`: bytes/s of a copy. `scan`: bytes/s of the scan of zero pages. `probed`:
    bytes/s of a probe just now (0: no probe). `source`: the source of the rate, as text ("3 earlier moves")."""

    rate: float
    scan: float
    probed: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The forecast of a move. Times in ms, rates in bytes/s. `gap_ms`: the gap that an outside client sees.

    `converges`: the move completes under these settings, with the limit `downtime` (ms) and the `throttle` (percent)
    that its policy reaches in `steps`. If not, `why` has the reason, and `needed` the downtime (ms) that is enough."""

    converges: bool
    total_ms: float
    gap_ms: float
    bytes: int
    rounds: int
    rate: float
    dirty_rate: float
    downtime: int = 0
    throttle: int = 0
    steps: tuple[str, ...] = ()
    why: str = ""
    disk_bytes: int = 0
    needed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to `veery migrate --plan`. `back`: what would prevent a move back. `cautions`: effects that do not
    prevent the move, but that the guest may notice."""

    domain: str
    source: str
    target: str
    settings: MoveSettings
    possible: bool
    blockers: tuple[Blocker, ...] = ()
    back: tuple[Blocker, ...] = ()
    memory: MemoryReading | None = None
    link: Link | None = None
    overhead: Overhead | None = None
    forecast: Forecast | None = None
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The processor of node `node` as its hypervisor offers it to guests. `model`: its name. `models`: the hypervisor's
    CPU models that it fully supports. `machines`: the machine types."""

    node: str
    accelerator: str
    model: str
    version: str
    features: tuple[str, ...]
    models: tuple[str, ...] = ()
    vendor: str = ""
    phys_bits: int = 0
    machines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The CPU model that new domains get under `accelerator` on a processor of `vendor` ("": any). All of `nodes`
    support it.

    `level`: the x86-64 psABI level (1 to 4) that it reaches. `cpu`: its name for the hypervisor."""

    accelerator: str
    cpu: str
    level: int
    features: tuple[str, ...]
    nodes: tuple[str, ...]
    vendor: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question of a source to a target before a move. `luggage`: the driver's cookie (JSON text). `home`: the
    record of the source, to which the domain would move back. `disks`: the disks that would move too, to the folder
    `disk_dir`. `post_copy`: the move would use post-copy."""

    domain: str
    source: str
    driver: str
    spec: DomainSpec
    luggage: str
    home: Node
    disks: tuple[CarriedDisk, ...] = ()
    disk_dir: str = ""
    post_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer of a target. `blockers`: its obstacles. `way_back`: the obstacles of a move back, such as a closed
    relocation port of the source. `level`: the level that its version supports (0: not reported)."""

    node: str
    blockers: tuple[Blocker, ...]
    way_back: tuple[Blocker, ...]
    abilities: Abilities
    level: int = 0


LEVELS: tuple[frozenset[str], ...] = (  # x86-64 psABI, "Micro-Architecture Levels", what each adds; QEMU's names
    frozenset({"cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2", "syscall"}),
    frozenset({"cx16", "lahf-lm", "popcnt", "pni", "sse4-1", "sse4-2", "ssse3"}),
    frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


def level(features: Iterable[str]) -> int:
    """Return the x86-64 level that `features` reach, 0 for none."""
    have, reached = set(features), 0
    for number, wanted in enumerate(LEVELS, 1):
        if not wanted <= have:
            break
        reached = number
    return reached


def family(processor: Processor) -> tuple[str, str]:
    """Return accelerator and vendor. Processors of one family share a baseline. Under KVM a guest sees its machine's
    vendor, and cannot continue under another vendor. TCG's processors have no vendor."""
    return processor.accelerator, processor.vendor if processor.accelerator == "kvm" else ""


def common(processors: Sequence[Processor]) -> tuple[str, ...]:
    """Return the sorted features that all of `processors` support."""
    if not processors:
        return ()
    return tuple(sorted(frozenset.intersection(*(frozenset(one.features) for one in processors))))
