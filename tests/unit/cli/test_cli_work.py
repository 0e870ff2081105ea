"""Work that takes long: migrate with its progress and Ctrl-C, uploads."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_standin import REPORT, VOLUME, Lines, Run, StandIn, refused

from veery.cli.imports import image_format
from veery.cli.progress import copied, figures, left
from veery.model.move import MoveProgress, Phase

MIB = 1 << 20
VEERY = (sys.executable, "-m", "veery")


def progress(phase: str, **values: Any) -> dict[str, Any]:
    """A line of a move's stream."""
    return {"event": "progress", "move": "m1", "progress": {"phase": phase, **values}}


COPY = {
    "transferred": 32 * MIB,
    "remaining": 96 * MIB,
    "total": 128 * MIB,
    "rate": 64.0 * MIB,
    "dirty_rate": 16.0 * MIB,
}
STREAM = [
    {"event": "begin", "move": "m1"},
    progress("BEGIN"),
    progress("PREPARE"),
    progress("COPY", **COPY),
    progress("COPY", **{**COPY, "remaining": 32 * MIB}),
    progress("COMMIT"),
    {"event": "done", "result": REPORT},
]


def test_a_downtime_that_the_hypervisor_did_not_tell_is_not_told(daemon: StandIn, run: Run) -> None:
    ended = {"event": "done", "result": REPORT | {"downtime_ms": 0.0, "rounds": 0}}
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines([*STREAM[:-1], ended])
    assert run("migrate", "busybox", "test2").out == "busybox moved from test1 to test2 in 0.31 s: 131.2 MiB\n"


