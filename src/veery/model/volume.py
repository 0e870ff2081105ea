"""Volumes: named disks, each one LUN of one target; and the ways in which a node reaches a disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from veery.model.domain import DiskFormat, DiskSpec, VifSpec


class Backing(StrEnum):
    """The backing of a volume on its storage node."""

    FILE = "file"  # a sparse file
    LVM = "lvm"  # a logical volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The record of one volume in the store. `size` in bytes (a multiple of 512).

    `path`: the file or device on storage node `node`. `tid`: tgt's target id (unique on that node). The LUN is always
    1. `portal`: "ADDRESS:PORT".
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
    """The running move of volume `volume` from storage node `source` to `target`, in the store. Without it no COMMIT
    succeeds. `was` and `place`: the volume's record before and after the move.

    `domain` (UUID `uuid`) uses the volume as disk `vdev` on node `node`; all four are "" if no domain does. `rate` in
    bytes/s (0: unlimited). `remove_source`: the source deletes its data at the end, else it keeps it under another
    name."""

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
    """The result of a volume's move. Bytes, seconds. `pause_ms`: how long the domain was paused. `kept`: the path of
    the source's old data ("": deleted)."""

    volume: str
    source: str
    target: str
    bytes: int
    seconds: float
    pause_ms: float = 0.0
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiator:
    """The credentials of one node at every target: its initiator name, CHAP user and password. `password` is "" if it
    is unknown, and in the store once it is sealed there."""

    node: str
    iqn: str
    user: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapSecret:
    """The sealed CHAP password of a node. `id` identifies the password without revealing it. `key`: the id of the key
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
    """A file or block device of this node. `direct`: it supports I/O without this node's page cache."""

    path: str
    format: DiskFormat
    block: bool
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedDisk:
    """A disk that only the source of a move has, and that moves with the domain. `size`: bytes that the guest sees.
    `allocated`: bytes that the file takes. `inode`: distinguishes the file from a later one at the same path (0: a
    device). `target`: its file on the target, once the target has chosen one."""

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
    """A disk of a domain file, with the source from which this node reaches its data (None: an empty drive)."""

    spec: DiskSpec
    source: IscsiLun | LocalDisk | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedVif:
    """An interface of a domain file, with its tap on this node."""

    spec: VifSpec
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachments:
    """Everything that the node prepares before a driver starts or receives a domain.

    `domid`: the id from the driver's `take_domid`, after which taps are named; 0: no id was taken."""

    domid: int = 0
    disks: tuple[AttachedDisk, ...] = ()
    vifs: tuple[AttachedVif, ...] = ()
