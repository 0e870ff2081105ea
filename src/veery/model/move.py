"""Moves: phases, progress and the report of one migration of one domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """The seven phases of a move; the table in ARCHITECTURE.md says who acts and what dies with whom."""

    BEGIN = "BEGIN"  # the source checks and journals; nothing to undo
    PREPARE = "PREPARE"  # the target reserves name, taps, disks and starts the empty half domain
    COPY = "COPY"  # memory flows; the domain runs on the source
    LOADED = "LOADED"  # both copies are paused, the target has everything
    COMMIT = "COMMIT"  # compare-and-set of the owner in the store: the point of no return
    FINISH = "FINISH"  # the target lets the domain run and announces its addresses
    CONFIRM = "CONFIRM"  # the source destroys its paused copy


class MoveState(StrEnum):
    """How a move stands."""

    QUEUED = "queued"  # waits until fewer moves are under way; nothing has begun
    RUNNING = "running"  # under way
    DONE = "done"  # the domain runs on the target
    CANCELLED = "cancelled"  # by a user; the domain runs on the source
    FAILED = "failed"  # undone; the domain runs on the source
    LOST = "lost"  # the rest of its memory was lost in post-copy; the target does what its on_crash says
    UNKNOWN = "unknown"  # the store did not answer at COMMIT; recovery reads the owner


class Compress(StrEnum):
    """Whether the stream of a copy is packed by the nodes, which costs processor time."""

    AUTO = "auto"  # where the path is slower than the processors, and a sample of the memory packs well
    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSettings:
    """How memory is copied. `policy` names what is done about a domain that is written to faster than it can be
    copied (veery.migrate.policy). `bandwidth` in bytes/s (0: unlimited), `downtime` in ms, `timeout` in s for the
    whole COPY (0: the policy's own), `stall` in s without a byte moving before the copy is given up. `turns`: where
    several domains move at once, it waits for its turn to switch over.

    `with_disks`: the disks that only the source has go along; to the folder `disk_dir` of the target ("": where the
    target's settings say, else the same path). With `remove_source` the source's files are removed at CONFIRM, else
    they are kept under another name."""

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
    """What a copy may use, settled before it begins. `hold`: it never switches over by itself, only once it is told
    to stop the domain; `throttle`: the domain's processors can be slowed; `delta`: pages sent before are sent as
    differences; `guard`: ms after which a switch-over that is not through is given up (0: never); `post_copy`: it may
    be told to leave for the target before all is sent; `peer_version`: that of the target's hypervisor ("": not
    told)."""

    hold: bool = False
    throttle: bool = False
    delta: bool = False
    guard: float = 0.0
    post_copy: bool = False
    peer_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What to change of a copy under way; None: as it is. `bandwidth` in bytes/s (0: unlimited), `downtime` in ms,
    `throttle` in percent of the processors' time taken away, from the next rounds on; `stop`: stop the domain, so
    that the copy ends with what is left; `post_copy`: stop it, so that it goes on at the target before all is sent."""

    bandwidth: int | None = None
    downtime: int | None = None
    throttle: int | None = None
    stop: bool = False
    post_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """One reading of a running copy. Bytes; rates in bytes/s; `throttle` in percent, `downtime` the limit in ms;
    `stopped`: the domain stands still for the rest of it; `note` says in words what has just changed: a new round, a
    step of the policy, a wait. `step` says what COPY is at where it copies more than memory: "disks", then "memory";
    `disk_total` and `disk_remaining` are the local disks' share of it."""

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
    """A reading of the copy as the report keeps it: `at` seconds after COPY began, `downtime` the limit in ms."""

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
    """One line of a move's story: what was done `at` seconds after COPY began, and why."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What the hypervisor says of a finished copy. Milliseconds and bytes. Where we stopped the domain ourselves,
    `downtime_ms` counts from then. `poised`: all but the rest was sent, and the domain stands; what is left follows
    once it runs at the target (post-copy). `cipher` encrypted the stream ("": none did, or it is not known)."""

    downtime_ms: float
    bytes: int
    rounds: int
    dirty_rate: float = 0.0
    setup_ms: float = 0.0
    poised: bool = False
    cipher: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """The report of one move: `phases` maps a phase to its milliseconds; `started` seconds of the epoch.
    `disk_bytes` are those of the local disks that were copied, `kept` where the source's copies of them are now.
    `packed`: bytes that went over the path where the stream was packed (0: it was not). `caution`: what would keep the
    domain from coming back, as it was told before it went. `cipher`: what encrypted the copy of its memory ("": nothing
    did, or it is not known)."""

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
