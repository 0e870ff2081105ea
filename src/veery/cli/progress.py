"""Progress of long work on stderr: a live bar on a terminal, plain lines elsewhere. Results go to stdout."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from veery.model.units import format_seconds, format_size

if TYPE_CHECKING:
    from veery.model.move import MoveProgress, MoveReport

_LINE_INTERVAL_S = 1.0  # between two plain lines of one step


class Meter(Protocol):
    """Shows the progress of one piece of work."""

    def show(self, step: str, fraction: float | None, detail: str) -> None:
        """Show that the work is in `step`. `fraction` (0..1) is done, None if unknown; `detail` is figures."""
        ...

    def say(self, text: str) -> None:
        """Show a note, such as why progress goes back or what the work waits for."""
        ...

    def __enter__(self) -> Meter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def meter(title: str, *, quiet: bool = False) -> Meter:
    """Return the meter that suits stderr."""
    if quiet:
        return QuietMeter()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return BarMeter(title)
    return PlainMeter(title)


class QuietMeter:
    """Shows nothing."""

    def show(self, step: str, fraction: float | None, detail: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def __enter__(self) -> QuietMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class PlainMeter(QuietMeter):
    """Prints a line when a step begins, a line with its first figures, and then at most one line per second."""

    def __init__(self, title: str) -> None:
        self._title, self._step, self._detailed, self._at = title, "", False, 0.0

    def __enter__(self) -> PlainMeter:
        return self

    def show(self, step: str, fraction: float | None, detail: str) -> None:
        """Print a line, at most one per _LINE_INTERVAL_S unless the step is new."""
        now = time.monotonic()
        new = step != self._step or (detail and not self._detailed)
        if not new and now - self._at < _LINE_INTERVAL_S:
            return
        self._step, self._detailed, self._at = step, bool(detail), now
        percent = f"{100 * fraction:3.0f} %" if fraction is not None else ""
        print("  ".join(part for part in (self._title, step, percent, detail) if part), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print `text` as a line."""
        print(f"{self._title}  {text}", file=sys.stderr, flush=True)


class BarMeter(QuietMeter):
    """Draws a live bar ten times a second, and immediately when a step begins and when its first figures arrive."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"))
        console = Console(stderr=True, highlight=False, markup=False)
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._title, self._step, self._detailed = title, "", False
        self._task = self._progress.add_task(title, total=None, detail="")

    def __enter__(self) -> BarMeter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: str, fraction: float | None, detail: str) -> None:
        """Update the bar."""
        total = None if fraction is None else 1.0
        percent = "" if fraction is None else f"{100 * fraction:3.0f} %  "
        words = f"{self._title}  {step}"
        new = step != self._step or (bool(detail) and not self._detailed)
        self._step, self._detailed = step, bool(detail)
        done, more = fraction or 0, f"{percent}{detail}"
        self._progress.update(self._task, description=words, total=total, completed=done, detail=more, refresh=new)

    def say(self, text: str) -> None:
        """Print `text` as a line above the bar."""
        self._progress.console.print(f"{self._title}  {text}")


def copied(progress: MoveProgress) -> float | None:
    """Return the fraction (0..1) of a copy that is done. None while the total is unknown."""
    total, remaining = progress.total + progress.disk_total, progress.remaining + progress.disk_remaining
    return max(0.0, 1 - remaining / total) if total > 0 else None


class Forward:
    """Gives a reason whenever a bar goes back. The reading that had the reason can be missed."""

    def __init__(self) -> None:
        """Start with no progress shown."""
        self._shown = 0.0

    def note(self, progress: MoveProgress) -> str:
        """Return the note to show before `progress`; "" if it goes forward and has no note of its own."""
        done, before = copied(progress), self._shown
        self._shown = before if done is None else done
        if progress.note or done is None or done > before - 0.005:
            return progress.note
        missing = progress.remaining + progress.disk_remaining
        return f"progress goes back to {100 * done:.0f} %: the domain wrote {format_size(missing)} meanwhile"


def left(progress: MoveProgress) -> float | None:
    """Return the seconds until a copy ends at its present rates: the rest, divided by the copy rate minus the dirty
    rate. None if the copy does not converge."""
    gain = progress.rate - progress.dirty_rate
    return (progress.remaining + progress.disk_remaining) / gain if gain > 0 else None


def stood(report: MoveReport, after: str = "", before: str = "") -> str:
    """Return the downtime between `before` and `after`; "" if the hypervisor reports no downtime or rounds, as xl."""
    known = report.downtime_ms or report.rounds
    return f"{before}downtime {report.downtime_ms:.0f} ms{after}" if known else ""


def figures(progress: MoveProgress) -> str:
    """Return rate, dirty rate, round and remaining time of a copy as text; "" before the copy began."""
    if not progress.total or not progress.rate:
        return ""
    parts = [f"{format_size(progress.rate)}/s"]
    if progress.dirty_rate:
        parts.append(f"dirtied {format_size(progress.dirty_rate)}/s")
    if progress.rounds > 1:
        parts.append(f"round {progress.rounds}")
    if progress.throttle > 1:
        parts.append(f"slowed by {progress.throttle} %")
    seconds = left(progress)
    parts.append("not converging" if seconds is None else f"{format_seconds(seconds)} left")
    return ", ".join(parts)
