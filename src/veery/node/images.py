"""Images that a storage node builds into its volumes."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

from veery.config.settings import Image
from veery.errors import Refused
from veery.model.volume import Volume
from veery.node.volumes import VolumeService

KINDS = ("busybox",)


class Images:
    """Builds images by name."""

    def __init__(self, volumes: VolumeService, settings: Image) -> None:
        """`settings` name the guest's kernel, whose modules are included."""
        self._volumes, self._settings = volumes, settings

    async def build(self, kind: str, volume: str, report: Callable[[str, float], None]) -> Volume:
        """Fill volume `volume` of this node with image `kind`. `report` is called with each step and its progress (0 to
        1). Raises Refused if the kind is unknown, or the volume is in use or too small."""
        if kind not in KINDS:
            raise Refused(f"no image {kind!r}", hint=f"the images are: {', '.join(KINDS)}")
        from veery.storage import image

        release = platform.release()
        kernel = Path(self._settings.kernel or f"/boot/vmlinuz-{release}")
        modules = Path(self._settings.modules or f"/lib/modules/{release}")
        volumes = self._volumes.mine()
        # Refuse before the volume loses its content.
        await image.check((await volumes.get(volume)).size, kernel=kernel, modules=modules)
        async with volumes.filling(volume) as filled:
            await image.build_into(Path(filled.path), filled.size, kernel=kernel, modules=modules, report=report)
        return await self._volumes.find(volume)
