"""Save files: the hypervisor's own stream, and behind it what is needed to start it again.

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
LARGEST = 32 << 20  # bytes behind the stream
_TAIL = struct.Struct("!Q10s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What stands behind the stream. `token` is that of the record which may be restored; `backlog`: the
    console's past; `paused`: the user had paused the domain."""

    spec: DomainSpec
    token: str
    luggage: msgspec.Raw
    backlog: bytes = b""
    paused: bool = False


def check_place(path: Path) -> None:
    """Raises Refused where no file can be written at `path`."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "its folder is not there"
        raise Refused(f"{path}: {what}", hint="name a file in a folder of the domain's node")
    if not os.access(path.parent, os.W_OK):
        raise Refused(f"{path.parent} cannot be written to", hint="name a file in another folder")


def finish(part: Path, path: Path, saved: Saved) -> None:
    """Add `saved` to the stream in `part`, bring all of it to the disk, and only then call it `path`. Raises Failed
    on a full disk."""
    data = encode(saved)
    try:
        with part.open("ab") as file:
            file.write(data + _TAIL.pack(len(data), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", hint="the domain goes on; save it where there is room") from error


def read(path: Path) -> Saved:
    """What `finish` wrote. Raises Refused for any other file, and for one that was changed so that it
    describes no domain that a domain file could."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if end < _TAIL.size:
                raise Refused(f"{path} is no save file of veery", hint="name a file that was saved: veery save --help")
            file.seek(end - _TAIL.size)
            length, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != MAGIC or length > min(end - _TAIL.size, LARGEST):
                raise Refused(f"{path} is no save file of veery", hint="was it cut short?")
            file.seek(end - _TAIL.size - length)
            saved = decode(file.read(length), Saved)
            check_spec(saved.spec, settled=True)
            check_luggage(bytes(saved.luggage))
            return saved
    except Failed as error:
        raise Refused(f"{path} is no save file of veery: {error.message}", hint="was it changed?") from error
    except Refused as error:
        raise Refused(
            f"{path}: {error.message}" if str(path) not in error.message else error.message,
            hint=error.hint or "was it changed? veery save --help",
        ) from error
    except OSError as error:
        raise Refused(
            f"{path}: {error.strerror}", hint="name a file of this node that was saved: veery save --help"
        ) from error
