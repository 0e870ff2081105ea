"""The file by which a veeryd that starts again at once says so. A command that finds nobody at its socket waits then.

veeryd replaces itself by execve(2) when its roles or its address have changed; its process id stays the same."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NAME = "restarting"


def announce(run: Path) -> None:
    """Write into the run folder `run` that this process starts again. Raises OSError."""
    file = run / _NAME
    file.write_text(f"{os.getpid()}\n")
    file.chmod(0o644)  # whoever may use the API reads it


def done(run: Path) -> None:
    """Remove that file, if there is one."""
    (run / _NAME).unlink(missing_ok=True)


def under_way(run: Path) -> bool:
    """Whether the veeryd of `run` starts again: it said so, and its process is there."""
    with contextlib.suppress(OSError, ValueError):
        return Path(f"/proc/{int((run / _NAME).read_text()[:20])}").exists()
    return False
