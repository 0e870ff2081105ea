"""Fencing: a node that is kept from the disks, what proves it, and what the node itself says when it is back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from veery.model.ha import FenceRecord, FenceState


class Method(StrEnum):
    """How it can be proven that a node no longer writes: the methods that model/ha.py speaks of."""

    STORAGE = "storage"  # the targets let it in no more, its sessions are closed: read back from each
    WATCHDOG = "watchdog"  # its own watchdog has ended it by now
    POWER = "power"  # its power is off, as its board tells
    OPERATOR = "operator"  # a person says that it is off


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """A node's fence as it stands. `created`, the store's revision at which it began, names it for as long as it lasts;
    the record's own revision changes with its state. `iqn` is the node's initiator name ("": it has none)."""

    node: str
    iqn: str
    created: int
    record: FenceRecord

    @property
    def shut(self) -> bool:
        """Whether the targets keep the node out."""
        return self.record.state is not FenceState.ADMITTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """The record armed/NODE: a watchdog ends the node `timeout` seconds after its last feed, and is fed only while the
    node's lease holds by its own clock, or the store is down for all."""

    node: str
    timeout: int
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A storage node's word on fence `fence` (Fenced.created): of its `targets` targets none lets the node in, no
    session and no half login of it is left. `closed` sessions were closed for that, in `milliseconds`."""

    storage: str
    node: str
    fence: int
    targets: int
    closed: int = 0
    milliseconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """What a node says of the copies of domains on it, looked at after it read the store at `revision`; `fence` is
    Fenced.created (0: not fenced).

    `kept` maps domains that run there to the revision of the owner key that lets them; `stale` names copies that
    nothing lets run: as long as there is one the node must not be let in to the disks."""

    node: str
    revision: int
    fence: int
    kept: dict[str, int]
    stale: tuple[str, ...]
