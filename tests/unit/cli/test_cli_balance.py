"""veery balance: plans for a described cluster, and for the one that the stand-in reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_standin import BUSYBOX, ZERO, Answer, Run, StandIn

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


# ---- the live cluster
def _reading(name: str, number: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {**BUSYBOX, "name": name, "uuid": f"u{number}", "domid": number, "cpu_seconds": seconds, **more}


def _live(daemon: StandIn, *, quorum: bool = True, silent: tuple[str, ...] = ()) -> None:
    """Two nodes of 2 cores; both domains are on test1, and each burns as much time as passes, and more."""
    asked = iter(range(1000))

    def domains(_: object) -> Answer:
        burnt = 1000.0 * next(asked)
        here = [_reading("web", 1, burnt), _reading("mail", 2, burnt)]
        return {"nodes": {"test1": [ZERO, *here], "test2": [ZERO]}, "silent": list(silent)}

    daemon.routes["GET /v1/cluster"] = {
        "quorum": quorum,
        "nodes": [
            {"name": "test1", "state": "present", "reason": "", "domains": ["web", "mail"], "intent": ""},
            {"name": "test2", "state": "present", "reason": "", "domains": [], "intent": ""},
        ],
    }
    daemon.routes["GET /v1/domains?cluster=1"] = domains
    daemon.routes["GET /v1/ha"] = [{"domain": "web", "policy": {"policy": "restart"}}]
    daemon.routes["GET /v1/groups"] = []


def test_the_live_cluster(run: Run, daemon: StandIn) -> None:
    _live(daemon)
    told = run("balance", "--plan", "--measure", "0.1", "--explain")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[2].split()[1:4] in (["web", "test1", "test2"], ["mail", "test1", "test2"])
    assert daemon.orders() == []


def test_a_node_that_does_not_answer(run: Run, daemon: StandIn) -> None:
    _live(daemon, silent=("test3",))
    told = run("balance", "--plan", "--measure", "0.1", "--json")
    assert told.code == 1
    assert told.err == "veery: node test3 does not answer; the plan leaves it and its domains out\n"
    assert json.loads(told.out)["before"]["load"] > 0


def test_no_quorum(run: Run, daemon: StandIn) -> None:
    _live(daemon, quorum=False)
    told = run("balance", "--plan", "--measure", "0.1")
    assert told.code == 1
    assert "no quorum" in told.err


def test_a_wrong_time_to_measure(run: Run) -> None:
    assert run("balance", "--plan", "--measure", "0").code == 2
    assert run("balance", "--plan", "--measure", "nan").code == 2
