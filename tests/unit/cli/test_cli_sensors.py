"""veery sensors: no daemon is asked."""

from __future__ import annotations

import json
from pathlib import Path

from cli_standin import Run

STATE = "sys/class/net/eno1/carrier"


def _tree(folder: Path, carrier: str) -> Path:
    path = folder / "case" / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(carrier)
    (folder / "case/given.json").write_text('{"uplinks": ["eno1"]}')
    return folder / "case"


def test_a_recorded_tree(run: Run, tmp_path: Path) -> None:
    told = run("sensors", "--case", str(_tree(tmp_path, "0")))
    assert told.code == 0
    assert told.out.splitlines()[-1] == "level: bad"
    assert "no uplink of the domains' bridges has a carrier" in told.out


def test_only_what_is_not_ok(run: Run, tmp_path: Path) -> None:
    told = run("sensors", "-q", "--case", str(_tree(tmp_path, "1")))
    assert told.out == "level: ok\n"


def test_json_for_scripts(run: Run, tmp_path: Path) -> None:
    told = run("sensors", "--case", str(_tree(tmp_path, "1")), "--json")
    found = json.loads(told.out)
    assert found["level"] == "ok"
    assert set(found["signs"][0]) == {"sensor", "part", "level", "value", "sentence"}


def test_no_such_folder(run: Run, tmp_path: Path) -> None:
    told = run("sensors", "--case", str(tmp_path / "nowhere"))
    assert told.code != 0
    assert "no such folder" in told.err


def test_this_machine(run: Run) -> None:
    told = run("sensors", "--json")
    assert told.code == 0
    assert json.loads(told.out)["level"] in ("ok", "watch", "bad", "unknown")
