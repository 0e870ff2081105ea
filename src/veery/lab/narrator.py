"""The demo's output: numbered steps with their counterpart in the seed, commands with their output, checks."""

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
    """The demo's output on `console`; if that is None, only the checks are kept."""

    console: Console | None
    checks: dict[str, bool] = field(default_factory=dict)
    _number: int = 0

    @contextmanager
    def step(self, title: str, seed: str) -> Iterator[None]:
        """Print one step, and its duration at the end; `seed` is the seed's counterpart of the step."""
        self._number += 1
        begun = time.monotonic()
        self._print(Text.assemble((f"\n{self._number:2}  ", "bold cyan"), (title, "bold")))
        self._print(Text(f"    seed: {seed}", "dim"))
        yield
        self._print(Text(f"    {time.monotonic() - begun:.1f} s", "dim"))

    @contextmanager
    def progress(self, title: str) -> Iterator[Report]:
        """Show a progress bar for a long operation on a terminal; yield its Report. The bar is removed afterwards."""
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
        """Return a spinner, as a context manager."""
        return nullcontext() if self.console is None else self.console.status(f"    {text}")

    def command(self, where: str, words: str, output: str = "") -> None:
        """Print a command as a user types it on `where`, and its output."""
        self._print(Text.assemble((f"    {where}$ ", "green"), words))
        for row in output.strip("\n").expandtabs().splitlines():
            self._print(Text(f"      {row}"))

    def note(self, text: str) -> None:
        """Print a line of text."""
        self._print(Text(f"    {text}"))

    def check(self, name: str, good: bool, text: str) -> None:
        """Print a check and keep its result under `name`."""
        self.checks[name] = good
        mark = ("    ✓ ", "green") if good else ("    ✗ ", "bold red")
        self._print(Text.assemble(mark, text))

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column is text, the others are figures."""
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
