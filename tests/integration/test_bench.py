"""A slice of `make bench`: one round of everything, and the form of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

from bench.__main__ import parser, run
from bench.moves import NAMES

from veery.lab.guest import Guest
from veery.lab.services import Lab


async def test_a_round_of_everything_fills_the_table(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    words = ["--rounds", "1", "--no-warm-up", "--memory", "128", "--domains", "1", "--parts", "moves", "daemon"]
    figures = await run(lab, guest, parser().parse_args(words))
    figures.write(tmp_path / "latest.json")
    written = json.loads((tmp_path / "latest.json").read_text())
    assert set(written) == {"rows", "ratios"}
    for row in written["rows"]:
        assert set(row) == {"name", "unit", "median", "min", "max", "n"}
        assert 0 <= row["min"] <= row["median"] <= row["max"]
        assert row["n"] >= 1
    names = {row["name"] for row in written["rows"]}
    for kind in ("bare", "bare TLS", "veery", "veery --no-tls"):
        assert {f"{kind}: total", f"{kind}: gap"} <= names
    assert {"veery: COMMIT", "veery: whole command", "veery list, whole process"} <= names
    assert len(written["ratios"]) == 6
    assert all(ratio > 0 for ratio in written["ratios"].values())
    for name in names | set(written["ratios"]):
        assert name in figures.table()
    left = {reading["name"] for node in ("test1", "test2") for reading in await domains_on(lab, node)}
    assert not left & set(NAMES.values())
    assert all(
        row["volume"]["name"] not in NAMES.values() for row in await lab.json("stor", "volume", "list", "--json")
    )


async def domains_on(lab: Lab, node: str) -> list[dict[str, str]]:
    """The domains there, as the API lists them."""
    told = await lab.json(node, "list", "--json")
    return list(told["domains"] if isinstance(told, dict) else told)