def test_progress_in_plain_lines(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines(STREAM)
    told = run("migrate", "busybox", "test2")
    assert told.code == 0
    assert told.out == "busybox moved from test1 to test2 in 0.31 s: downtime 14 ms, 131.2 MiB in 3 rounds\n"
    assert told.err.splitlines() == [
        "busybox -> test2  BEGIN",
        "busybox -> test2  PREPARE",
        "busybox -> test2  COPY   25 %  64.0 MiB/s, dirtied 16.0 MiB/s, 0:02 left",
        "busybox -> test2  COMMIT",
    ]
    order = daemon.orders()[0][2]
    assert order["target"] == "test2"
    asked = {"policy": "balanced", "live": True, "bandwidth": 0, "downtime": 50, "timeout": 0.0, "stall": 15.0}
    assert order["settings"].items() >= asked.items()


def test_the_report_as_json(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines(STREAM)
    told = json.loads(run("--json", "migrate", "-q", "busybox", "test2").out)
    assert told.items() >= REPORT.items()


def test_a_new_round_says_why_it_goes_back(daemon: StandIn, run: Run) -> None:
    again = progress("COPY", **{**COPY, "rounds": 2, "note": "round 2: 96.0 MiB were written meanwhile"})
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines([*STREAM[:4], again, *STREAM[5:]])
    assert "busybox -> test2  round 2: 96.0 MiB were written meanwhile" in run("migrate", "busybox", "test2").err


def test_a_bar_goes_back_with_a_reason_even_where_the_reading_with_it_was_missed(daemon: StandIn, run: Run) -> None:
    far, back = progress("COPY", **{**COPY, "remaining": 8 * MIB}), progress("COPY", **{**COPY, "remaining": 40 * MIB})
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines([*STREAM[:4], far, back, far, *STREAM[5:]])
    told = run("migrate", "busybox", "test2").err
    assert told.count("goes back") == 1
    assert "busybox -> test2  progress goes back to 69 %: the domain wrote 40.0 MiB meanwhile" in told


def test_each_step_of_a_policy_is_named_and_post_copy_warns_first(daemon: StandIn, run: Run) -> None:
    steps = ["limit 100 ms: it needs 93 ms", "throttle 60 %, limit 400 ms: it writes", "switches over"]
    rest = progress("CONFIRM", **COPY, step="post-copy", note="a new stream carries the rest")
    lines = [*STREAM[:4], *(progress("COPY", **COPY, note=step) for step in steps), rest, STREAM[-1]]
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines(lines)
    told = run("migrate", "--policy", "post-copy", "busybox", "test2").err.splitlines()
    assert told[0].startswith("post-copy: once it runs there it cannot come back")
    assert [line for line in told if line.endswith(tuple(steps))] == [f"busybox -> test2  {step}" for step in steps]
    assert told[-1].startswith("busybox -> test2  CONFIRM post-copy   25 %")
    assert "post-copy:" not in run("migrate", "busybox", "test2").err


def test_many_domains_in_one_order(daemon: StandIn, run: Run) -> None:
    bad = {**REPORT, "id": "m2", "domain": "wren", "state": "failed", "reason": "it does not get on"}
    lines = [
        {"event": "begin", "moves": {"busybox": "m1", "wren": "m2"}, "refused": {"lark": "it is crashed"}},
        {**progress("COPY", **COPY), "move": "m1"},
        {**progress("COPY", note="waits for its turn"), "move": "m2"},
        {"event": "done", "result": {"reports": [REPORT, bad], "refused": {"lark": "it is crashed"}}},
    ]
    daemon.routes["POST /v1/evacuate"] = Lines(lines)
    told = run("migrate", "--to", "test2", "--policy", "gentle", "busybox", "wren", "lark")
    assert told.code == 1
    assert told.out == "busybox moved to test2: downtime 14 ms\n"
    assert told.err.splitlines() == [
        "lark  refused: it is crashed",
        "busybox  COPY  64.0 MiB/s, dirtied 16.0 MiB/s, 0:02 left",
        "wren  COPY",
        "wren  waits for its turn",
        "veery: wren was not moved to test2: it does not get on",
        "veery: 2 of 3 domains were not moved",
    ]
    (_, _, order) = daemon.orders()[0]
    assert (order["targets"], order["domains"]) == (["test2"], ["busybox", "wren", "lark"])
    assert order["settings"]["policy"] == "gentle"
    assert run("migrate", "busybox").code == 2
    assert run("migrate", "--to", "test2").code == 2
    assert run("migrate", "--all", "a", "b").code == 2


def test_a_move_is_changed_and_its_time_line_shown(daemon: StandIn, run: Run) -> None:
    sample = {"at": 0.1, "rounds": 1, "transferred": MIB, "remaining": 2 * MIB, "rate": 3.0 * MIB, "dirty_rate": 0.0}
    later = {**sample, "at": 2.5, "rounds": 2, "throttle": 80, "downtime": 400}
    story = [{"at": 2.1, "text": "throttle 80 %, limit 400 ms: it writes too much"}]
    samples = [{**sample, "throttle": 0, "downtime": 50}, later]
    daemon.routes["GET /v1/moves/m1"] = {**REPORT, "policy": "balanced", "samples": samples, "story": story}
    lines = run("move", "show", "m1").out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["0.10", "2.10", "2.50"]
    assert any("80 %" in line and "400 ms" in line and "2.0 MiB" in line for line in lines)
    daemon.routes["POST /v1/moves/m1/set"] = {}
    assert run("move", "set", "m1", "--bandwidth", "32M", "--downtime", "100").code == 0
    assert daemon.orders()[-1][2] == {"bandwidth": 32 * MIB, "downtime": 100}
    assert run("move", "set", "m1").code == 2


def test_a_move_that_fails_says_where_the_domain_runs(daemon: StandIn, run: Run) -> None:
    error = {"kind": "failed", "message": "busybox was not moved to test2: no; busybox runs on test1", "hint": "x"}
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines([*STREAM[:2], {"event": "error", "error": error}])
    told = run("migrate", "-q", "busybox", "test2")
    assert (told.code, told.out) == (1, "")
    assert told.err == "veery: busybox was not moved to test2: no; busybox runs on test1\n  hint: x\n"


def test_the_report_in_words(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/moves/m1"] = REPORT
    daemon.routes["GET /v1/moves"] = [REPORT]
    assert run("move", "show", "m1").out.splitlines() == [
        "move m1: busybox from test1 to test2, done in CONFIRM",
        "  total 310 ms, downtime 14 ms, 131.2 MiB in 3 rounds, dirtied 0 B/s",
        "  BEGIN          1.0 ms",
        "  COPY         200.5 ms",
        "  the domain runs on test2",
    ]
    assert run("moves").out.splitlines()[1].split()[:6] == ["m1", "busybox", "test1", "test2", "done", "CONFIRM"]


def test_figures() -> None:
    half = MoveProgress(phase=Phase.COPY, remaining=50 * MIB, total=100 * MIB, rate=20.0 * MIB, dirty_rate=10.0 * MIB)
    assert (copied(half), left(half)) == (0.5, 5.0)
    stuck = MoveProgress(phase=Phase.COPY, remaining=50 * MIB, total=100 * MIB, rate=20.0 * MIB, dirty_rate=20.0 * MIB)
    assert left(stuck) is None
    assert figures(stuck) == "20.0 MiB/s, dirtied 20.0 MiB/s, not converging"
    assert figures(MoveProgress(phase=Phase.COPY, remaining=MIB, total=MIB)) == ""  # nothing measured yet
    assert copied(MoveProgress(phase=Phase.BEGIN)) is None
    assert figures(MoveProgress(phase=Phase.BEGIN)) == ""


class Cancellable:
    """A move that stays in COPY until somebody cancels it; `gone` when it was."""

    def __init__(self, daemon: StandIn) -> None:
        self.cancelled = False
        error = {"kind": "failed", "message": "busybox was not moved to test2: cancelled; busybox runs on test1"}
        lines = [STREAM[0], progress("COPY", **COPY), self.wait, {"event": "error", "error": error}]
        daemon.routes["POST /v1/domains/busybox/migrate"] = Lines(lines)
        daemon.routes["POST /v1/moves/m1/cancel"] = self.cancel

    def wait(self) -> None:
        end = time.monotonic() + 60
        while not self.cancelled and time.monotonic() < end:
            time.sleep(0.02)

    def cancel(self, _: bytes) -> dict[str, Any]:
        self.cancelled = True
        return {}


def test_ctrl_c_cancels_and_says_where_it_runs(daemon: StandIn) -> None:
    Cancellable(daemon)
    command = [*VEERY, "migrate", "busybox", "test2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "COPY" in said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "cancelling" in err
    assert err.splitlines()[-1] == "veery: busybox was not moved to test2: cancelled; busybox runs on test1"


def test_a_second_ctrl_c_leaves(daemon: StandIn) -> None:
    stuck = Cancellable(daemon)
    daemon.routes["POST /v1/moves/m1/cancel"] = {}  # it takes its time
    command = [*VEERY, "migrate", "busybox", "test2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "COPY" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        while "cancelling" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    stuck.cancelled = True
    assert process.returncode == 1
    assert err.splitlines()[-1] == "  hint: veery move show m1"


def test_a_live_bar_on_a_terminal(daemon: StandIn) -> None:
    daemon.routes["POST /v1/domains/busybox/migrate"] = Lines([*STREAM[:4], 0.4, *STREAM[4:]])
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([*VEERY, "migrate", "busybox", "test2"], stderr=theirs, env=environ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other side of a pty was closed
                break
            if not data:
                break
            seen += data
        assert process.wait(60) == 0
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "busybox -> test2  COPY" in text
    assert "64.0 MiB/s" in text
    assert "━" in text


# ---- uploads
def test_import_makes_the_volume_and_sends_the_bytes(daemon: StandIn, run: Run, folder: Path) -> None:
    data = os.urandom(3 * MIB + 512)
    (folder / "disk.raw").write_bytes(data)
    daemon.routes |= {"GET /v1/volumes": [], "POST /v1/volumes": VOLUME, "PUT /v1/volumes/root/content": VOLUME}
    told = run("volume", "import", "root", "disk.raw")
    assert (told.code, told.out) == (0, "Imported disk.raw into volume root (3.0 MiB)\n")
    assert "volume root  uploading" in told.err
    [(_, _, made), (method, path, sent)] = daemon.orders()
    assert made["size"] == len(data)
    assert (method, path, sent == data) == ("PUT", "/v1/volumes/root/content", True)


def test_import_converts_what_is_not_raw(daemon: StandIn, run: Run, folder: Path) -> None:
    raw = b"veery" * 1000 + bytes(MIB - 5000)
    (folder / "disk.raw").write_bytes(raw)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "disk.raw", "disk.qcow2"], cwd=folder, check=True, timeout=60)
    assert image_format(folder / "disk.qcow2") == "qcow2"
    volume = {**VOLUME, "size": 2 * MIB}
    daemon.routes |= {"GET /v1/volumes": [{"volume": volume, "used_by": []}], "PUT /v1/volumes/root/content": VOLUME}
    assert run("volume", "import", "root", "disk.qcow2", "-q").code == 0
    assert daemon.orders()[0][2] == raw


@pytest.mark.parametrize("kind", ["qcow2", "qed", "vmdk", "vhdx", "vpc", "raw"])
def test_formats_are_known_by_their_bytes(tmp_path: Path, kind: str) -> None:
    made = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, made, "1M"], check=True, timeout=60)
    assert image_format(made) == kind


def test_import_refused_in_the_middle(daemon: StandIn, run: Run, folder: Path) -> None:
    with (folder / "disk.raw").open("wb") as file:
        file.truncate(64 * MIB)
    daemon.routes["GET /v1/volumes"] = [{"volume": VOLUME, "used_by": []}]
    daemon.routes["PUT /v1/volumes/root/content"] = refused("volume root is used by busybox on test1", "shut it down")
    told = run("volume", "import", "root", "disk.raw", "-q")
    assert (told.code, told.err) == (1, "veery: volume root is used by busybox on test1\n  hint: shut it down\n")


def test_import_checks_before_it_sends(daemon: StandIn, run: Run, folder: Path) -> None:
    (folder / "disk.raw").write_bytes(bytes(2 * MIB))
    daemon.routes["GET /v1/volumes"] = [{"volume": {**VOLUME, "size": MIB}, "used_by": []}]
    told = run("volume", "import", "root", "disk.raw")
    assert (told.code, told.err.splitlines()[0]) == (1, "veery: volume root has 1.0 MiB, but 2.0 MiB are needed")
    assert run("volume", "import", "root", "none.raw").err.startswith("veery: no file none.raw")
    assert daemon.orders() == []


def image(folder: Path, *words: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *words], cwd=folder, check=True, timeout=60, stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    "made",
    [
        [["-f", "qcow2", "-F", "raw", "-b", "{}/secret", "disk"]],
        [["-f", "qcow2", "-u", "-F", "raw", "-b", "/none/at/all", "disk", "1M"]],
        [["-f", "qcow2", "-u", "-F", "raw", "-b", 'json:{{"driver":"file","filename":"{}/secret"}}', "disk", "1M"]],
        [["-f", "qed", "-F", "raw", "-b", "{}/secret", "disk"]],
        [["-f", "qcow2", "-o", "data_file={}/data,data_file_raw=on", "disk", "1M"]],
        [["-f", "vmdk", "-F", "vmdk", "-b", "{}/base.vmdk", "disk"]],
        [["-f", "vmdk", "-o", "subformat=monolithicFlat", "disk", "1M"]],
        [["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "disk", "1M"]],
        [["-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "disk", "1M"]],
    ],
    ids=[
        "backing",
        "backing-away",
        "backing-json",
        "qed",
        "data-file",
        "vmdk-parent",
        "flat",
        "extents",
        "flat-extents",
    ],
)
def test_an_image_that_names_other_files_is_not_read(
    daemon: StandIn, run: Run, folder: Path, made: list[list[str]]
) -> None:
    (folder / "secret").write_bytes(b"root's own" + bytes(MIB - 10))
    image(folder, "-f", "vmdk", "base.vmdk", "1M")
    for words in made:
        image(folder, *(word.replace("{{", "{").replace("}}", "}").replace("{}", str(folder)) for word in words))
    daemon.routes["GET /v1/volumes"] = []
    told = run("volume", "import", "root", "disk", "-q")
    assert told.code == 1
    assert "needs another file" in told.err or "in other files" in told.err
    assert "hint: on the machine that made the image: qemu-img convert" in told.err
    assert daemon.orders() == []


@pytest.mark.parametrize("kind", ["qcow2", "qed", "vmdk", "vhdx"])
def test_a_disk_larger_than_asked_for_is_not_imported(daemon: StandIn, run: Run, folder: Path, kind: str) -> None:
    image(folder, "-f", kind, "disk", "900G")
    daemon.routes["GET /v1/volumes"] = []
    told = run("volume", "import", "root", "disk", "-q")
    assert (told.code, "is a disk of 900.0 GiB, more than 256.0 GiB" in told.err) == (1, True), told.err
    assert daemon.orders() == []


@pytest.mark.parametrize("kind", ["qcow2", "qed", "vmdk", "vhdx", "vpc"])
def test_a_whole_image_of_each_kind_is_imported(daemon: StandIn, run: Run, folder: Path, kind: str) -> None:
    (folder / "raw").write_bytes(b"veery" * 1000 + bytes(2 * MIB - 5000))
    command = ["qemu-img", "convert", "-f", "raw", "-O", kind, "raw", "disk:1"]
    subprocess.run([*command[:-1], folder / "disk:1"], cwd=folder, check=True, timeout=60)
    volume = {**VOLUME, "size": 4 * MIB}
    daemon.routes |= {"GET /v1/volumes": [{"volume": volume, "used_by": []}], "PUT /v1/volumes/root/content": VOLUME}
    assert run("volume", "import", "root", "disk:1", "-q").err == ""
    assert daemon.orders()[0][2].startswith(b"veery" * 1000 + bytes(1000))


def test_a_damaged_image_is_refused_in_one_line(daemon: StandIn, run: Run, folder: Path) -> None:
    (folder / "disk").write_bytes(b"QFI\xfb" + os.urandom(4000))
    told = run("volume", "import", "root", "disk", "-q")
    assert (told.code, len(told.err.splitlines())) == (1, 2)
    assert told.err.startswith("veery: disk cannot be inspected: ")
