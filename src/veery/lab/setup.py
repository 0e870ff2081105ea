"""`python3 -m veery.lab.setup packages|guest`: the parts of the set-up that come before the virtual environment.

The Makefile calls it with the system's Python and nothing but the standard library."""

from __future__ import annotations

import os
import sys
import time

from veery.errors import VeeryError
from veery.lab import guest, packages


class Bar:
    """A progress bar on a terminal; elsewhere a line at most every five seconds."""

    def __init__(self, title: str) -> None:
        self._title, self._terminal = title, sys.stderr.isatty()
        self._said, self._text = 0.0, ""

    def __call__(self, text: str, fraction: float) -> None:
        """Show that `text` is being done and `fraction` of all is behind us."""
        if self._terminal:
            full = int(24 * fraction)
            bar = "━" * full + "╌" * (24 - full)
            sys.stderr.write(f"\r\033[K{self._title} {bar} {fraction:4.0%}  {text[:40]}")
        elif time.monotonic() - self._said >= 5:
            self._said = time.monotonic()
            sys.stderr.write(f"{self._title}: {fraction:.0%} {text}\n")
        sys.stderr.flush()

    def end(self, text: str) -> None:
        """Close with one lasting line."""
        sys.stderr.write(f"{chr(13) + chr(27) + '[K' if self._terminal else ''}{self._title}: {text}\n")
        sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Do one part; 0, 1 with a message, or 2 for a wrong word."""
    if arguments not in (["packages"], ["guest"]):
        sys.stderr.write("usage: python3 -m veery.lab.setup packages|guest\n")
        return 2
    if os.geteuid():
        sys.stderr.write("error: the set-up installs packages: run as root\n")
        return 1
    part = arguments[0]
    bar = Bar("packages" if part == "packages" else "guest kernel")
    try:
        if part == "packages":
            done = packages.install(bar)
            bar.end(f"installed {' '.join(done)}" if done else "all there")
        else:
            bar.end(f"{guest.fetch(bar).version}, in {packages.cache() / 'guest'}")
    except VeeryError as error:
        bar.end(f"error: {error.message}")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
