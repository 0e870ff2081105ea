"""The findings of `veery doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The level of a finding."""

    OK = "ok"
    WARN = "warn"  # it works, but needs attention
    BAD = "bad"  # it does not work, or would fail when needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked thing. `told`: the finding in one line. `advice`: what to do ("": nothing)."""

    node: str
    what: str
    level: Level
    told: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A node's report of itself. `epoch`: its clock at the answer. `bridges`: MTUs of its bridges by name. `able`: the
    level that its version supports (0: not reported)."""

    node: str
    version: str
    epoch: float
    bridges: dict[str, int]
    findings: tuple[Finding, ...]
    able: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A node's answer, with the asking node's clock at the request and at the answer."""

    health: Health
    asked: float
    answered: float
