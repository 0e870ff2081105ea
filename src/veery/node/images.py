"""Images that a storage node builds into its volumes."""

from __future__ import annotations

from pathlib import Path

from veery.node.volumes import VolumeService

KINDS = ("busybox",)


class Images:
    """Builds images by name."""

    def __init__(self, volumes: VolumeService, *, kernel: Path, modules: Path) -> None:
        """`kernel` and `modules` are the guest's: a vmlinuz, and a lib/modules/VERSION."""
        self._volumes, self._kernel, self._modules = volumes, kernel, modules
