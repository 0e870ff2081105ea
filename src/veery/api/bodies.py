"""The bodies of requests that are no records of veery.model. A null counts as a missing field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from veery.model.domain import DiskSpec, DomainSpec, VifSpec
from veery.model.ha import GroupKind, Policy
from veery.model.move import MoveSettings

NodeNames = Annotated[list[str], Meta(max_length=1000)]


# ---- domains
@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """The domain to start. `paused`: it does not run before an order. `force`: also on a
    node that is sick or in quarantine."""

    spec: DomainSpec
    paused: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """The new name of a domain."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMemory:
    """The memory target of a domain, in MiB."""

    mebibytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """The file to write, and what becomes of the domain."""

    path: str
    leave: Literal["destroyed", "running", "paused"] = "destroyed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """The file of a saved domain. `force`: restore even if its disks may have changed since."""

    path: str
    paused: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachDisk:
    """The disk to attach."""

    disk: DiskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCd:
    """The CD-ROM drive, and its new medium (null: none)."""

    vdev: str
    disk: DiskSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachVif:
    """The network interface to attach."""

    vif: VifSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`what`: "nmi" or "power"."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysrq:
    """The key, one letter or digit."""

    letter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """The file to write, on the domain's node."""

    path: str


# ---- moves
@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """The node to move to, by name or address. `brain`: true if the brain orders the move. `force`: also to
    a node that is sick or in quarantine."""

    target: str
    settings: MoveSettings = field(default_factory=MoveSettings)
    brain: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMove:
    """The node to move to, by name or address. `quick`: without samples of its memory and probes of the path."""

    target: str
    settings: MoveSettings = field(default_factory=MoveSettings)
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneMove:
    """New limits of a running copy, one or both: bytes per second (0: no limit), and the pause in milliseconds."""

    bandwidth: int | None = None
    downtime: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuate:
    """The domains to move (none: all) and the nodes to move them to (none: all other live nodes). `force`: also to
    nodes that are sick or in quarantine."""

    domains: list[str]
    targets: list[str]
    settings: MoveSettings = field(default_factory=MoveSettings)
    force: bool = False


# ---- volumes
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    """A new volume of `size` bytes. `backing`: "file", "lvm" or "" (file). `node`: the storage node, "" if there is
    only one."""

    name: str
    size: int
    backing: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """The new size in bytes."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildImage:
    """The image to build, for example "busybox"."""

    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveVolume:
    """The storage node to move to. `rate`: bytes per second, 0 for no limit. `remove_source`: delete the old copy."""

    storage: str
    rate: int = 0
    remove_source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LetGo:
    """The id of a volume's move."""

    move: str


# ---- nodes
@dataclass(frozen=True, slots=True, kw_only=True)
class Readdress:
    """The new address. `plan`: change nothing."""

    address: str
    plan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """`on`: give it; else take it away."""

    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """An address, and TCP ports."""

    address: str
    ports: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Well:
    """The sensor whose reading is declared well, "" for the whole node. `by`: the name of the operator."""

    sensor: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """`by`: the name of the operator, for the records."""

    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Force:
    """`force`: do it although the node warns."""

    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Password:
    """The caller's own CHAP password."""

    password: str


# ---- HA
@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The boot id of the instance to stop."""

    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPolicy:
    """The policy of a domain. A missing field keeps its value. `delay`: seconds."""

    policy: Policy
    priority: int | None = None
    group: str | None = None
    max_restarts: int | None = None
    delay: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetGroup:
    """The rule of a group. A missing field keeps its value."""

    kind: GroupKind | None = None
    nodes: list[str] | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainNode:
    """`plan`: change nothing. `force`: drain in spite of the plan's risks. `by`: the name of the operator."""

    plan: bool = False
    force: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeNode:
    """`home`: move the domains that were drained from the node back. `by`: the name of the operator."""

    home: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarm:
    """The name of the operator, and why."""

    by: str = ""
    reason: str = ""


# ---- fences and recovery
@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitNode:
    """The revision of the fence that the order is about."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """`lost`: nodes that are gone for good. `plan`: change nothing. `by`: the name of the operator."""

    lost: NodeNames = field(default_factory=list)
    plan: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """`file`: a copy of the store on this node, "" for the node's own data. `lost`: nodes that are gone for good.
    `plan`: change nothing."""

    file: str = ""
    lost: NodeNames = field(default_factory=list)
    plan: bool = False
