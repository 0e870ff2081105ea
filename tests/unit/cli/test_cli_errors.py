"""Every way to go wrong: one line, a hint, the exit status, and no traceback."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
from cli_standin import Run, StandIn

from veery.client.address import Address, find
from veery.client.http import RESTART_S, Client, connect_unix
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host import restarting


def test_no_daemon(run: Run, folder: Path) -> None:
    told = run("list")
    assert told.code == 1
    assert told.err == f"veery: no veeryd answers at {folder}/run/api.sock\n  hint: systemctl start veeryd\n"


def test_a_socket_that_nobody_serves(run: Run, folder: Path) -> None:
    (folder / "run").mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "run" / "api.sock"))
    left.close()
    assert "no veeryd answers" in run("list").err


def test_a_daemon_that_starts_again_is_waited_for(folder: Path) -> None:
    """Its socket is there and nobody listens; it listens, and removes its file, half a second later."""
    run = folder / "run"
    run.mkdir()
    restarting.announce(run)
    late = socket.socket(socket.AF_UNIX)
    late.bind(str(run / "api.sock"))

    def listen() -> None:
        late.listen(1)
        restarting.done(run)

    timer = threading.Timer(0.5, listen)
    timer.start()
    try:
        with contextlib.closing(Client(Address(run / "api.sock"))._open(5.0)) as connection:
            assert connection.sock is not None
    finally:
        timer.join(timeout=5)
        late.close()


@pytest.mark.parametrize("text", ["999999999\n", "no number"])
def test_the_file_of_a_daemon_that_is_gone_holds_nobody_up(run: Run, folder: Path, text: str) -> None:
    (folder / "run").mkdir()
    (folder / "run/restarting").write_text(text)
    began = time.monotonic()
    assert "no veeryd answers" in run("list").err
    assert time.monotonic() - began < RESTART_S


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "no verb 'lst'; did you mean list?"),
        (["volume"], "veery volume needs one of list|show|create|import|resize|move|delete"),
        (["destroy"], "the following arguments are required: DOMAIN"),
        (["destroy", "a", "b"], "unrecognized arguments: b"),
        (["list", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--nonsense", "list"], "unknown option --nonsense"),
        (["--node"], "--node needs a value"),
        (["--json", "destroy", "a"], "this verb does not support --json"),
        (["migrate", "--downtime", "x", "a", "b"], "argument --downtime: invalid int value: 'x'"),
        (["join", "token", "--name", "a", "--address", "::1"], "give TOKEN@ADDRESS, as veery node token prints it"),
        (["init", "--name", "a", "--address", "::1", "--roles", "king"], "no role 'king'; roles are"),
    ],
)
def test_usage(run: Run, words: list[str], said: str) -> None:
    told = run(*words)
    assert told.code == 2
    assert told.err.startswith(f"veery: {said}"), told.err
    assert "\n  hint: veery" in told.err


def test_no_verb_shows_the_overview(run: Run) -> None:
    told = run()
    assert (told.code, told.out.startswith("usage: veery")) == (2, True)
    assert run("--help").code == 0


def test_no_traceback_for_what_nobody_foresaw(daemon: StandIn, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.routes["GET /v1/domains"] = {"node": "test1"}  # not what docs/api.md says
    told = run("list")
    assert (told.code, told.err.splitlines()[0]) == (1, "veery: internal error: KeyError: 'domains'")
    assert "Traceback" not in told.err
    monkeypatch.setenv("VEERY_DEBUG", "1")
    assert "Traceback" in run("list").err


def test_answers_that_are_no_errors_of_ours(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/domains"] = (502, b"<html>Bad gateway</html>")
    told = run("list")
    assert (told.code, told.err) == (1, "veery: veeryd answers 502: <html>Bad gateway</html>\n")


def test_kinds_become_our_errors(daemon: StandIn) -> None:
    client = Client(Address(daemon.path))
    for status, kind, error in ((409, "refused", Refused), (500, "failed", Failed), (504, "unknown", OutcomeUnknown)):
        daemon.routes["GET /v1/log"] = (status, {"error": {"kind": kind, "message": "m", "hint": "h"}})
        with pytest.raises(error) as caught:
            client.get("/v1/log")
        assert (type(caught.value), caught.value.message, caught.value.hint) == (error, "m", "h")


@pytest.fixture
def deaf(tmp_path: Path) -> Path:
    """A socket that takes connections and says nothing; one that hangs up is at its side, hangs.sock."""
    return tmp_path / "deaf.sock"


def test_silence_ends(deaf: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(deaf))
        listener.listen()
        client = Client(Address(deaf), deadline=0.1)
        with pytest.raises(Failed, match="does not answer"):
            client.get("/v1/domains")
        with pytest.raises(OutcomeUnknown, match="does not answer"):
            client.post("/v1/domains/a/destroy")
        with pytest.raises(OutcomeUnknown, match="does not answer"):
            list(client.stream("/v1/domains/a/migrate", silence=0.1))


def test_a_daemon_that_dies_in_the_middle(deaf: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(deaf))
        listener.listen()

        def hang_up() -> None:
            for answer in (b"", b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n{"event": "begin"}\n\r\n'):
                peer, _ = listener.accept()
                with peer:
                    asked = b""
                    while not asked.endswith(b"{}"):
                        asked += peer.recv(1 << 16)
                    peer.sendall(answer)

        thread = threading.Thread(target=hang_up)
        thread.start()
        client = Client(Address(deaf), deadline=20)
        with pytest.raises(OutcomeUnknown, match="ended the connection"):
            client.post("/v1/domains/a/destroy")
        events = client.stream("/v1/domains/a/migrate")
        assert next(events) == {"event": "begin"}
        with pytest.raises(OutcomeUnknown):
            next(events)
        thread.join(20)


def test_the_other_node_is_named_in_a_header(daemon: StandIn, run: Run) -> None:
    assert run("--node", "test9", "list").code == 0
    assert run("list", "--node=test8").code == 0
    assert run("list").code == 0
    assert [seen[2].get("X-Veery-Node") for seen in daemon.seen] == ["test9", "test8", None]


def test_a_lab_node_is_spoken_to_directly(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = StandIn(folder / "cache" / "veery" / "lab" / "lab" / "test1" / "run" / "api.sock")
    try:
        assert run("--node", "test1", "list").code == 0
        assert stand.seen[0][2].get("X-Veery-Node") is None
        monkeypatch.setenv("VEERY_NODE", "test1")
        assert run("list").code == 0
    finally:
        stand.close()
    assert "hint: veery lab up" in run("--node", "test1", "list").err
    assert find(node="test1", lab="other").node == "test1"
    assert "the nodes of lab lab are test1" in run("--node", "test7", "list").err
    assert find(node="test1").start == "veery lab up"


def test_settings(run: Run, folder: Path) -> None:
    told = run("--settings", "none.toml", "list")
    assert (told.code, told.err.splitlines()[0]) == (1, "veery: none.toml: no such settings file")
    (folder / "bad.toml").write_text("run = \n")
    assert run("--settings", "bad.toml", "list").err.startswith("veery: bad.toml: Invalid value (at line 1")
    (folder / "bad.toml").write_text("run = 1\n")
    assert run("--settings", "bad.toml", "list").err.startswith("veery: bad.toml: run is not a string")


def test_a_socket_path_longer_than_an_address(tmp_path: Path) -> None:
    stand = StandIn(tmp_path / "api.sock")
    deep = tmp_path.joinpath(*["d" * 60] * 3)
    deep.mkdir(parents=True)
    (deep / "api.sock").symlink_to(tmp_path / "api.sock")
    try:
        assert Client(Address(deep / "api.sock")).get("/v1/domains")["node"] == "test1"
        connect_unix(deep / "api.sock", 1).close()
    finally:
        stand.close()


def test_init_refuses_before_it_changes_anything(run: Run, folder: Path) -> None:
    told = run("init", "--name", "Bad Name", "--address", "127.0.0.1")
    assert (told.code, told.err.startswith("veery: not a node name")) == (1, True)
    assert sorted(path.name for path in folder.iterdir()) == ["veery.toml"]


def test_init_makes_a_cluster_offline(run: Run, folder: Path) -> None:
    (folder / "veery.toml").write_text(f'run = "{folder}/run"\nstate = "{folder}/state"\n')
    words = ("init", "--name", "stor", "--address", "127.0.0.1", "--roles", "storage,voter", "--cluster", "lab")
    told = run(*words)
    assert (told.code, told.out) == (0, "Created cluster lab with node stor (127.0.0.1)\n")
    assert f"volumes in {folder}/state/volumes share a filesystem with veery's own state" in told.err
    assert (folder / "state" / "tls").is_dir()
    again = run(*words)
    assert (again.code, again.err.startswith("veery: ")) == (1, True)


ODD = ["\u00e9", "\udcff", "a\udcffb", "\u2603", "a b\n", "\x1b[31m", "../../v1/ca", "a?b#c", ""]
VERBS = "move show|move cancel|destroy|domid|volume show|fence show|why|create|console|save a"


@pytest.mark.parametrize("word", ODD)
@pytest.mark.parametrize("verb", VERBS.split("|"))
@pytest.mark.parametrize("tool", ["veery", "xl", "xm"])
def test_odd_bytes_in_an_argument(daemon: StandIn, run: Run, tool: str, verb: str, word: str) -> None:
    told = run(*verb.split(), word, tool=tool)
    assert told.code != 0
    assert "internal error" not in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize("node", ["\u00e9", "\udcff", "\u2603", "a\nb: c"])
def test_odd_bytes_in_a_nodes_name(daemon: StandIn, run: Run, node: str) -> None:
    told = run("--node", node, "list")
    assert (told.code, "is not a node name" in told.err) == (1, True)
    assert daemon.seen == []
