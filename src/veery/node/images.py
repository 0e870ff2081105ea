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
        """`settings` name the guest's kernel, whose modules go in."""
        self._volumes, self._settings = volumes, settings

    async def build(self, kind: str, volume: str, report: Callable[[str, float], None]) -> Volume:
        """Fill volume `volume` of this node with image `kind`; `report` hears of each step and how far it has
        come (0 to 1). Raises Refused when the kind is unknown, the volume in use or too small."""
        if kind not in KINDS:
            raise Refused(f"no image {kind!r}", hint=f"there is {', '.join(KINDS)}")
        from veery.storage import image

        release = platform.release()
        kernel = Path(self._settings.kernel or f"/boot/vmlinuz-{release}")
        modules = Path(self._settings.modules or f"/lib/modules/{release}")
        volumes = self._volumes.mine()
        # What can be refused is refused before the volume loses what is in it.
        await image.check((await volumes.get(volume)).size, kernel=kernel, modules=modules)
        async with volumes.filling(volume) as filled:
            await image.build_into(Path(filled.path), filled.size, kernel=kernel, modules=modules, report=report)
        return await self._volumes.find(volume)
