"""Fencing: a node that is kept from the disks, the proof, and the report of the node when it is back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from veery.model.ha import FenceRecord, FenceState


class Method(StrEnum):
    """A fence method: a way to prove that a node no longer writes. model/ha.py refers to these."""

    STORAGE = "storage"  # no target admits it and its sessions are closed; checked on each storage node
    WATCHDOG = "watchdog"  # its own watchdog has ended it by now
    POWER = "power"  # its power is off, by the report of its power board
    OPERATOR = "operator"  # an operator confirms that it is off


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The present fence of a node. `created`: the store's revision at which it began; it identifies the fence, because
    the record's own revision changes with its state. `iqn`: the node's initiator name ("": none)."""

    node: str
    iqn: str
    created: int
    record: FenceRecord

    @property
    def shut(self) -> bool:
        """True if the targets shut out the node."""
        return self.record.state is not FenceState.ADMITTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """The record armed/NODE: a watchdog resets the node `timeout` seconds after its last feed. It is fed only while the
    node's lease is valid by its own clock, or while the store is down for all nodes."""

    node: str
    timeout: int
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A storage node's confirmation of fence `fence` (Fenced.created): none of its `targets` targets admits the node,
    and no session or incomplete login of the node is left. `closed` sessions were closed in `milliseconds`."""

    storage: str
    node: str
    fence: int
    targets: int
    closed: int = 0
    milliseconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """A node's report of its instances of domains, taken after it read the store at `revision`. `fence` is
    Fenced.created (0: not fenced).

    `kept` maps running domains to the revision of the owner key that permits them. `stale` names instances without
    such a key. While there is one, no target may admit the node."""

    node: str
    revision: int
    fence: int
    kept: dict[str, int]
    stale: tuple[str, ...]
