"""The journal of volume moves that this node has begun and not ended."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from veery.errors import Failed
from veery.host import kept
from veery.host.files import write_atomic
from veery.model.codec import encode
from veery.model.volume import VolumeMove


class Side(StrEnum):
    """The part of this node in the move."""

    SOURCE = "source"
    TARGET = "target"
    DOMAIN = "domain"


class Journal:
    """The volume moves that this node has begun and not ended: one file for each side."""

    def __init__(self, folder: Path) -> None:
        """`folder` is created at the first write."""
        self._folder = folder

    def write(self, side: Side, move: VolumeMove) -> None:
        """Record the move. Raises Failed on a full disk."""
        try:
            write_atomic(self._path(side, move), encode(move))
        except OSError as error:
            raise Failed(f"cannot journal the move: {error}", hint=f"free some space in {self._folder}") from error

    def strike(self, side: Side, move: VolumeMove) -> None:
        """Remove the move: it is over on this side."""
        self._path(side, move).unlink(missing_ok=True)

    def open(self) -> list[tuple[Side, VolumeMove]]:
        """Return the moves that are begun and not ended. A file that cannot be read is put aside: see docs/hosts.md."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            move = kept.take(path, VolumeMove)
            side = path.name.split(".")[1]
            if move is not None and side in tuple(Side):
                found.append((Side(side), move))
        return found

    def illegible(self) -> list[tuple[Side, str]]:
        """Return side and id of each move whose file was put aside."""
        names = [path.name.split(".") for path in self._folder.glob(f"*.json{kept.SUFFIX}")]
        return [(Side(words[1]), words[0]) for words in names if words[1] in tuple(Side)]

    def has(self, side: Side, move: VolumeMove) -> bool:
        """Return True if the move is open on that side."""
        return self._path(side, move).exists()

    def _path(self, side: Side, move: VolumeMove) -> Path:
        return self._folder / f"{move.id}.{side.value}.json"
