"""Volumes: named disks, each one LUN behind one target; and how a node reaches a disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from veery.model.domain import DiskFormat, DiskSpec, VifSpec


class Backing(StrEnum):
    """Where a volume's bytes are on its storage node."""

    FILE = "file"  # a sparse file
    LVM = "lvm"  # a logical volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The record of one volume, kept in the store. `size` in bytes (a multiple of 512).

    `path` is where the bytes are on storage node `node`; `tid` is tgt's target id (unique on that node),
    the LUN is always 1. `portal` is "ADDRESS:PORT".
    """

    name: str
    size: int
    node: str
    backing: Backing
    path: str
    iqn: str
    tid: int
    portal: str
    ready: bool = True
    created: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMove:
    """The move of volume `volume` from storage node `source` to `target`, kept in the store while it is under way:
    without it no COMMIT succeeds. `was` and `place` are the volume's record as it was and as it will be.

    `domain` (UUID `uuid`) uses it as its disk `vdev` on node `node`; all four "" where nobody does. `rate` in bytes/s
    (0: unlimited). With `remove_source` the source's bytes go at the end, else they are kept under another name."""

    id: str
    volume: str
    source: str
    target: str
    was: Volume
    place: Volume
    domain: str = ""
    uuid: str = ""
    vdev: str = ""
    node: str = ""
    rate: int = 0
    remove_source: bool = False
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMoved:
    """What came of it. Bytes, seconds; `pause_ms` is how long the domain stood still, `kept` where the source's bytes
    are now ("": they are gone)."""

    volume: str
    source: str
    target: str
    bytes: int
    seconds: float
    pause_ms: float = 0.0
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiator:
    """One node's credentials at every target: its initiator name and its CHAP user and password. `password` is "" in
    the store once it is sealed there, and where it is not known."""

    node: str
    iqn: str
    user: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapSecret:
    """A node's CHAP password, sealed. `id` tells which password it is, and nothing of it; `key` is the id of the key
    that opens it."""

    id: str
    key: str
    sealed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiLun:
    """A LUN as an initiator reaches it."""

    portal: str
    iqn: str
    lun: int
    initiator: str
    user: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDisk:
    """A file or block device of this node. `direct`: it can be read and written past this node's page cache."""

    path: str
    format: DiskFormat
    block: bool
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedDisk:
    """A disk that only the source of a move has, and that goes along. `size` in bytes as the guest sees it,
    `allocated` those that its file takes; `inode` tells that file from a later one at the same path (0: a device).
    `target` is its file on the move's target, once that has chosen one."""

    vdev: str
    path: str
    format: DiskFormat
    block: bool
    size: int
    allocated: int
    inode: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk of a domain file together with how this node reaches its bytes (None: an empty drive)."""

    spec: DiskSpec
    source: IscsiLun | LocalDisk | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedVif:
    """An interface of a domain file together with the tap made for it on this node."""

    spec: VifSpec
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachments:
    """All that the node prepares before a driver starts or receives a domain.

    `domid` is the id that the driver's `take_domid` gave for it (taps are named after it); 0: none was asked for."""

    domid: int = 0
    disks: tuple[AttachedDisk, ...] = ()
    vifs: tuple[AttachedVif, ...] = ()
