"""What `veery doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a thing stands."""

    OK = "ok"
    WARN = "warn"  # it works, and something should be done
    BAD = "bad"  # it does not work, or will not when it is needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: `told` is one line, `advice` what to do about it ("" where nothing is)."""

    node: str
    what: str
    level: Level
    told: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a node says of itself. `epoch`: its clock as it answered; `bridges`: their MTUs by name; `able`: the level
    that its version can do (0: it does not tell)."""

    node: str
    version: str
    epoch: float
    bridges: dict[str, int]
    findings: tuple[Finding, ...]
    able: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A node's answer, with our clock when it was asked and when it had answered."""

    health: Health
    asked: float
    answered: float
