"""The answers that are no records of veery.model: what the handlers put together. They describe the API; the handlers
write the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from veery.model.cluster import Owner, Presence
from veery.model.domain import DiskSpec, DomainReading, DomainSpec, HostReading, VifSpec
from veery.model.ha import NodeIntent
from veery.model.move import MoveReport
from veery.model.node import Node
from veery.model.plan import Baseline
from veery.model.volume import Volume
from veery.network.bridge import Bridge


# ---- domains
@dataclass(frozen=True, slots=True, kw_only=True)
class DomainList:
    """The domains of one node; the first is `Domain-0`, the node itself. `restored`: why the store is not trusted, ""
    if it is. `unsettled`: a sentence for each move that veeryd cannot settle."""

    node: str
    domains: tuple[DomainReading, ...]
    restored: str = ""
    unsettled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterDomains:
    """The domains of each hypervisor that answers, by its name, and the `silent` ones."""

    nodes: Mapping[str, tuple[DomainReading, ...]]
    silent: tuple[str, ...] = ()
    restored: str = ""
    unsettled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainShown:
    """One domain. `owner` is null while the store does not answer. Passwords are left out."""

    reading: DomainReading
    spec: DomainSpec
    owner: Owner | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The new domain, and warnings about its devices."""

    reading: DomainReading
    spec: DomainSpec
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The restored domain."""

    reading: DomainReading


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSource:
    """Where a disk is: the first five fields for a LUN, the others for a file or device of the node."""

    portal: str = ""
    iqn: str = ""
    lun: int = 0
    initiator: str = ""
    user: str = ""
    path: str = ""
    format: str = ""
    block: bool = False
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDisk:
    """One disk of a domain. `source` is null for an empty CD-ROM drive."""

    spec: DiskSpec
    source: DiskSource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warnings:
    """Warnings about a new device."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedInterface:
    """The new network interface, and warnings about it."""

    spec: VifSpec
    device: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuated:
    """The report of each move, and the reason of each domain that was not moved."""

    reports: tuple[MoveReport, ...]
    refused: Mapping[str, str]


# ---- volumes
@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeShown:
    """One volume, and who uses it, each as "DOMAIN on NODE"."""

    volume: Volume
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How many domains here use the volume."""

    told: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The end of a copy: its bytes, and how long it paused the domain."""

    bytes: int
    pause_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Whether the domain here no longer takes part in the move."""

    released: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The bridges of one node."""

    node: str
    bridges: tuple[Bridge, ...]


# ---- nodes
@dataclass(frozen=True, slots=True, kw_only=True)
class HostShown:
    """This node, the facts of its machine, and the number of its domains."""

    node: Node
    host: HostReading
    domains: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Lines of text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcessor:
    """The processor of one node, and the x86-64 level that it has."""

    node: str
    accelerator: str
    vendor: str
    model: str
    version: str
    level: int
    phys_bits: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """The CPU models that new domains get, and the processors of the nodes."""

    baselines: tuple[Baseline, ...]
    processors: tuple[NodeProcessor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node. `fence` and `intent`: "" if there is none, "unreadable" if a newer veery wrote the record."""

    node: Node
    alive: bool
    presence: Presence | None
    fence: str
    intent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token for one new node."""

    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """The new certificate of a node: its serial number, and when it expires (epoch)."""

    node: str
    serial: str
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, in base64."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The ports that cannot be reached, in words; "" if there are none."""

    missing: str


# ---- fences
@dataclass(frozen=True, slots=True, kw_only=True)
class MethodTest:
    """Whether a fence method would work, and what it said."""

    method: str
    works: bool
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardShown:
    """The ruling of a hypervisor's guard. `held`: UUIDs of domains that it keeps paused. `stance`: "run", "stay",
    "hold" or "end"."""

    stance: str
    reason: str
    held: tuple[str, ...]
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """The changes of an adoption, what prevents it, and the new incarnation of the store ("": only planned)."""

    changes: tuple[str, ...]
    refusals: tuple[str, ...]
    incarnation: str


# ---- HA
@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Sentences of the brain."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainProgress:
    """The latest decision about one domain. `stuck`: nothing will change by itself."""

    reason: str
    stuck: bool
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainProgress:
    """How far a drain or resume is: the node's state, the domains on it, those that move back to it, and the latest
    decision about each. `disarmed`: "" if the brain is armed."""

    state: str
    intent: NodeIntent | None
    domains: tuple[str, ...]
    coming: tuple[str, ...]
    words: Mapping[str, DomainProgress] = field(default_factory=dict)
    disarmed: str = ""
