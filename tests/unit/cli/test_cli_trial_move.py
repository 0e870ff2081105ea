"""`veery selftest kvm --move`: what is asked of both daemons, and an answer that names nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_standin import BUSYBOX, REPORT, Lines, Run, StandIn, refused

from veery.cli.trialmove import without
from veery.client.http import NODE_HEADER

PATH = f"/v1/domains/{BUSYBOX['uuid']}"
PLAN = {"domain": "busybox", "source": "test1", "target": "test2", "possible": True, "blockers": [], "cautions": []}
STORY = [{"at": 0.1, "text": "busybox on test1: switches over to test2 (172.16.31.2, iqn.2026-01.example:test2)"}]


def done(**changes: object) -> Lines:
    return Lines([{"event": "begin", "move": "m1"}, {"event": "done", "move": "m1", "result": {**REPORT, **changes}}])


def test_a_domain_goes_there_and_back(daemon: StandIn, run: Run, tmp_path: Path) -> None:
    daemon.routes[f"POST {PATH}/plan"] = PLAN
    daemon.routes[f"POST {PATH}/migrate"] = done(story=STORY, samples=[{"at": 0.0, "rate": 1.5}])
    told = run("selftest", "kvm", "--move", "busybox", "--to", "test2", "-o", str(tmp_path / "answer"))
    assert (told.code, told.out) == (0, ""), told.err
    answer = json.loads((tmp_path / "answer").read_text())
    assert answer["good"]
    assert [row["way"] for row in answer["moves"]] == ["there", "back"]
    assert [row["plan"] for row in answer["moves"]] == [{"possible": True, "blockers": [], "cautions": []}] * 2
    there = answer["moves"][0]
    assert (there["downtime_ms"], there["bytes"], there["phases"]["COPY"]) == (14.2, 137579003, 200.5)
    assert there["story"][0]["text"] == "DOMAIN on HERE: switches over to THERE (ADDRESS, IQN)"
    assert there["samples"] == [{"at": 0.0, "rate": 1.5}]
    moves = json.dumps(answer["moves"])
    assert not any(name in moves for name in ("busybox", "test1", "test2", BUSYBOX["uuid"], "172.16"))
    ordered = [
        (headers.get(NODE_HEADER, ""), json.loads(body)["target"])
        for method, _, headers, body in daemon.seen
        if method == "POST"
    ]
    assert ordered == [("", "test2"), ("", "test2"), ("test2", "test1"), ("test2", "test1")]


def test_a_move_that_fails_is_the_last(daemon: StandIn, run: Run) -> None:
    daemon.routes[f"POST {PATH}/plan"] = PLAN
    daemon.routes[f"POST {PATH}/migrate"] = refused("test2 has no bridge xenbr0", "make it there")
    told = run("selftest", "kvm", "--move", "busybox", "--to", "test2")
    answer = json.loads(told.out)
    assert told.code == 1
    assert not answer["good"]
    (row,) = answer["moves"]
    assert (row["good"], row["error"], row["hint"]) == (False, "THERE has no bridge xenbr0", "make it there")
    assert "the move there failed: THERE has no bridge xenbr0" in told.err


def test_one_that_does_not_come_back_is_looked_for(daemon: StandIn, run: Run) -> None:
    answers = iter([done(), done(state="failed", reason="the path broke")])
    daemon.routes[f"POST {PATH}/plan"] = PLAN
    daemon.routes[f"POST {PATH}/migrate"] = lambda _: next(answers)
    told = run("selftest", "kvm", "--move", "busybox", "--to", "test2")
    assert told.code == 1
    assert [row["good"] for row in json.loads(told.out)["moves"]] == [True, False]
    assert "the move back failed: the path broke" in told.err
    assert "veery list --cluster" in told.err


@pytest.mark.parametrize("words", [["--move", "busybox"], ["--to", "test2"]])
def test_a_domain_and_a_node_are_wanted(run: Run, words: list[str]) -> None:
    told = run("selftest", "kvm", *words)
    assert (told.code, "require each other" in told.err) == (2, True)


def test_texts_lose_names_and_addresses() -> None:
    names = {"web": "DOMAIN", "a.b": "HERE"}
    found = without(
        {"x": ["web-2 and web, a.b: fe80::1 fd00:1:2:3:4:5:6:7 00:16:3e:00:00:01 at 1:10:30", 5, None]}, names
    )
    assert found == {"x": ["web-2 and DOMAIN, HERE: ADDRESS ADDRESS MAC at 1:10:30", 5, None]}
