"""The file that announces a restart of veeryd. A command that cannot reach veeryd's socket then waits.

veeryd replaces itself by execve(2) when its roles or its address have changed; its process id stays the same."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NAME = "restarting"


def announce(run: Path) -> None:
    """Write the file into the run folder `run`: this process is about to restart. Raises OSError."""
    file = run / _NAME
    file.write_text(f"{os.getpid()}\n")
    file.chmod(0o644)  # all users of the API read it


def done(run: Path) -> None:
    """Remove the file, if it exists."""
    (run / _NAME).unlink(missing_ok=True)


def under_way(run: Path) -> bool:
    """Return whether the veeryd of `run` is restarting: the file exists, and so does its process."""
    with contextlib.suppress(OSError, ValueError):
        return Path(f"/proc/{int((run / _NAME).read_text()[:20])}").exists()
    return False
