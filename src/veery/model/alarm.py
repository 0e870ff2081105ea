"""A message to somebody who is not there, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmMessage:
    """One event for a person, with the fields of an Event; `at` in seconds of the epoch, `node` is its `by`."""

    cluster: str
    node: str
    at: float
    level: str
    what: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmWay:
    """One way of sending: `at` the last try (epoch, 0: none yet), `error` what came of it ("": sent); `dropped`:
    messages that were let go because too many waited."""

    name: str
    at: float = 0.0
    error: str = ""
    dropped: int = 0
