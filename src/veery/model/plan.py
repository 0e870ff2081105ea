"""What is known before a move: what stands in its way, what it would copy, and how long that should take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from veery.model.domain import DomainSpec
from veery.model.move import MoveSettings
from veery.model.node import Node
from veery.model.volume import CarriedDisk


class Obstacle(StrEnum):
    """What kind of thing a blocker is about."""

    DOMAIN = "domain"  # its state, its owner, another move of it
    NODE = "node"  # the target does not answer, or runs no domains
    PORT = "port"  # the relocation port: closed, filtered, hosts_allow, certificates
    NAME = "name"  # the target has such a domain
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
    """One reason why a move cannot be made, and what would lift it."""

    kind: Obstacle
    reason: str
    hint: str = ""


def no_room(wanted: int, free: int) -> tuple[Blocker, ...]:
    """The blocker of a node with `free` MiB for a domain that takes `wanted`; none where it fits."""
    if wanted <= free:
        return ()
    reason = f"{wanted} MiB of memory are wanted, {free} MiB are free"
    hint = "move or end another domain there, or balloon one: veery mem-set --help"
    return (Blocker(kind=Obstacle.MEMORY, reason=reason, hint=hint),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a node's hypervisor can build: `version` as it tells it, `machines` the machine types it knows,
    `features` the processor features that guests can have under `accelerator` (dashes between words), `models` the
    versioned processor models that it can give whole, `vendor` the processor's ("GenuineIntel", "": not told),
    `post_copy` why nothing can come in by post-copy ("": it can), `tsc_khz` the frequency of the time stamp counter
    that guests get under KVM (0: not known), `tsc_scales` whether they can have another, `phys_bits` how wide the
    processor's physical addresses are (0: not told)."""

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
    """A domain's memory, seen by samples of its pages; bytes. `total` is all it has, `used` what is not zero.

    `dirtied` tells how many bytes differ after how many seconds: ((0.1, 4096.0), ...), by growing seconds. `packed` is
    the size of a sample after compression over its size before, 1.0 where it does not compress."""

    total: int
    used: int
    dirtied: tuple[tuple[float, float], ...] = ()
    packed: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What a move takes besides the copying of memory; ms. `before` COPY; `copy`: COPY's own fixed part; `stand`: the
    hypervisor's downtime where little is left to send; `away`: the domain still stands, until it runs (LOADED, COMMIT,
    FINISH); `after`: CONFIRM."""

    before: float
    copy: float
    stand: float
    away: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The way between the two nodes. `rate`: bytes/s that a copy gets through it; `scan`: bytes/s at which zero pages
    are looked through; `probed`: bytes/s that a probe got through just now, 0: none was made; `source` of the rate in
    words ("3 earlier moves")."""

    rate: float
    scan: float
    probed: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a move should come to. Times in ms, rates in bytes/s; `gap_ms` is what a client outside misses.

    `converges`: it comes to its end under these settings, with the limit `downtime` (ms) and the `throttle` (percent)
    to which its policy goes, by `steps`. Where not, `why`, and `needed` is the downtime (ms) with which it would."""

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
    """The answer to `veery migrate --plan`. `back`: what would keep the domain from coming back again; `cautions`: what
    does not keep it from going, and may be felt by its guest."""

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
    """What node `node`'s processor gives to guests, as its hypervisor tells it; `model` in words, `models` those of
    the hypervisor that it can give whole, `machines` its machine types."""

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
    """The processor that new domains get under `accelerator` on a processor of `vendor` ("": of any): what all of
    `nodes` can give.

    `level` is the x86-64 psABI's (1 to 4) that it comes up to, `cpu` the hypervisor's own words for it."""

    accelerator: str
    cpu: str
    level: int
    features: tuple[str, ...]
    nodes: tuple[str, ...]
    vendor: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a source asks a target before a move. `luggage` is the driver's (JSON text); `home` the source's record,
    to which the domain would come back; `disks` those that would go along, to the folder `disk_dir`; `post_copy`:
    whether the rest of its memory would follow it."""

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
    """A target's answer: what stands in the way there, and whether it can reach the source's relocation port. `level`:
    what its version can do (0: it does not tell)."""

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
    """The x86-64 level that `features` come up to, 0 for none."""
    have, reached = set(features), 0
    for number, wanted in enumerate(LEVELS, 1):
        if not wanted <= have:
            break
        reached = number
    return reached


def family(processor: Processor) -> tuple[str, str]:
    """Accelerator and vendor: the processors of one family share a baseline. Under KVM a guest sees the vendor of its
    machine, and a guest that has seen one vendor cannot go on with another. What TCG emulates has none."""
    return processor.accelerator, processor.vendor if processor.accelerator == "kvm" else ""


def common(processors: Sequence[Processor]) -> tuple[str, ...]:
    """The features that all of `processors` can give, sorted."""
    if not processors:
        return ()
    return tuple(sorted(frozenset.intersection(*(frozenset(one.features) for one in processors))))
