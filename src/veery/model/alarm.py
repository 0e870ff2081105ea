"""Alarm messages to operators, and the state of the ways that send them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmMessage:
    """One event for an operator, with the fields of an Event. `at`: seconds of the epoch. `node`: its `by`."""

    cluster: str
    node: str
    at: float
    level: str
    what: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmWay:
    """One way of sending. `at`: the last try (epoch, 0: none yet). `error`: its error ("": sent). `dropped`: messages
    dropped because the queue was full."""

    name: str
    at: float = 0.0
    error: str = ""
    dropped: int = 0
