"""Save files: the hypervisor's own stream, followed by what is needed to start the domain again.

Layout: stream | JSON of `Saved` | length of the JSON (8 bytes, network order) | `VEERYSAVE1`. A hypervisor reads its
stream up to the stream's own end mark (QEMU: QEMU_VM_EOF, migration/savevm.c) and no further."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec

from veery.config.check import check_luggage, check_spec
from veery.errors import Failed, Refused
from veery.model.codec import decode, encode
from veery.model.domain import DomainSpec

MAGIC = b"VEERYSAVE1"
LARGEST = 32 << 20  # bytes after the stream
_TAIL = struct.Struct("!Q10s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What follows the stream. `token`: that of the record which may be restored. `backlog`: the console's past output.
    `paused`: the user had paused the domain."""

    spec: DomainSpec
    token: str
    luggage: msgspec.Raw
    backlog: bytes = b""
    paused: bool = False


def check_place(path: Path) -> None:
    """Raise Refused if no file can be written at `path`."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "its folder does not exist"
        raise Refused(f"{path}: {what}", hint="give the path of a file on the domain's node")
    if not os.access(path.parent, os.W_OK):
        raise Refused(f"{path.parent} cannot be written to", hint="choose another folder")


def finish(part: Path, path: Path, saved: Saved) -> None:
    """Append `saved` to the stream in `part`, flush everything to the disk, and only then rename it to `path`. Raises
    Failed on a full disk."""
    data = encode(saved)
    try:
        with part.open("ab") as file:
            file.write(data + _TAIL.pack(len(data), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Failed(
            f"{path}: {error.strerror}", hint="the domain runs on; save it where there is enough room"
        ) from error


def read(path: Path) -> Saved:
    """Return what `finish` wrote. Raises Refused for any other file, and for one that was changed to describe a domain
    that no domain file could."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if end < _TAIL.size:
                raise Refused(
                    f"{path} is not a save file of veery", hint="give a file that was saved: veery save --help"
                )
            file.seek(end - _TAIL.size)
            length, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != MAGIC or length > min(end - _TAIL.size, LARGEST):
                raise Refused(f"{path} is not a save file of veery", hint="it may be incomplete: veery save --help")
            file.seek(end - _TAIL.size - length)
            saved = decode(file.read(length), Saved)
            check_spec(saved.spec, settled=True)
            check_luggage(bytes(saved.luggage))
            return saved
    except Failed as error:
        raise Refused(
            f"{path} is not a save file of veery: {error.message}", hint="it may have been changed: veery save --help"
        ) from error
    except Refused as error:
        raise Refused(
            f"{path}: {error.message}" if str(path) not in error.message else error.message,
            hint=error.hint or "it may have been changed: veery save --help",
        ) from error
    except OSError as error:
        raise Refused(
            f"{path}: {error.strerror}", hint="give a file of this node that was saved: veery save --help"
        ) from error
