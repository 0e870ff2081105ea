"""LUNs under the kernel of this node, which Xen's block back end serves from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from veery.errors import Refused
from veery.model.volume import AttachedDisk, Attachments, IscsiLun


class Initiator(Protocol):
    """The kernel's iSCSI initiator. The node's storage side has it."""

    async def login(self, lun: IscsiLun) -> Path:
        """Have the LUN as a block device: its path, the same on every node. Idempotent. Raises Refused, Failed,
        OutcomeUnknown."""
        ...

    async def logout(self, lun: IscsiLun) -> None:
        """Let it go; nobody here uses it any more. Idempotent."""
        ...

    async def rescan(self, lun: IscsiLun) -> None:
        """See how large the LUN is now, while it is used. Raises Failed."""
        ...


class NoInitiator:
    """Where there is none: only files and devices of this node can be disks."""

    async def login(self, lun: IscsiLun) -> Path:
        """See Initiator.login."""
        raise Refused(f"{lun.iqn}: this node has no kernel initiator", hint="install open-iscsi")

    async def logout(self, lun: IscsiLun) -> None:
        """See Initiator.logout."""

    async def rescan(self, lun: IscsiLun) -> None:
        """See Initiator.rescan."""


def luns(attachments: Attachments) -> dict[str, IscsiLun]:
    """The LUNs among a domain's disks, by vdev."""
    return {disk.spec.vdev: lun for disk in attachments.disks if (lun := of(disk)) is not None}


def of(disk: AttachedDisk) -> IscsiLun | None:
    """The LUN that a disk is on, None where it is something else."""
    return disk.source if isinstance(disk.source, IscsiLun) else None
