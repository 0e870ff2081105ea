"""`python3 -m veery.lab.setup packages guest agents`: the parts of the set-up before the virtual environment exists.
`programs` installs nothing: it fails with the names of the programs that the tests start and that are missing.

The Makefile calls it with the system's Python and only the standard library."""

from __future__ import annotations

import sys
import time

from veery.errors import Refused, VeeryError
from veery.lab import agents, guest, packages, programs


class Bar:
    """A progress bar on a terminal; elsewhere a line at most every five seconds."""

    def __init__(self, title: str) -> None:
        self._title, self._terminal = title, sys.stderr.isatty()
        self._printed, self._text = 0.0, ""

    def __call__(self, text: str, fraction: float) -> None:
        """Show the present step `text` and the fraction done."""
        if self._terminal:
            full = int(24 * fraction)
            bar = "━" * full + "╌" * (24 - full)
            sys.stderr.write(f"\r\033[K{self._title} {bar} {fraction:4.0%}  {text[:40]}")
        elif time.monotonic() - self._printed >= 5:
            self._printed = time.monotonic()
            sys.stderr.write(f"{self._title}: {fraction:.0%} {text}\n")
        sys.stderr.flush()

    def end(self, text: str) -> None:
        """Replace the bar by a permanent line."""
        sys.stderr.write(f"{chr(13) + chr(27) + '[K' if self._terminal else ''}{self._title}: {text}\n")
        sys.stderr.flush()


def main(parts: list[str]) -> int:
    """Do `parts` in order; print nothing for a part that is done. Return 0, 1 with a message, or 2 for a wrong word."""
    if not parts or set(parts) - set(_PARTS):
        sys.stderr.write(f"usage: python3 -m veery.lab.setup {'|'.join(_PARTS)}...\n")
        return 2
    for part in parts:
        bar = Bar(part)
        try:
            done = _PARTS[part](bar)
        except VeeryError as error:
            bar.end(f"error: {error.message}")
            if error.hint:
                sys.stderr.write(f"  hint: {error.hint}\n")
            return 1
        if done:
            bar.end(done)
    return 0


def _packages(bar: Bar) -> str:
    done = packages.install(bar)
    return f"installed {' '.join(done)}" if done else ""


def _guest(bar: Bar) -> str:
    if found := guest.find():
        return "initramfs built again" if guest.refresh(found) else ""
    return f"kernel {guest.fetch(bar).version}, unpacked in {packages.cache() / 'guest'}"


def _agents(bar: Bar) -> str:
    return "" if agents.find() else f"fence agents, unpacked in {agents.fetch(bar).root}"


def _programs(_bar: Bar) -> str:
    if lacking := programs.absent():
        raise Refused(f"missing: {', '.join(lacking)}", hint="make setup")
    return ""


_PARTS = {"packages": _packages, "guest": _guest, "agents": _agents, "programs": _programs}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
