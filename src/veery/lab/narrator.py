"""How the demo is told: numbered steps with their counterpart in the seed, commands with their output, checks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from veery.lab.services import Report, silent


@dataclass
class Narrator:
    """Tells on `console`, or, where that is None, only keeps the checks."""

    console: Console | None
    checks: dict[str, bool] = field(default_factory=dict)
    _number: int = 0

    @contextmanager
    def step(self, title: str, seed: str) -> Iterator[None]:
        """One step, closed by the seconds it took; `seed` is what the seed did at this place."""
        self._number += 1
        begun = time.monotonic()
        self._print(Text.assemble((f"\n{self._number:2}  ", "bold cyan"), (title, "bold")))
        self._print(Text(f"    seed: {seed}", "dim"))
        yield
        self._print(Text(f"    {time.monotonic() - begun:.1f} s", "dim"))

    @contextmanager
    def progress(self, title: str) -> Iterator[Report]:
        """A bar for what takes long, on a terminal; gives the Report to feed it. Nothing of it stays on the screen."""
        if self.console is None or not self.console.is_terminal:
            yield silent
            return
        columns = (TextColumn("    {task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as shown:
            task = shown.add_task(title, total=1.0)

            def report(text: str, fraction: float) -> None:
                shown.update(task, description=text, completed=fraction)

            yield report

    def waiting(self, text: str) -> Any:
        """A spinner for the while."""
        return nullcontext() if self.console is None else self.console.status(f"    {text}")

    def command(self, where: str, words: str, output: str = "") -> None:
        """A command as one would type it on `where`, and what it printed."""
        self._print(Text.assemble((f"    {where}$ ", "green"), words))
        for row in output.strip("\n").expandtabs().splitlines():
            self._print(Text(f"      {row}"))

    def note(self, text: str) -> None:
        """A line of the story."""
        self._print(Text(f"    {text}"))

    def check(self, name: str, good: bool, text: str) -> None:
        """Something that must hold; kept under `name`."""
        self.checks[name] = good
        mark = ("    ✓ ", "green") if good else ("    ✗ ", "bold red")
        self._print(Text.assemble(mark, text))

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table at the end; the first column is text, the others figures."""
        made = Table(title=title, title_justify="left", title_style="bold")
        for number, header in enumerate(headers):
            made.add_column(header, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            made.add_row(*row)
        self._print(Text())
        self._print(made)

    def _print(self, what: Any) -> None:
        if self.console is not None:
            self.console.print(what, soft_wrap=isinstance(what, Text))
