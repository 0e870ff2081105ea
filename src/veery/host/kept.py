"""Files that veeryd wrote for its own next start, and what happens when one of them cannot be read.

A file that is cut short, full of NUL bytes, or written by a newer version must not keep the daemon from starting: its
domains would run unwatched, and in the end the cluster would fence this node. So such a file is renamed to
NAME.unreadable, logged as an error, and told by `veery doctor` until somebody removes it."""

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
DEPTH = ("*", "*/*", "*/*/*")  # where such files can be, under the state folder and the run folder


def read(path: Path, type: type[T]) -> T:
    """The record in `path`. Raises FileNotFoundError; Failed, with the file's name, where it cannot be read."""
    try:
        return codec.decode(path.read_bytes(), type)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error
    except Failed as error:
        raise Failed(f"{path}: {error.message}", hint=error.hint) from error


def take(path: Path, type: type[T]) -> T | None:
    """The record in `path`; None if there is none, or if it could not be read and was put aside. Raises Failed where we
    are short of descriptors or memory: that says nothing of the file."""
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
        log.error("%s cannot be read (%s), nor be put aside: %s", path, why, error.strerror)
        return
    log.error("%s cannot be read (%s): put aside as %s", path, why, aside.name)


def unreadable(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Every file under `folders` that was put aside."""
    return tuple(sorted({path for folder in folders for depth in DEPTH for path in folder.glob(depth + SUFFIX)}))
