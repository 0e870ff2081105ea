"""node health and node well: what is printed, and what is asked."""

from __future__ import annotations

import json
import time
from typing import Any

from cli_standin import NODE, Run, StandIn, refused

SIGN = {
    "sensor": "ecc",
    "part": "mc0",
    "level": "bad",
    "value": "1",
    "sentence": "uncorrected memory errors since boot: 1",
    "since": 1000.0,
    "asks": "evacuate",
    "would": "evacuate",
    "severe": True,
    "shared": False,
}
TOLD = {**SIGN, "part": "mc0/dimm1", "sentence": "400 corrected memory errors", "asks": "well", "severe": False}


def _record(*signs: dict[str, Any], verdict: str = "well") -> dict[str, Any]:
    return {"verdict": verdict, "since": time.time() - 65, "severe": False, "singly": False, "signs": list(signs)}


def _found(record: dict[str, Any]) -> dict[str, Any]:
    sensors = [
        {"sensor": "ecc", "level": "bad", "pace_s": 60.0, "age_s": 12.0, "late": False},
        {"sensor": "ipmi", "level": "unknown", "pace_s": 120.0, "age_s": None, "late": True},
    ]
    history = [{"at": 1000.0, "verdict": "evacuate", "text": "ecc mc0: uncorrected memory errors since boot: 1 (1)"}]
    return {"node": "test1", "record": record, "sensors": sensors, "history": history, "modes": {}}


def test_a_node_is_shown_with_its_signs_and_sensors(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes/test1/health"] = _found(_record(SIGN, TOLD, verdict="evacuate"))
    told = run("node", "health", "test1")
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert (told.code, lines[0].partition(",")[0]) == (0, "test1: evacuate")
    assert lines[2].startswith("ecc mc0 bad 1 evacuate ")
    assert lines[2].endswith(" ago uncorrected memory errors since boot: 1")
    assert lines[3].startswith("ecc mc0/dimm1 bad 1 (evacuate) ")
    assert lines[5:] == ["ecc bad 0:12 ago 1:00", "ipmi unknown never, late 2:00"]


def test_the_history_is_shown_when_asked_for(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes/test1/health"] = _found(_record())
    lines = run("node", "health", "test1", "--history").out.splitlines()
    assert lines[1] == "1970-01-01 00:16:40  evacuate    ecc mc0: uncorrected memory errors since boot: 1 (1)"


def test_all_nodes_are_shown(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes"] = [{"node": {**NODE, "name": name}} for name in ("test1", "test2", "test3")]
    daemon.routes["GET /v1/verdicts"] = {"test1": _record(SIGN, verdict="evacuate"), "test2": _record(TOLD)}
    lines = [" ".join(line.split()) for line in run("node", "health").out.splitlines()]
    assert lines[1].endswith("ago ecc mc0: uncorrected memory errors since boot: 1")
    assert lines[2].startswith("test2 well ")
    assert lines[2].endswith("(reported only; otherwise evacuate)")
    assert lines[3] == "test3 unknown - its veeryd has not reported yet"


def test_of_a_node_that_does_not_answer_the_store_tells(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes/test2/health"] = refused("node test2 does not answer")
    daemon.routes["GET /v1/verdicts"] = {"test2": _record(SIGN, verdict="evacuate")}
    told = run("node", "health", "test2")
    assert told.code == 0
    assert "test2 does not answer; this is its last report" in told.err
    assert told.out.startswith("test2: evacuate, since ")
    assert run("node", "health", "test3").code == 1


def test_well_is_said_of_a_sensor(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/nodes/test1/well"] = _record()
    assert run("node", "well", "test1", "smart").out == "test1 is well\n"
    assert json.loads(daemon.seen[-1][3])["sensor"] == "smart"
    daemon.routes["POST /v1/nodes/test1/well"] = _record(SIGN, verdict="evacuate")
    told = run("node", "well", "test1")
    assert told.out == "test1: evacuate: ecc mc0: uncorrected memory errors since boot: 1\n"


def test_json_is_the_answer_itself(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes/test1/health"] = _found(_record(SIGN))
    assert json.loads(run("node", "health", "test1", "--json").out)["record"]["signs"] == [SIGN]


def _caused(source: str, **outcome: Any) -> dict[str, Any]:
    promised = {"gap_ms": 120.0, "total_ms": 2000.0, "why": ""}
    ended = {"result": "done", "paused_ms": 84.2, "total_ms": 2100.4, "error": "", **outcome}
    moved = {"at": 1000.0, "domain": "web", "source": source, "target": "test3", "reason": "ecc mc0: one", "term": 7}
    return {**moved, "urgent": False, "promised": promised, "outcome": ended}


def test_the_record_has_forecast_and_result_of_each_move(daemon: StandIn, run: Run) -> None:
    failed = _caused("test2", result="failed", paused_ms=None, total_ms=None, error="no room")
    failed["promised"] = {"gap_ms": None, "total_ms": None, "why": "no answer"}
    daemon.routes["GET /v1/verdicts/moves"] = [_caused("test1"), failed]
    told = run("node", "health", "--record")
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert (told.code, lines[0]) == (0, "When Domain From To Gap Time Result Paused Took Why")
    assert lines[1] == "1970-01-01 00:16:40 web test1 test3 120 ms 2000 ms done 84 ms 2100 ms ecc mc0: one"
    assert lines[2].endswith("web test2 test3 - - failed - - ecc mc0: one; no forecast: no answer; no room")
    assert run("node", "health", "test1", "--record").out.count("web") == 1
    assert json.loads(run("--json", "node", "health", "test2", "--record").out) == [failed]


def test_an_empty_record_says_so(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/verdicts/moves"] = []
    assert run("node", "health", "test1", "--record").out == "no verdict has caused a move\n"
