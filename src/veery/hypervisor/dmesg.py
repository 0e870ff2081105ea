"""The driver's own log lines, which follow the hypervisor's in `veery dmesg`."""

from __future__ import annotations

import time
from pathlib import Path

from veery.host.clock import Clock

MAX = 256 << 10  # bytes; older lines go into FILE.1, which is replaced


class Dmesg:
    """Lines in `file`, each with its time."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """The file is made with the first line."""
        self._file, self._clock = file, clock

    def note(self, line: str) -> None:
        """Add a line."""
        if self._file.exists() and self._file.stat().st_size > MAX:
            self._file.replace(self._file.with_suffix(".log.1"))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(f"{time.strftime('%F %T', time.localtime(self._clock.epoch()))} {line}\n")

    def text(self) -> str:
        """Return all lines."""
        try:
            return self._file.read_text(errors="replace")
        except FileNotFoundError:
            return ""
