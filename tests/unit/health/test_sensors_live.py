"""The running node's sensors: programs with deadlines, plug-ins, and a sensor that hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from health_trees import judge

from veery.health import live
from veery.health.looking import SENSORS
from veery.health.plugins import Plugins
from veery.health.sel import Sel
from veery.health.series import Given, Moment, Series
from veery.health.sign import Level
from veery.health.source import TEXT_MAX, Recorded, Source

LONG_S = 120.0
ABSENT = "no-such-program"


class Scripted:
    """A machine's programs, by the first two words."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts
        self.ran: list[str] = []

    def __call__(self, words: Sequence[str], deadline_s: float, *, errors: bool) -> live.Answer | None:
        self.ran.append(" ".join(words))
        text = self.texts.get(words[0])
        return None if text is None else live.Answer(0, text)


def _machine(root: Path) -> Path:
    for name in ("sda", "sdb", "loop0", "nvme0n1"):
        (root / "sys/devices/pci" / name).mkdir(parents=True)
    session = root / "sys/devices/platform/host3/session1/block/sdc"
    session.mkdir(parents=True)
    (root / "sys/block").mkdir()
    for path in (root / "sys/devices/pci").iterdir():
        (root / "sys/block" / path.name).symlink_to(path)
    (root / "sys/block/sdc").symlink_to(session)
    return root


def test_disks_of_sessions_are_volumes(tmp_path: Path) -> None:
    root = _machine(tmp_path)
    assert live.host_disks(root) == ["nvme0n1", "sda", "sdb"]
    assert live.known(root).own_luns == {"sdc"}


def test_programs_are_read_as_a_recorded_tree_is(tmp_path: Path) -> None:
    run = Scripted(smartctl=json.dumps({"smart_status": {"passed": False}, "device": {"protocol": "ATA"}}))
    found = live.look(_machine(tmp_path), run, deadline_s=LONG_S)
    bad = {sign.part for sign in found.signs if sign.sensor == "smart" and sign.level is Level.BAD}
    assert bad == {"sda", "sdb", "nvme0n1"}
    assert found.level is Level.BAD
    assert len(run.ran) == len(set(run.ran)), "two sensors read smartctl; it runs once for each disk"
    assert not any("/dev/sdc" in words or "ipmi" in words for words in run.ran)  # a volume; no controller is there


def test_a_sensor_that_hangs_delays_no_other(tmp_path: Path) -> None:
    let_go = threading.Event()

    class Hung:
        name = "hung"

        def read(self, source: Source) -> object:
            return let_go.wait(LONG_S)

        def judge(self, series: object) -> list[object]:
            return []

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mdstat").write_text("Personalities :\nmd0 : active raid1 sda[0]\n      1 blocks [2/1] [U_]\n")
    sensors = (Hung(), *SENSORS)
    try:
        found = live.look(tmp_path, Scripted(), sensors, deadline_s=10.0)  # type: ignore[arg-type]
    finally:
        let_go.set()
    assert {sign.sensor: sign.level for sign in found.signs}["hung"] is Level.UNKNOWN
    assert {sign.sensor: sign.level for sign in found.signs}["md"] is Level.BAD
    assert found.level is Level.BAD


def test_a_program_is_ended_at_its_deadline() -> None:
    before = time.monotonic()
    answer = live.run(["sh", "-c", "echo first; sleep 300"], 1.0, errors=False)
    assert answer == live.Answer(None, "first\n")
    assert time.monotonic() - before < LONG_S


def test_output_is_read_to_a_bound() -> None:
    answer = live.run(
        ["sh", "-c", "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done"], 60.0, errors=False
    )
    assert answer is not None
    assert len(answer.text) <= TEXT_MAX


def test_a_program_that_is_not_there_and_one_that_fails() -> None:
    assert live.run([ABSENT], 10.0, errors=True) is None
    assert live.run(["sh", "-c", "echo said >&2; exit 3"], LONG_S, errors=True) == live.Answer(3, "said\n")


def test_plug_ins_are_run_where_only_root_writes_them(tmp_path: Path) -> None:
    folder = tmp_path / live.PLUGINS
    folder.mkdir(parents=True)
    for name, mode in (("fans", 0o755), ("open", 0o777), ("text", 0o644), (".hidden", 0o755), ("a b", 0o755)):
        path = folder / name
        path.write_text("#!/bin/sh\necho 'two fans stand still'\nexit 1\n")
        path.chmod(mode)
    assert [path.name for path in live.plugins(tmp_path)] == ["fans"]
    found = live.look(tmp_path, live.run, (Plugins(),), deadline_s=LONG_S)
    assert [(sign.part, sign.level, sign.sentence) for sign in found.signs] == [
        ("fans", Level.WATCH, "two fans stand still")
    ]


def test_old_events_of_a_first_listing_mean_nothing_now(tmp_path: Path) -> None:
    text = " 1 | 01/02/2026 | 10:00:00 | Memory ECC | Uncorrectable ECC | Asserted\n"
    assert judge(tmp_path, {"ipmitool-sel.txt": text}).level is Level.BAD
    reading = Sel().read(Source(tmp_path, Recorded(tmp_path)))
    assert reading is not None
    for day, level in ((2, Level.BAD), (5, Level.OK)):
        series = Series((Moment(None, reading),), Given(now=datetime(2026, 1, day, 12)))
        assert [sign.level for sign in Sel().judge(series)] == [level]
