"""Moves: phases, settings, progress and report of the migration of one domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """The seven phases of a move. The table in ARCHITECTURE.md has the actor and the failures of each phase."""

    BEGIN = "BEGIN"  # the source checks and journals; nothing to undo
    PREPARE = "PREPARE"  # the target reserves name, taps and disks, and starts the empty incoming domain
    COPY = "COPY"  # memory is copied; the domain runs on the source
    LOADED = "LOADED"  # both copies are paused, the target has everything
    COMMIT = "COMMIT"  # compare-and-set of the owner in the store: the point of no return
    FINISH = "FINISH"  # the target resumes the domain and announces its addresses
    CONFIRM = "CONFIRM"  # the source destroys its paused copy


class MoveState(StrEnum):
    """The state of a move."""

    QUEUED = "queued"  # waits until fewer moves are running; nothing has started
    RUNNING = "running"  # under way
    DONE = "done"  # the domain runs on the target
    CANCELLED = "cancelled"  # cancelled by a user; the domain runs on the source
    FAILED = "failed"  # undone; the domain runs on the source
    LOST = "lost"  # the rest of its memory was lost in post-copy; the target does what its on_crash says
    UNKNOWN = "unknown"  # the store did not answer at COMMIT; recovery reads the owner


class Compress(StrEnum):
    """Whether the nodes compress the stream of a copy, which costs processor time."""

    AUTO = "auto"  # if the path is slower than the processors, and a sample of the memory compresses well
    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSettings:
    """The settings of a move. `policy`: for a domain that writes faster than the copy (veery.migrate.policy).
    `bandwidth` in bytes/s (0: unlimited), `downtime` in ms, `timeout` in s for the whole COPY (0: that of the policy),
    `stall` in s without progress before the source gives up the copy. `turns`: if several domains move at once, wait
    for the turn to switch over.

    `with_disks`: also move the disks that only the source has, to the folder `disk_dir` of the target ("": that in the
    target's settings, else the same path). `remove_source`: the source deletes its files at CONFIRM, else it keeps
    them under another name."""

    policy: str = "balanced"
    live: bool = True
    bandwidth: int = 0
    downtime: int = 50
    timeout: float = 0.0
    stall: float = 15.0
    tls: bool = True
    turns: bool = True
    with_disks: bool = False
    disk_dir: str = ""
    remove_source: bool = False
    compress: Compress = Compress.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """The features of a copy, decided before it begins. `hold`: the copy switches over only when ordered to pause the
    domain. `throttle`: it may slow the domain's processors. `delta`: it sends a page that was sent before as a
    difference. `guard`: ms after which an incomplete switch-over is given up (0: never). `post_copy`: the domain may
    switch to the target before all memory is sent. `peer_version`: version of the target's hypervisor ("": unknown)."""

    hold: bool = False
    throttle: bool = False
    delta: bool = False
    guard: float = 0.0
    post_copy: bool = False
    peer_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Changes of a running copy; None: no change. `bandwidth` in bytes/s (0: unlimited), `downtime` in ms, `throttle`
    in percent of processor time taken away, from the next rounds on. `stop`: pause the domain, so that the copy ends
    with the rest. `post_copy`: pause the domain, so that it resumes on the target before all memory is sent."""

    bandwidth: int | None = None
    downtime: int | None = None
    throttle: int | None = None
    stop: bool = False
    post_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """One reading of a running copy. Bytes; rates in bytes/s; `throttle` in percent; `downtime`: the limit in ms.
    `stopped`: the domain is paused for the rest of the copy. `note`: a text about a change: a new round, a step of the
    policy, a wait. `step`: the part of a COPY that also copies disks: "disks", then "memory". `disk_total` and
    `disk_remaining`: the share of the local disks."""

    phase: Phase
    step: str = ""
    disk_total: int = 0
    disk_remaining: int = 0
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    rate: float = 0.0
    dirty_rate: float = 0.0
    rounds: int = 0
    stopped: bool = False
    throttle: int = 0
    downtime: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A reading of the copy in the report. `at`: seconds after the start of COPY. `downtime`: the limit in ms."""

    at: float
    rounds: int
    transferred: int
    remaining: int
    rate: float
    dirty_rate: float
    throttle: int
    downtime: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One entry of a move's history: the action `at` seconds after the start of COPY, and its reason."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """The hypervisor's result of a finished copy. Milliseconds and bytes. If veery itself paused the domain,
    `downtime_ms` counts from then. `poised`: the domain is paused, and the rest of its memory follows once it runs on
    the target (post-copy). `cipher`: the encryption of the stream ("": none, or unknown)."""

    downtime_ms: float
    bytes: int
    rounds: int
    dirty_rate: float = 0.0
    setup_ms: float = 0.0
    poised: bool = False
    cipher: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """The report of one move. `phases` maps a phase to its milliseconds. `started`: seconds of the epoch. `disk_bytes`:
    copied bytes of local disks. `kept`: the paths of the source's old files. `packed`: bytes of the compressed stream
    (0: not compressed). `caution`: the warning, given before the move, of what would prevent a move back. `cipher`: the
    encryption of the memory stream ("": none, or unknown)."""

    id: str
    domain: str
    source: str
    target: str
    state: MoveState
    phase: Phase
    started: float
    total_ms: float = 0.0
    downtime_ms: float = 0.0
    bytes: int = 0
    rounds: int = 0
    dirty_rate: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    hint: str = ""
    runs_on: str = ""
    policy: str = ""
    samples: tuple[Sample, ...] = ()
    story: tuple[Remark, ...] = ()
    disk_bytes: int = 0
    kept: tuple[str, ...] = ()
    caution: str = ""
    packed: int = 0
    cipher: str = ""
