"""What the nemesis' rounds came to, in a file, so that a run can be gone on with; and the table for docs/faults.md.

python tests/faults/rounds.py ROUNDS.json docs/faults.md"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from nemesis import FULL, TEXTS, Kind

BEGIN, END = "<!-- made by make faults: begin -->", "<!-- made by make faults: end -->"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`bad`: what was wrong, "" if nothing. `struck`: the kinds that found something to strike; `fenced`: nodes;
    `booted`: how many domains were booted anew; `silent`: the longest time for which a domain told nothing; seconds."""

    struck: tuple[str, ...] = ()
    fenced: tuple[str, ...] = ()
    moves: int = 0
    booted: int = 0
    silent: float = 0.0
    seconds: float = 0.0
    bad: str = ""


class Rounds:
    """The outcomes by seed; in a file when there is one."""

    def __init__(self, path: Path | None) -> None:
        """What is in the file already is gone on with."""
        self._path = path
        self.found: dict[int, Outcome] = {}
        if path is not None and path.exists():
            self.found = {int(seed): Outcome(**row) for seed, row in json.loads(path.read_text()).items()}

    def good(self, seed: int) -> bool:
        """Whether this round was run before, and was good."""
        return seed in self.found and not self.found[seed].bad

    def add(self, seed: int, outcome: Outcome) -> None:
        """Keep one more."""
        self.found[seed] = outcome
        if self._path is not None:
            rows = {seed: asdict(outcome) for seed, outcome in sorted(self.found.items())}
            self._path.write_text(json.dumps(rows, indent=1))


def table(rounds: Rounds) -> str:
    """The generated part of docs/faults.md."""
    found = rounds.found
    done = list(found.values())
    struck = Counter(kind for each in done for kind in each.struck)
    bad = {seed: each.bad for seed, each in sorted(found.items()) if each.bad}
    machine = f"{os.cpu_count()} processors, Linux {platform.release().split('-')[0]}"
    rows = [
        f"{sum(struck.values())} faults in {len(done)} of {len(FULL)} rounds, {len(done) - len(bad)} rounds good; "
        f"{sum(each.moves for each in done)} moves meanwhile; {time.strftime('%F')}, {machine}.",
        "",
        "| fault | alone | with another | fences | domains booted anew | silence, s: median, worst | bad |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in Kind:
        mine = [each for each in done if kind in each.struck]
        if not mine:
            rows.append(f"| {TEXTS[kind]} | 0 | 0 | | | | |")
            continue
        alone = [each for each in mine if len(each.struck) == 1]
        silent = sorted(each.silent for each in mine)
        rows.append(
            f"| {TEXTS[kind]} | {len(alone)} | {len(mine) - len(alone)} | {sum(len(each.fenced) for each in mine)} "
            f"| {sum(each.booted for each in mine)} | {statistics.median(silent):.0f}, {silent[-1]:.0f} "
            f"| {sum(bool(each.bad) for each in mine)} |"
        )
    if bad:
        rows += ["", *(f"- Round {seed}: **bad**: {why}" for seed, why in bad.items())]
    return "\n".join(rows)


def main(words: list[str]) -> int:
    """Write the table into the page; 1 where a round is bad or was not run."""
    rounds, page = Rounds(Path(words[0])), Path(words[1])
    made = table(rounds)
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")
    print(made.splitlines()[0])
    return int(not all(rounds.good(seed) for seed in FULL))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
