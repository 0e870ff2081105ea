"""What this node has begun and not ended: one small file a move, so that whoever comes back can settle it.

The file is replaced in one step and not synced: it is for a daemon that died. When the machine died, its
domains died with it and the owner key alone decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from veery.errors import Failed
from veery.host.files import write_atomic
from veery.model.codec import decode, encode
from veery.model.move import Phase
from veery.model.volume import CarriedDisk


class Side(StrEnum):
    """Which end of the move this node is."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One move as this node remembers it. `owner_revision` is the fencing token under which it began,
    `reservation_revision` that of the target's promise (0: none yet); `paused`: the user had paused it. `disks` go
    along: at the source with the inode of its file, at the target with that of the one it made (0: not yet made)."""

    move: str
    side: Side
    domain: str
    uuid: str
    boot: str
    source: str
    target: str
    owner_revision: int
    reservation_revision: int = 0
    paused: bool = False
    disks: tuple[CarriedDisk, ...] = ()
    remove_source: bool = False
    phase: Phase = Phase.BEGIN

    def at(self, phase: Phase) -> Line:
        """The same line, in `phase`."""
        return replace(self, phase=phase)


class Journal:
    """The folder of open moves."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when first written to."""
        self._folder = folder

    def write(self, line: Line) -> Line:
        """Remember `line`, in place of an earlier one of the same move. Raises Failed on a full disk."""
        try:
            write_atomic(self._path(line), encode(line))
        except OSError as error:
            raise Failed(f"cannot journal the move: {error}", hint=f"make room in {self._folder}") from error
        return line

    def strike(self, line: Line) -> None:
        """Forget it: the move is over on this side."""
        self._path(line).unlink(missing_ok=True)

    def open(self) -> tuple[Line, ...]:
        """Every move begun and not ended."""
        return tuple(decode(path.read_bytes(), Line) for path in sorted(self._folder.glob("*.json")))

    def _path(self, line: Line) -> Path:
        return self._folder / f"{line.move}.{line.side.value}.json"
