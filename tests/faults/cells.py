"""What the cells of the matrix came to, in a file, so that a run can be gone on with; and the table for docs/faults.md.

python tests/faults/cells.py CELLS.json docs/faults.md"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BEGIN, END = "<!-- made by make faults-move: begin -->", "<!-- made by make faults-move: end -->"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`bad`: what was wrong, "" if nothing; `where` the domain ended (source or target), `anew`: after a boot;
    `gap_ms`: the longest time without an answer to the client outside; `told`: the command's code and last words."""

    where: str = ""
    anew: bool = False
    gap_ms: float | None = None
    seconds: float = 0.0
    told: str = ""
    bad: str = ""

    def text(self) -> str:
        """As it stands in the table."""
        if self.bad:
            return "**bad**"
        anew = ", booted" if self.anew else ""
        silent = "" if self.gap_ms is None else f", {self.gap_ms / 1000:.2g}"
        return f"{self.where}{anew} ({self.seconds:.0f}{silent})" if self.where else "clean"


class Cells:
    """The results by "ROW/PHASE"; in a file when there is one."""

    def __init__(self, path: Path | None) -> None:
        """What is in the file already is gone on with."""
        self._path = path
        self._found: dict[str, Cell] = {}
        if path is not None and path.exists():
            self._found = {key: Cell(**row) for key, row in json.loads(path.read_text())["cells"].items()}

    def good(self, key: str) -> bool:
        """Whether this cell was run before, and was good."""
        return key in self._found and not self._found[key].bad

    def add(self, key: str, cell: Cell) -> None:
        """Keep one more."""
        self._found[key] = cell
        if self._path is not None:
            rows = {key: asdict(cell) for key, cell in self._found.items()}
            self._path.write_text(json.dumps({"cells": rows}, indent=1))

    def get(self, key: str) -> Cell | None:
        """One of them."""
        return self._found.get(key)


def table(cells: Cells) -> str:
    """The generated part of docs/faults.md."""
    from matrix import PHASES, ROWS

    rows = [f"| | {' | '.join(PHASES)} | disk after it |", "|---|" + "---|" * (len(PHASES) + 1)]
    notes: list[str] = []
    good = run = 0
    for row in ROWS:
        texts = []
        for phase in (*PHASES, "disk"):
            cell = cells.get(f"{row.name}/{phase}")
            if phase in row.cannot:
                notes.append(f"- {row.text}, {phase}: not applicable: {row.cannot[phase]}.")  # type: ignore[index]
                texts.append("n/a")
                continue
            if phase != "disk":
                run += cell is not None
                good += cell is not None and not cell.bad
            texts.append(cell.text() if cell else "not run")
        rows.append(f"| {row.text} | {' | '.join(texts)} |")
    machine = f"{os.cpu_count()} processors, Linux {platform.release().split('-')[0]}"
    head = f"{good} of {run} cells good, {len(notes)} not applicable; {time.strftime('%F')}, {machine}."
    return "\n".join([head, "", *rows, "", *notes])


def main(words: list[str]) -> int:
    """Write the table into the page; 1 where a cell is bad or was not run."""
    cells, page = Cells(Path(words[0])), Path(words[1])
    made = table(cells)
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")
    print(made.splitlines()[0])
    return int("**bad**" in made or "not run" in made)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
