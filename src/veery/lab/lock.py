"""Whose a lab is: a file /run/veery-lab/NAME, locked (flock(2)) by the process that uses the lab.

The kernel drops the lock when that process ends, however it ends; so a lab whose file is not locked belongs to
a dead run and may be swept, unless its record says that it shall stay (`veery lab up`). /run is emptied at
boot, as the namespaces are."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from veery.errors import Refused
from veery.model import codec

FOLDER = Path("/run/veery-lab")


@dataclass(frozen=True, slots=True)
class Record:
    """The content of the lock file: the lab's folder, its number of hypervisors, the process that made it, whether the
    lab stays when that process ends, its number of storage nodes, and its driver."""

    folder: str
    hypervisors: int
    pid: int
    stays: bool
    storages: int = 1
    driver: str = "qemu"


class LabLock:
    """The lock of a lab, held by this process until `release`, `forget` or the process's end."""

    def __init__(self, lab: str) -> None:
        """Lock lab `lab`. Raises Refused if a running process has it."""
        self._path = FOLDER / lab
        while True:
            FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # another lab's end has just removed the folder
                continue
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._file)
                holder = read(lab)
                raise Refused(
                    f"lab {lab} is in use" + (f" by process {holder.pid}" if holder else ""),
                    hint="wait for its end, or use another name with --lab NAME",
                ) from error
            if _same(self._file, self._path):
                return
            os.close(self._file)  # its last holder removed the file between open and lock

    def write(self, record: Record) -> None:
        """Write the lab's record."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, codec.encode(asdict(record)), 0)

    def release(self) -> None:
        """Release the lock; the record stays."""
        os.close(self._file)

    def forget(self) -> None:
        """Release the lock of a removed lab: delete the file, and the folder if it is empty."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            FOLDER.rmdir()
        os.close(self._file)


def read(lab: str) -> Record | None:
    """Return the record of `lab`, or None."""
    try:
        text = (FOLDER / lab).read_bytes()
    except FileNotFoundError:
        return None
    return codec.decode(text, Record) if text else None


def known() -> tuple[str, ...]:
    """Return the names of the labs that have a file, in use or not."""
    return tuple(sorted(path.name for path in FOLDER.glob("*")))


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
