"""The health of a node: the verdict on its sensors, and the signs that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NodeVerdict(StrEnum):
    """The action that the signs of a node's sensors ask for."""

    WELL = "well"  # no sign reports a problem
    QUARANTINE = "quarantine"  # the node keeps its domains, and the brain gives it no others
    EVACUATE = "evacuate"  # the domains of the node move away


class SensorMode(StrEnum):
    """The strongest action that a sensor's signs can cause."""

    OFF = "off"  # its signs do not count
    TELL = "tell"  # its signs are reported, and have no effect
    QUARANTINE = "quarantine"  # its signs put the node into quarantine at most
    EVACUATE = "evacuate"  # its signs can empty the node


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSign:
    """A part of a node that is not well, or recently was not. `asks`: the verdict that it asks for. `would`: the same
    without the limit of its sensor's mode. `since`: epoch. `severe`: the node may die at any moment. `shared`: the
    cause can be outside the node, and affect other nodes too. `serial`: of the part, "" if unknown."""

    sensor: str
    part: str
    level: str
    value: str = ""
    sentence: str = ""
    since: float = 0.0
    asks: NodeVerdict = NodeVerdict.WELL
    would: NodeVerdict = NodeVerdict.WELL
    severe: bool = False
    shared: bool = False
    serial: str = ""

    @property
    def text(self) -> str:
        """The sign as one line."""
        value = f" ({self.value})" if self.value else ""
        return f"{self.sensor} {self.part}: {self.sentence}{value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecord:
    """health/NODE: the newest verdict, since when it applies (epoch), and the signs, the gravest first. `severe`: the
    node may die at any moment. `singly`: its domains leave one at a time, because copying reads doubtful memory."""

    verdict: NodeVerdict = NodeVerdict.WELL
    since: float = 0.0
    severe: bool = False
    singly: bool = False
    signs: tuple[HealthSign, ...] = ()
    revision: int = 0

    @property
    def reason(self) -> str:
        """The gravest sign that led to the verdict; "" if the node is well."""
        if self.verdict is NodeVerdict.WELL:
            return ""
        return next((each.text for each in self.signs if each.asks is self.verdict), "")

    @property
    def withheld(self) -> HealthSign | None:
        """The gravest sign that its sensor's mode kept from a worse verdict; None if there is none."""
        more = [each for each in self.signs if _rank(each.would) > _rank(self.verdict)]
        return max(more, key=lambda each: _rank(each.would), default=None)


def _rank(verdict: NodeVerdict) -> int:
    return tuple(NodeVerdict).index(verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorState:
    """The state of one sensor of a node. `age_s`: seconds since its last reading, None before the first. `pace_s`:
    seconds between two readings. `level`: the worst level of its signs. `late`: its reading is overdue."""

    sensor: str
    level: str
    pace_s: float
    age_s: float | None = None
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChange:
    """One change of a node's health. `at`: epoch."""

    at: float
    verdict: NodeVerdict
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealth:
    """The health that a node's veeryd reports. `modes`: the sensor modes that the settings name."""

    node: str
    record: HealthRecord
    sensors: tuple[SensorState, ...] = ()
    history: tuple[HealthChange, ...] = ()
    modes: Mapping[str, SensorMode] = field(default_factory=dict)


# ---- moves that a verdict caused
class MoveResult(StrEnum):
    """The result of a move that a verdict caused."""

    UNDERWAY = "underway"  # the leader that ordered it waits for its end
    DONE = "done"  # the domain runs on the target
    FAILED = "failed"  # the domain did not move
    UNKNOWN = "unknown"  # the leader has not learned the end of the move


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePromise:
    """The forecast of a move. `gap_ms`: the gap that a client outside sees. `total_ms`: the time from the order to the
    end. None: no forecast, and `why` has the reason."""

    gap_ms: float | None = None
    total_ms: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOutcome:
    """The end of a move. `paused_ms`: from the pause on the source until the target has resumed the domain (None: the
    hypervisor does not report it). `total_ms`: None if the move did not succeed."""

    result: MoveResult = MoveResult.UNDERWAY
    paused_ms: float | None = None
    total_ms: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthMove:
    """health-move/NUMBER: a move that the verdict on node `source` caused: the forecast and the end. `at`: epoch.
    `reason`: the sign that led to the verdict. `urgent`: the node could die at any moment. `term`: the revision of the
    key `leader` under which the move was ordered."""

    at: float
    domain: str
    source: str
    target: str
    reason: str
    urgent: bool = False
    promised: MovePromise = MovePromise()
    outcome: MoveOutcome = MoveOutcome()
    term: int = 0
