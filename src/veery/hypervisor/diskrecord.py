"""An attached disk as a driver's record can tell it in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from veery.model.domain import DiskSpec
from veery.model.volume import AttachedDisk, IscsiLun, LocalDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDisk:
    """An AttachedDisk, with the kind of its source told apart."""

    spec: DiskSpec
    lun: IscsiLun | None = None
    local: LocalDisk | None = None


def disks_written(disks: Iterable[AttachedDisk]) -> tuple[WrittenDisk, ...]:
    """`disks` as they are written."""
    return tuple(
        WrittenDisk(
            spec=disk.spec,
            lun=disk.source if isinstance(disk.source, IscsiLun) else None,
            local=disk.source if isinstance(disk.source, LocalDisk) else None,
        )
        for disk in disks
    )


def disks_read(written: Iterable[WrittenDisk]) -> tuple[AttachedDisk, ...]:
    """`written` as they were."""
    return tuple(AttachedDisk(spec=disk.spec, source=disk.lun or disk.local) for disk in written)
