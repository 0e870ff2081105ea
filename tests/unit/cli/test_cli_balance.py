"""veery balance --cluster: no daemon is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_standin import Run

CLUSTER: dict[str, Any] = {
    "nodes": [{"name": name, "memory": 8192, "cores": 4} for name in ("test1", "test2")],
    "domains": [
        {"name": "web", "node": "test1", "memory": 1024, "vcpus": 1, "load": 2},
        {"name": "mail", "node": "test1", "memory": 1024, "vcpus": 1, "load": 1.6},
        {"name": "still", "node": "test1", "memory": 1024, "vcpus": 1, "balance": "off"},
    ],
}


def _file(folder: Path) -> str:
    path = folder / "cluster.json"
    path.write_text(json.dumps(CLUSTER))
    return str(path)


def test_the_table(run: Run, tmp_path: Path) -> None:
    told = run("balance", "--cluster", _file(tmp_path), "--explain")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[0].startswith("score 1.0125 ")
    assert lines[1].split() == ["Move", "Domain", "From", "To", "Score", "Copied", "Time"]
    assert lines[2].split()[:4] == ["1", "mail", "test1", "test2"]
    assert lines[3].strip() == "test1 is 90% busy, above 80%, and becomes 50%; test2 becomes 40%."
    assert lines[-2].startswith("score ")
    assert lines[-1] == "end   no further move gains enough"


def test_json_for_scripts(run: Run, tmp_path: Path) -> None:
    plan = json.loads(run("balance", "--cluster", _file(tmp_path), "--json").out)
    assert set(plan) == {"before", "after", "moves", "end"}
    assert set(plan["before"]) == {"total", "memory", "vcpus", "load", "conflicts", "stranded"}
    assert plan["moves"][0]["score"]["total"] < plan["before"]["total"]
    assert plan["moves"][-1]["score"] == plan["after"]


def test_no_moves(run: Run, tmp_path: Path) -> None:
    told = run("balance", "--cluster", _file(tmp_path), "--max-moves", "0")
    assert told.out.splitlines()[-1] == "end   the plan has its most moves, 0"


def test_bad_input(run: Run, tmp_path: Path) -> None:
    assert run("balance").code == 2
    assert run("balance", "--cluster", _file(tmp_path), "--max-moves", "-1").code == 2
    told = run("balance", "--cluster", str(tmp_path / "none.json"))
    assert told.code == 1
    assert "none.json" in told.err and "hint: docs/balance.md describes the file" in told.err
