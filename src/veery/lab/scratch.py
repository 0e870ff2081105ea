"""A folder for one run of the tests, with which every remains of a run can be found and removed, even after SIGKILL.

All processes of a run inherit VEERY_RUN=FOLDER, and all its files are in FOLDER, which the run's process keeps locked
(flock(2)). So processes and files with the mark of an unlocked folder belong to an ended run, and can be removed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from veery.lab import members
from veery.lab.members import Member

MARK = "VEERY_RUN"
_PREFIX = "vyt-"  # short, because paths of unix sockets contain it


class Scratch:
    """The folder of this run."""

    def __init__(self) -> None:
        """Make and lock the folder, and mark this process's environment with it; TMPDIR is in it too."""
        self.folder = Path(f"/tmp/{_PREFIX}{os.getpid()}")
        self.folder.mkdir(mode=0o700)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        temporary = self.folder / "tmp"
        temporary.mkdir()
        os.environ.update({MARK: str(self.folder), "TMPDIR": str(temporary)})
        tempfile.tempdir = None  # read TMPDIR again

    def close(self) -> tuple[Member, ...]:
        """Remove everything with the mark; return the processes that still ran."""
        found = _clear(self.folder)
        os.close(self._lock)
        return found


def sweep() -> tuple[Path, ...]:
    """Remove the remains of ended runs; return their folders."""
    swept = []
    for folder in Path("/tmp").glob(f"{_PREFIX}[0-9]*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # it belongs to another user
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(folder)
            swept.append(folder)
        except BlockingIOError:
            continue  # it belongs to a current run
        finally:
            os.close(lock)
    return tuple(swept)


def _clear(folder: Path) -> tuple[Member, ...]:
    killed = asyncio.run(members.kill(lambda: members.marked(MARK, str(folder))))
    for row in Path("/proc/self/mountinfo").read_text().splitlines():
        place = _unescaped(row.split()[4])
        if place.is_relative_to(folder):
            _try("umount", "--lazy", str(place))
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if Path(backing.read_text().strip()).is_relative_to(folder):
            device = backing.parent.parent
            for holder in (device / "holders").iterdir():  # a volume group on the loop device
                _try("dmsetup", "remove", "--force", (holder / "dm/name").read_text().strip())
            _try("losetup", "--detach", f"/dev/{device.name}")
    shutil.rmtree(folder, ignore_errors=True)
    return killed


def _try(*words: str) -> None:
    subprocess.run(words, check=False, capture_output=True, timeout=30)


def _unescaped(text: str) -> Path:
    """Decode a path of proc_pid_mountinfo(5): blanks and backslashes are three octal digits there."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))
