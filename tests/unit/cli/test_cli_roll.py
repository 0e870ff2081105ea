"""veery cluster roll, against a stand-in: what it asks, in which order, and where it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_standin import NODE, Run, StandIn, refused

NAMES = ("test1", "test2", "stor")


class Cluster:
    """Answers for three nodes; a drained one is empty at once, a resumed one full."""

    def __init__(self, daemon: StandIn) -> None:
        self.drained: set[str] = set()
        self.bad: list[dict[str, str]] = []
        self.states: dict[str, str] = {}
        self.began = dict.fromkeys(NAMES, 1.0)
        routes = daemon.routes
        routes["GET /v1/nodes"] = self._nodes
        routes["GET /v1/cluster"] = self._status
        routes["GET /v1/doctor"] = lambda _: self.bad
        for name in NAMES:
            routes[f"GET /v1/nodes/{name}/drain"] = lambda _, name=name: self._drain(name)
            routes[f"POST /v1/nodes/{name}/drain"] = lambda _, name=name: self._order(name, drain=True)
            routes[f"POST /v1/nodes/{name}/resume"] = lambda _, name=name: self._order(name, drain=False)

    def _nodes(self, _: bytes) -> Any:
        return [{"node": {**NODE, "name": name}, "presence": {"started": at}} for name, at in self.began.items()]

    def _status(self, _: bytes) -> Any:
        rows = [{"name": name, "state": self._state(name)} for name in NAMES]
        return {"quorum": True, "nodes": rows}

    def _state(self, name: str) -> str:
        return self.states.get(name, "maintenance" if name in self.drained else "present")

    def _drain(self, name: str) -> Any:
        intent = {"kind": "drain"} if name in self.drained else None
        return {"state": self._state(name), "intent": intent, "domains": [], "coming": [], "words": {}}

    def _order(self, name: str, *, drain: bool) -> Any:
        if drain:
            self.drained.add(name)
            return {"risks": [], "warnings": []}
        self.drained.discard(name)
        return {}


@pytest.fixture
def cluster(daemon: StandIn) -> Cluster:
    return Cluster(daemon)


def told_orders(daemon: StandIn) -> list[str]:
    return [path.removeprefix("/v1/nodes/") for _, path, _ in daemon.orders()]


def test_all_nodes_ours_last(cluster: Cluster, daemon: StandIn, run: Run, folder: Path) -> None:
    told = run("cluster", "roll", "--run", "echo $NODE >>done")
    assert (told.code, told.out) == (0, "3 nodes done\n"), told.err
    assert (folder / "done").read_text().split() == ["stor", "test2", "test1"]
    assert told_orders(daemon) == [
        f"{name}/{what}" for name in ("stor", "test2", "test1") for what in ("drain", "resume")
    ]


def test_outdated_nodes_are_rolled(cluster: Cluster, daemon: StandIn, run: Run) -> None:
    """The roll upgrades them, so it must not wait until they support the cluster's level."""
    cluster.states = {"test1": "outdated"}
    told = run("cluster", "roll", "--run", "true", "test2", "stor")
    assert (told.code, told.out) == (0, "2 nodes done\n"), told.err


def test_a_command_that_fails(cluster: Cluster, daemon: StandIn, run: Run) -> None:
    told = run("cluster", "roll", "--run", "exit 3", "test2", "stor")
    assert told.code == 1
    assert "test2: the command ended with exit status 3" in told.err
    assert "test2 is still drained: veery node resume test2 --home; not begun: stor" in told.err
    assert told_orders(daemon) == ["test2/drain"]


def test_a_command_that_hangs(cluster: Cluster, run: Run) -> None:
    told = run("cluster", "roll", "--wait", "3", "--run", "exec sleep 60", "test2")
    assert (told.code, "did not end within 3 s, and was killed" in told.err) == (1, True), told.err
    assert cluster.drained == {"test2"}


def test_a_voter_that_does_not_come_back(cluster: Cluster, daemon: StandIn, run: Run) -> None:
    gone = {"node": "test2", "what": "store", "level": "bad", "told": "its member does not answer"}

    def order(_: bytes) -> Any:
        cluster.bad = [gone]
        return cluster._order("test2", drain=True)

    daemon.routes["POST /v1/nodes/test2/drain"] = order
    told = run("cluster", "roll", "--wait", "4", "--run", "true", "test2", "stor")
    assert told.code == 1
    assert "test2: the cluster is not healthy after 4 s: test2: store: its member does not answer" in told.err
    assert "stor/drain" not in told_orders(daemon)


def test_what_was_bad_before_is_no_reason(cluster: Cluster, run: Run) -> None:
    cluster.bad = [{"node": "stor", "what": "disk of state", "level": "bad", "told": "1 MiB of 9 GiB free"}]
    told = run("cluster", "roll", "--run", "true", "test2")
    assert told.code == 0, told.err
    assert "stor: disk of state: 1 MiB of 9 GiB free (already before the roll)" in told.err


def test_refused_before_anything_is_done(cluster: Cluster, daemon: StandIn, run: Run) -> None:
    assert "no node 'test9'" in run("cluster", "roll", "--run", "true", "test9").err
    cluster.states["stor"] = "maintenance"
    assert "stor is maintenance" in run("cluster", "roll", "--run", "true").err
    cluster.states.clear()
    cluster.bad = [{"node": "stor", "what": "store", "level": "bad", "told": "knows no leader"}]
    assert "stor: store: knows no leader" in run("cluster", "roll", "--run", "true", "test2").err
    daemon.routes["POST /v1/nodes/test2/drain"] = refused("test2 cannot be drained: it is the last")
    cluster.bad = []
    told = run("cluster", "roll", "--run", "touch ran", "test2")
    assert (told.code, "it is the last" in told.err, Path("ran").exists()) == (1, True, False)
    assert cluster.drained == set()


def test_a_reboot_is_waited_for(cluster: Cluster, daemon: StandIn, run: Run) -> None:
    """The command is back before the node goes down: only a daemon that began anew counts."""
    looks = []

    def nodes(body: bytes) -> Any:
        if (Path("ran")).exists():
            looks.append(1)
            cluster.began["test2"] = 2.0 if len(looks) > 3 else 1.0
        return cluster._nodes(body)

    daemon.routes["GET /v1/nodes"] = nodes
    told = run("cluster", "roll", "--reboot", "--run", "touch ran", "test2")
    assert told.code == 0, told.err
    assert len(looks) > 3
    told = run("cluster", "roll", "--reboot", "--wait", "3", "--run", "true", "test2")
    assert (told.code, "its veeryd has not restarted within 3 s" in told.err) == (1, True), told.err
