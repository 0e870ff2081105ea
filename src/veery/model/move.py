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

    RUNNING = "running"  # under way
    DONE = "done"  # the domain runs on the target
    CANCELLED = "cancelled"  # by a user; the domain runs on the source
    FAILED = "failed"  # undone; the domain runs on the source
    UNKNOWN = "unknown"  # the store did not answer at COMMIT; recovery reads the owner


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSettings:
    """How memory is copied. `bandwidth` in bytes/s (0: unlimited), `downtime` in ms, `timeout` in s
    for the whole COPY (0: none), `stall` in s without a byte moving before the copy is given up."""

    live: bool = True
    bandwidth: int = 0
    downtime: int = 50
    timeout: float = 0.0
    stall: float = 15.0
    tls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """One reading of a running copy. Bytes; rates in bytes/s. `stopped`: the domain stands still for the rest of
    it, which is its last part."""

    phase: Phase
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    rate: float = 0.0
    dirty_rate: float = 0.0
    rounds: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What the hypervisor says of a finished copy. Milliseconds and bytes."""

    downtime_ms: float
    bytes: int
    rounds: int
    dirty_rate: float = 0.0
    setup_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """The report of one move: `phases` maps a phase to its milliseconds; `started` seconds of the epoch."""

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
