"""LUNs as block devices of this node's kernel, from which Xen's block back end serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from veery.errors import Refused
from veery.model.volume import AttachedDisk, Attachments, IscsiLun


class Initiator(Protocol):
    """The kernel's iSCSI initiator, as the node's storage side provides it."""

    async def login(self, lun: IscsiLun) -> Path:
        """Log into the LUN; return its block device, whose path is the same on every node. Idempotent. Raises Refused,
        Failed, OutcomeUnknown."""
        ...

    async def logout(self, lun: IscsiLun) -> None:
        """Log out of a LUN that no domain here uses any more. Idempotent."""
        ...

    async def rescan(self, lun: IscsiLun) -> None:
        """Read the current size of a LUN that is in use. Raises Failed."""
        ...


class NoInitiator:
    """An Initiator for a node without one: only files and devices of this node can be disks."""

    async def login(self, lun: IscsiLun) -> Path:
        """See Initiator.login."""
        raise Refused(f"{lun.iqn}: this node has no kernel initiator", hint="install open-iscsi")

    async def logout(self, lun: IscsiLun) -> None:
        """See Initiator.logout."""

    async def rescan(self, lun: IscsiLun) -> None:
        """See Initiator.rescan."""


def luns(attachments: Attachments) -> dict[str, IscsiLun]:
    """Return the LUNs among a domain's disks, by vdev."""
    return {disk.spec.vdev: lun for disk in attachments.disks if (lun := of(disk)) is not None}


def of(disk: AttachedDisk) -> IscsiLun | None:
    """Return the LUN of a disk, None where it is something else."""
    return disk.source if isinstance(disk.source, IscsiLun) else None
