"""An attached disk in the form that a driver's record stores as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from veery.model.domain import DiskSpec
from veery.model.volume import AttachedDisk, IscsiLun, LocalDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDisk:
    """An AttachedDisk with one field for each kind of source."""

    spec: DiskSpec
    lun: IscsiLun | None = None
    local: LocalDisk | None = None


def disks_written(disks: Iterable[AttachedDisk]) -> tuple[WrittenDisk, ...]:
    """Return `disks` in their written form."""
    return tuple(
        WrittenDisk(
            spec=disk.spec,
            lun=disk.source if isinstance(disk.source, IscsiLun) else None,
            local=disk.source if isinstance(disk.source, LocalDisk) else None,
        )
        for disk in disks
    )


def disks_read(written: Iterable[WrittenDisk]) -> tuple[AttachedDisk, ...]:
    """Return the disks of `written`."""
    return tuple(AttachedDisk(spec=disk.spec, source=disk.lun or disk.local) for disk in written)
