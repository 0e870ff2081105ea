"""A slice of `make bench`: one round of everything, and the form of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_mover_has_its_rows(lab: Lab, guest: Guest) -> None:
    """virsh's are there where libvirt can be had (it is fetched from the machine's Debian sources)."""
    words = ["--rounds", "1", "--no-warm-up", "--memory", "128", "--domains", "2", "--parts", "peers"]
    figures = await run(lab, guest, parser().parse_args([*words, "--stages", "one", "six"]))
    assert figures.failed == []
    rows = {row.name: row for row in figures.rows}
    movers = ["bare", "bare TLS", "veery --no-tls", "veery"]
    if any("virsh" in name for name in rows):
        movers += ["virsh", "virsh tuned"]
        assert {"six, virsh serial: wall", "six, virsh at once: wall"} <= set(rows)
        assert rows["six, virsh at once: gap"].n == 2
    for mover in movers:
        assert {f"one, {mover}: whole command", f"one, {mover}: gap"} <= set(rows)
    assert {"six, bare at once: wall", "six, veery --no-tls at once: wall"} <= set(rows)
    assert await domains_on(lab, "test1") == await domains_on(lab, "test2") == []
    for node in ("test1", "test2"):
        assert not [each for each in lab.members(node) if "qemu" in each.program or "libvirt" in each.program]


async def domains_on(lab: Lab, node: str) -> list[dict[str, str]]:
    """The domains there, as the API lists them, without the machine itself."""
    told = await lab.json(node, "list", "--json")
    rows = told["domains"] if isinstance(told, dict) else told
    return [row for row in rows if row["name"] != "Domain-0"]
