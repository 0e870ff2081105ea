"""What this node has begun of moves of volumes and not ended."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from veery.errors import Failed
from veery.host import kept
from veery.host.files import write_atomic
from veery.model.codec import encode
from veery.model.volume import VolumeMove


class Side(StrEnum):
    """Which part of the move this node has."""

    SOURCE = "source"
    TARGET = "target"
    DOMAIN = "domain"


class Journal:
    """What this node has begun of moves of volumes and not ended: a file a side."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when first written to."""
        self._folder = folder

    def write(self, side: Side, move: VolumeMove) -> None:
        """Remember. Raises Failed on a full disk."""
        try:
            write_atomic(self._path(side, move), encode(move))
        except OSError as error:
            raise Failed(f"cannot journal the move: {error}", hint=f"make room in {self._folder}") from error

    def strike(self, side: Side, move: VolumeMove) -> None:
        """Forget it: it is over on this side."""
        self._path(side, move).unlink(missing_ok=True)

    def open(self) -> list[tuple[Side, VolumeMove]]:
        """What is begun and not ended. A file that cannot be read is put aside: see docs/hosts.md."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            move = kept.take(path, VolumeMove)
            side = path.name.split(".")[1]
            if move is not None and side in tuple(Side):
                found.append((Side(side), move))
        return found

    def illegible(self) -> list[tuple[Side, str]]:
        """Side and id of each move whose file was put aside."""
        names = [path.name.split(".") for path in self._folder.glob(f"*.json{kept.SUFFIX}")]
        return [(Side(words[1]), words[0]) for words in names if words[1] in tuple(Side)]

    def has(self, side: Side, move: VolumeMove) -> bool:
        """Whether that is open."""
        return self._path(side, move).exists()

    def _path(self, side: Side, move: VolumeMove) -> Path:
        return self._folder / f"{move.id}.{side.value}.json"
