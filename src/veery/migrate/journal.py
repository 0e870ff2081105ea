"""The journal of this node's unfinished moves: one small file a move, so that the next run of veeryd can settle it.

Each phase appends a line, which takes microseconds; replacing the file would take milliseconds of the gap. The last
whole line counts. The file is not synced: it is for a daemon that died. When the machine died, its domains died with it
and the owner key alone decides."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from veery.config.check import check_move
from veery.errors import Failed
from veery.host import kept
from veery.host.shortage import is_shortage
from veery.model.codec import decode, encode
from veery.model.move import Phase
from veery.model.volume import CarriedDisk


class Side(StrEnum):
    """The end of the move that this node is."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One move as this node remembers it. `owner_revision` is the fencing token under which it began,
    `reservation_revision` that of the target's promise (0: none yet). `paused`: the user had paused the domain. `disks`
    go along: at the source with the inode of its file, at the target with that of the file it made (0: not yet made).
    `post_copy`: after COMMIT the rest of the memory follows; until it has arrived, neither copy can run without the
    other."""

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
    post_copy: bool = False
    phase: Phase = Phase.BEGIN

    def at(self, phase: Phase) -> Line:
        """Return the same line in `phase`."""
        return replace(self, phase=phase)


@dataclass(frozen=True, slots=True)
class Illegible:
    """A move whose file could not be read: only the move and the side are known, from the file's name."""

    move: str
    side: Side


class Journal:
    """The folder of open moves."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made at the first write."""
        self._folder = folder
        self.illegible: tuple[Illegible, ...] = ()

    def write(self, line: Line) -> Line:
        """Remember `line`, in place of an earlier one of the same move. Raises Failed on a full disk, Refused where the
        move's id is not valid as a file name."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _add(self._path(line), encode(line))
        except OSError as error:
            raise Failed(f"cannot journal the move: {error}", hint=f"make room in {self._folder}") from error
        return line

    def strike(self, line: Line) -> None:
        """Forget the move: it is over on this side."""
        self._path(line).unlink(missing_ok=True)

    def open(self) -> tuple[Line, ...]:
        """Return every move begun and not ended. A file that cannot be read is put aside and noted in `illegible`.
        Raises Failed or OSError when this process lacks descriptors or memory: that says nothing about a file."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                line = _last(path)
            except FileNotFoundError:  # struck out meanwhile
                continue
            except (Failed, OSError) as error:
                if is_shortage(error):
                    raise Failed(f"{path} cannot be read at the moment: {error}", hint="veery doctor") from error
                kept.put_aside(path, str(error))
                self._note(path)
                continue
            if line is not None:
                found.append(line)
        return tuple(found)

    def _note(self, path: Path) -> None:
        """Remember the move and side of `path`, as far as its name shows them."""
        move, _, side = path.name.removesuffix(".json").partition(".")
        sides = [Side(side)] if side in tuple(Side) else list(Side)
        self.illegible += tuple(Illegible(move, each) for each in sides)

    def _path(self, line: Line) -> Path:
        check_move(line.move)
        return self._folder / f"{line.move}.{line.side.value}.json"


def _add(path: Path, record: bytes) -> None:
    """Append `record`. Raises OSError. It begins on a new line: the line before may have been cut short."""
    data = b"\n" + record + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    size = os.fstat(handle).st_size
    try:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(handle, size)
        if not size:  # nothing was remembered, so nothing needs settling
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _last(path: Path) -> Line | None:
    """Return the last whole line of a file; None of an empty one. Raises Failed where no line can be decoded."""
    unfit: Failed | None = None
    for data in reversed(path.read_bytes().split(b"\n")):
        try:
            if data:
                return decode(data, Line)
        except Failed as error:
            unfit = error
    if unfit is not None:
        raise unfit
    return None
