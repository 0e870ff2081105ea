"""A node's health as its daemon tells it: the verdict on its sensors, and the signs that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NodeVerdict(StrEnum):
    """What the signs of a node's sensors ask for."""

    WELL = "well"  # no sign speaks against the node
    QUARANTINE = "quarantine"  # the node keeps its domains, and the brain gives it no others
    EVACUATE = "evacuate"  # the domains of the node move away


class SensorMode(StrEnum):
    """How far a sensor's signs may go."""

    OFF = "off"  # its signs do not count
    TELL = "tell"  # its signs are told, and change nothing
    QUARANTINE = "quarantine"  # its signs put the node into quarantine at most
    EVACUATE = "evacuate"  # its signs may have the node emptied


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSign:
    """One part of a node that is not well, or was not of late. `asks`: what it asks for; `would`: what it would ask for
    if its sensor's mode allowed that. `since`: epoch. `severe`: the node may die at any moment; `shared`: its cause may
    lie outside of the node, and show on others too."""

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

    @property
    def text(self) -> str:
        """The sign in one line."""
        value = f" ({self.value})" if self.value else ""
        return f"{self.sensor} {self.part}: {self.sentence}{value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecord:
    """health/NODE: the newest verdict, since when (epoch) it stands, and the signs, the gravest first. `severe`: the
    node may die at any moment; `singly`: its domains leave one at a time, because copying reads doubtful memory."""

    verdict: NodeVerdict = NodeVerdict.WELL
    since: float = 0.0
    severe: bool = False
    singly: bool = False
    signs: tuple[HealthSign, ...] = ()
    revision: int = 0

    @property
    def reason(self) -> str:
        """The gravest sign that led to the verdict; "" where the node is well."""
        if self.verdict is NodeVerdict.WELL:
            return ""
        return next((each.text for each in self.signs if each.asks is self.verdict), "")

    @property
    def withheld(self) -> HealthSign | None:
        """The gravest sign that would have led to more, if its sensor's mode allowed that; None without one."""
        more = [each for each in self.signs if _rank(each.would) > _rank(self.verdict)]
        return max(more, key=lambda each: _rank(each.would), default=None)


def _rank(verdict: NodeVerdict) -> int:
    return tuple(NodeVerdict).index(verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorState:
    """One sensor on a node's daemon. `age_s`: seconds since its last reading, None before the first; `pace_s`: seconds
    between two; `level`: the worst of its signs; `late`: its reading is overdue."""

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
    """What a node's daemon tells of its health when it is asked. `modes`: those that the settings name."""

    node: str
    record: HealthRecord
    sensors: tuple[SensorState, ...] = ()
    history: tuple[HealthChange, ...] = ()
    modes: Mapping[str, SensorMode] = field(default_factory=dict)
