"""Files that veeryd keeps for its own next start, and the handling of unreadable ones.

A file that is truncated, full of NUL bytes, or written by a newer version must not prevent the daemon's start: its
domains would run unwatched, and in the end the cluster would fence this node. So such a file is renamed to
NAME.unreadable and logged as an error. `veery doctor` reports it until it is removed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from veery.errors import Failed
from veery.host.shortage import is_shortage
from veery.model import codec

log = logging.getLogger(__name__)

T = TypeVar("T")

SUFFIX = ".unreadable"
DEPTH = ("*", "*/*", "*/*/*")  # the places of such files, under the state folder and the run folder


def read(path: Path, type: type[T]) -> T:
    """Return the record in `path`. Raises FileNotFoundError; Failed, with the file's name, if it cannot be read."""
    try:
        return codec.decode(path.read_bytes(), type)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error
    except Failed as error:
        raise Failed(f"{path}: {error.message}", hint=error.hint) from error


def take(path: Path, type: type[T]) -> T | None:
    """Return the record in `path`; None if there is none, or if it was unreadable and was put aside. Raises Failed on a
    shortage of descriptors or memory, which says nothing about the file."""
    try:
        return read(path, type)
    except FileNotFoundError:
        return None
    except Failed as error:
        if is_shortage(error):
            raise
        put_aside(path, error.message.removeprefix(f"{path}: "))
        return None


def put_aside(path: Path, why: str) -> None:
    """Rename `path` to NAME.unreadable, in place of an older one. Raises nothing."""
    aside = path.with_name(path.name + SUFFIX)
    try:
        path.rename(aside)
    except OSError as error:
        log.error("%s cannot be read (%s), and cannot be renamed: %s", path, why, error.strerror)
        return
    log.error("%s cannot be read (%s): renamed to %s", path, why, aside.name)


def unreadable(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return every file under `folders` that was put aside."""
    return tuple(sorted({path for folder in folders for depth in DEPTH for path in folder.glob(depth + SUFFIX)}))
