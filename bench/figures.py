"""What was measured, as a table and as bench/latest.json: the form that every bench here writes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

LATEST = Path(__file__).with_name("latest.json")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio that a bench tells: row `upper` over row `lower`, and its `aim` (None: only told)."""

    name: str
    upper: str
    lower: str
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, measured `n` times."""

    name: str
    unit: str
    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float]) -> Row:
        """The row of `values`, which are at least one."""
        median, least, most = (round(each, 1) for each in (statistics.median(values), min(values), max(values)))
        return cls(name, unit, median, least, most, len(values))


@dataclass(slots=True)
class Ratio:
    """One figure over another. `aim` is the most that it should be; None where it is only told."""

    name: str
    value: float
    aim: float | None


@dataclass(slots=True)
class Figures:
    """All rows and ratios of one run, and the names of the parts that `failed`."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Add a row; none where nothing was measured."""
        if values:
            self.rows.append(Row.of(name, unit, values))

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        """Add the ratios of all those whose rows are there."""
        for each in comparisons:
            self.compare(each.name, each.upper, each.lower, each.aim)

    def compare(self, name: str, upper: str, lower: str, aim: float | None = None) -> None:
        """Add the ratio of two rows' medians, where both are there."""
        medians = {row.name: row.median for row in self.rows}
        if medians.get(lower) and upper in medians:
            self.ratios.append(Ratio(name, round(medians[upper] / medians[lower], 3), aim))

    def hold(self, name: str, row: str, aim: float) -> None:
        """Add what a row's median is of the most that it should be."""
        medians = {each.name: each.median for each in self.rows}
        if row in medians:
            self.ratios.append(Ratio(name, round(medians[row] / aim, 3), 1.0))

    def plain(self) -> dict[str, object]:
        """As it is written to the file."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "ratios": {ratio.name: ratio.value for ratio in self.ratios},
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.plain(), indent=1) + "\n")

    def table(self) -> str:
        """The rows, then the ratios with their aims."""
        width = max(len(name) for name in [*(row.name for row in self.rows), *(ratio.name for ratio in self.ratios)])
        lines = [f"{'':<{width}}  {'median':>9} {'min':>9} {'max':>9} {'n':>4}"]
        for row in self.rows:
            lines.append(f"{row.name:<{width}}  {row.median:>9} {row.min:>9} {row.max:>9} {row.n:>4}  {row.unit}")
        lines += ["", f"{'':<{width}}  {'ratio':>9} {'aim':>9}"]
        for ratio in self.ratios:
            verdict = "" if ratio.aim is None or ratio.value <= ratio.aim else "  missed"
            aim = "" if ratio.aim is None else ratio.aim
            lines.append(f"{ratio.name:<{width}}  {ratio.value:>9} {aim:>9}{verdict}")
        return "\n".join(lines)


def phases(reports: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The milliseconds of each phase over several moves."""
    names = dict.fromkeys(name for report in reports for name in report)
    return {name: [report[name] for report in reports if name in report] for name in names}
