"""A folder for one run of the tests, and the proof of what belongs to it: nothing stays behind, not even after SIGKILL.

Everything a run starts inherits VEERY_RUN=FOLDER; everything it writes lies in FOLDER, which the run's process
keeps locked (flock(2)). So what bears the mark of an unlocked folder belongs to a dead run, and may go."""

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
_PREFIX = "vyt-"  # short: unix sockets live in there


class Scratch:
    """This run's folder."""

    def __init__(self) -> None:
        """Make it, lock it, and mark this process's environment with it; TMPDIR lies in there too."""
        self.folder = Path(f"/tmp/{_PREFIX}{os.getpid()}")
        self.folder.mkdir(mode=0o700)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        temporary = self.folder / "tmp"
        temporary.mkdir()
        os.environ.update({MARK: str(self.folder), "TMPDIR": str(temporary)})
        tempfile.tempdir = None  # read TMPDIR anew

    def close(self) -> tuple[Member, ...]:
        """Remove all that bears the mark; the processes that were still there."""
        found = _clear(self.folder)
        os.close(self._lock)
        return found


def sweep() -> tuple[Path, ...]:
    """Remove what dead runs left; their folders."""
    swept = []
    for folder in Path("/tmp").glob(f"{_PREFIX}[0-9]*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # another user's is that user's to sweep
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(folder)
            swept.append(folder)
        except BlockingIOError:
            continue  # a living run's
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
            for holder in (device / "holders").iterdir():  # a volume group made on it
                _try("dmsetup", "remove", "--force", (holder / "dm/name").read_text().strip())
            _try("losetup", "--detach", f"/dev/{device.name}")
    shutil.rmtree(folder, ignore_errors=True)
    return killed


def _try(*words: str) -> None:
    subprocess.run(words, check=False, capture_output=True, timeout=30)


def _unescaped(text: str) -> Path:
    """proc_pid_mountinfo(5): blanks and backslashes are written as three octal digits."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))
