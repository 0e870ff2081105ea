"""`python -m bench.page`: the tables of docs/bench.md anew, from bench/latest.json.

A table stands between `<!-- bench:NAME -->` and `<!-- bench:end -->`; what the figures have no rows for stays as it
is."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import moves, peers
from bench.figures import LATEST

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bench.md"
_PLACE = re.compile(r"(<!-- bench:(?!end)([a-z]+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Told:
    """What a run wrote: rows by name, ratios by name."""

    rows: dict[str, dict[str, Any]]
    ratios: dict[str, float]

    def kinds(self, prefix: str, what: str) -> list[str]:
        """The kinds that have a row "PREFIXKIND: WHAT", as they were measured."""
        end = f": {what}"
        return [name[len(prefix) : -len(end)] for name in self.rows if name.startswith(prefix) and name.endswith(end)]

    def cell(self, name: str, *, spread: bool = True, tenths: bool = False) -> str:
        """The median of row `name`, with least and most; "" where there is none. `tenths`: of a row in seconds."""
        row = self.rows.get(name)
        if row is None:
            return ""
        number = _tenths if tenths else _seconds if row["median"] >= 10_000 else _whole
        least, most = number(row["min"]), number(row["max"])
        return number(row["median"]) + (f" [{least}..{most}]" if spread and least != most else "")

    def count(self, name: str) -> int:
        """How often row `name` was measured."""
        row = self.rows.get(name)
        return row["n"] if row else 0


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value / 1e3:.1f} s"


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def read(path: Path) -> Told:
    """What stands in `path`."""
    written = json.loads(path.read_text())
    return Told({row["name"]: row for row in written["rows"]}, written["ratios"])


def rewrite(page: str, told: Told) -> tuple[str, list[str]]:
    """The page with its tables anew; and the names of those that had no figures."""
    left: list[str] = []

    def put(match: re.Match[str]) -> str:
        table = TABLES[match[2]](told) if match[2] in TABLES else ""
        if not table:
            left.append(match[2])
            return match[0]
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return _PLACE.sub(put, page), left


# ---- the tables


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _moves(told: Told) -> str:
    kinds = [kind for kind in told.kinds("", "total") if kind in moves.KINDS]
    what = ("total", "gap", "downtime by QEMU", "whole command")
    lines = [[kind, *(told.cell(f"{kind}: {each}", spread=each != what[2]) for each in what)] for kind in kinds]
    return _table(("ms", *what), lines)


def _one(told: Told) -> str:
    kinds = told.kinds("one, ", "whole command")
    what = ("whole command", "inside", "gap")
    lines = [
        [kind, *(told.cell(f"one, {kind}: {each}") for each in what), str(told.count(f"one, {kind}: gap"))]
        for kind in kinds
    ]
    return _table(("ms", *what, "n"), lines)


def _six(told: Told) -> str:
    what = ("wall", "gap", "worst gap of a round")
    lines = [
        [kind, *(told.cell(f"six, {kind}: {each}") for each in what), str(told.count(f"six, {kind}: gap"))]
        for kind in told.kinds("six, ", "gap")
    ]
    return _table(("ms", *what, "n gaps"), lines)


def _many(told: Told) -> str:
    lines = [
        [kind, *(told.cell(f"many, {kind}: {each}") for each in ("wall", "gap"))]
        for kind in told.kinds("many, ", "wall")
    ]
    return _table(("ms", "wall", "gap"), lines)


def _writers(told: Told) -> str:
    lines = []
    for kind in told.kinds("writer ", "whole command"):
        ended = told.rows[f"writer {kind}: ended"]
        # 0.0 and 1.0 whose median is all that is told: some ended where least and most differ
        words = {(0.0, 0.0): "never", (1.0, 1.0): "always"}.get((ended["min"], ended["max"]), "sometimes")
        cells = [told.cell(f"writer {kind}: {each}") for each in ("whole command", "gap", "wrote")]
        lines.append([kind, words, *cells, str(ended["n"])])
    return _table(("ms", f"ended within {peers.PATIENCE:g} s", "whole command", "gap", "wrote, MiB/s", "n"), lines)


def _plan(told: Told) -> str:
    lines = []
    for kind in told.kinds("", "total foretold"):
        cells = [kind]
        for what in ("total", "gap"):
            ratio = told.ratios[f"{kind}: {what}"]
            cells += [told.cell(f"{kind}: {what} {when}", spread=when == "seen") for when in ("foretold", "seen")]
            cells.append(f"{ratio:.2f}" + ("" if 0.5 <= ratio <= 2.0 else " **missed**"))
        lines.append(cells)
    return _table(("ms", "time foretold", "seen", "ratio", "gap foretold", "seen", "ratio"), lines)


def _strangers(told: Told) -> str:
    what = ("total", "gap", "power cut to answer", "detect")
    if not told.kinds("", "power cut to answer"):
        return ""
    lines = [
        [kind, *(told.cell(f"{kind}: {each}", tenths=at > 1) for at, each in enumerate(what)), cuts]
        for kind in told.kinds("", "power cut to answer")
        if (cuts := str(told.count(f"{kind}: power cut to answer")))
    ]
    later = told.cell("failover later with strangers", tenths=True)
    lines.append(["later with strangers, aim 1 s", "", "", later, "", ""])
    return _table(("", "move, ms", "gap, ms", "power cut to answer, s", "detect, s", "cuts"), lines)


def _ratios(told: Told) -> str:
    lines = []
    for name, value in told.ratios.items():
        if name not in AIMS:
            continue
        aim = AIMS[name]
        verdict = "" if aim is None else "reached" if value <= aim else "**missed**"
        lines.append([name, f"{value:.2f}", "" if aim is None else f"{aim:g}", verdict])
    return _table(("ratio of medians", "seen", "aim", ""), lines)


AIMS: dict[str, float | None] = {**moves.AIMS, **peers.AIMS}
TABLES: dict[str, Callable[[Told], str]] = {
    "moves": _moves,
    "one": _one,
    "six": _six,
    "many": _many,
    "writers": _writers,
    "plan": _plan,
    "strangers": _strangers,
    "ratios": _ratios,
}


def main(words: list[str]) -> int:
    """Run with command line `words`; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--input", type=Path, default=LATEST, metavar="FILE", help="figures (bench/latest.json)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="what is rewritten (docs/bench.md)")
    arguments = parser.parse_args(words)
    try:
        text, left = rewrite(arguments.page.read_text(), read(arguments.input))
    except OSError as error:
        sys.stderr.write(f"page: {error.filename}: {error.strerror}\n  hint: make bench\n")
        return 1
    arguments.page.write_text(text)
    print(f"{arguments.page} written" + (f"; no figures for {', '.join(left)}" if left else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
