"""Whatever a program or a device puts out: a sensor turns unknown, never raises, never hangs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veery.errors import Refused
from veery.health.looking import SENSORS, case, take, told
from veery.health.series import Given, Moment
from veery.health.sign import PART_MAX, SENTENCE_MAX, Level
from veery.health.source import Recorded, Source

NAMES = (
    "kmsg.txt",
    "smartctl.sda.json",
    "smartctl.sdb.txt",
    "nvme-smart-log.nvme0.json",
    "ipmi-sensors.csv",
    "ipmitool-sdr.txt",
    "ipmitool-sdr-v.txt",
    "ipmitool-sensor.txt",
    "ipmitool-sel.txt",
    "multipath-ll.txt",
    "iscsiadm-session-P1.txt",
    "xl-dmesg.txt",
    "chronyc-tracking.txt",
    "chronyc-c-tracking.csv",
    "adjtimex.json",
    "systemctl-failed.txt",
    "etcd-metrics.txt",
    "plugin.mine.json",
    "df.txt",
    "statvfs.json",
    "proc/mdstat",
    "proc/diskstats",
    "proc/meminfo",
    "proc/interrupts",
    "proc/self/mountinfo",
    "proc/pressure/memory",
    "proc/net/bonding/bond0",
    "sys/devices/system/edac/mc/mc0/ce_count",
    "sys/devices/system/edac/mc/mc0/dimm0/dimm_ce_count",
    "sys/class/hwmon/hwmon0/temp1_input",
    "sys/class/net/eno1/carrier",
    "sys/block/md0/md/degraded",
    "sys/bus/pci/devices/0000:00:1f.6/aer_dev_fatal",
)
LOOSE = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    (
        "smart_status",
        "passed",
        "smartctl",
        "exit_status",
        "messages",
        "ata_smart_attributes",
        "table",
        "raw",
        "value",
        "critical_warning",
        "nvme_smart_health_information_log",
        "ata_smart_self_test_log",
        "standard",
        "status",
        "temperature",
        "maxerror",
        "exit",
        "out",
    )
)
OBJECTS = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4),
    lambda inner: st.dictionaries(KEYS, inner | st.lists(inner, max_size=2) | VALUES, max_size=4),
    max_leaves=12,
)


def _write(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _holds(root: Path) -> None:
    """All sensors answer, none by an error inside of it."""
    source = Source(root, Recorded(root))
    for sensor in SENSORS:
        reading = sensor.read(source)
        if reading is None:
            continue
        for sign in told(sensor, [Moment(0.0, reading), Moment(60.0, sensor.read(source))], Given()):
            assert sign.sensor == sensor.name
            assert not sign.sentence.startswith("the sensor cannot make sense"), sign
            assert len(sign.sentence) <= SENTENCE_MAX
            assert len(sign.part) <= PART_MAX
            assert sign.sentence.isprintable()


@LOOSE
@given(data=st.binary(max_size=400))
def test_bytes_of_any_kind(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            _write(Path(folder), name, data)
        _holds(Path(folder))


@LOOSE
@given(found=OBJECTS, cut=st.integers(0, 400))
def test_json_of_another_form_and_cut_short(found: object, cut: int) -> None:
    text = json.dumps(found).encode()
    with tempfile.TemporaryDirectory() as folder:
        for data in (text, text[:cut]):
            for name in NAMES:
                if name.endswith(".json"):
                    _write(Path(folder), name, data)
            _holds(Path(folder))


@LOOSE
@given(
    rows=st.lists(
        st.text(alphabet="0123456789abcdefx|:,;[]()'.-/ _\tUFSEDACMCmd", max_size=80)
        | st.sampled_from(
            (
                "md0 : active raid1 sda1[0]",
                "EDAC MC0: 1 CE on",
                "[Hardware Error]: event severity: ",
                "mpatha (1) dm-0 X",
                "1,a,Temperature,Critical,9,C,'x'",
                "Sensor ID : x (0x1)",
                "Slave Interface: eno1",
                "BERT: Error records from previous boot:",
                "XFS (dm-1): Shutting down filesystem",
            )
        ),
        max_size=12,
    )
)
def test_lines_that_nearly_fit(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            _write(Path(folder), name, "\n".join(rows).encode())
        _holds(Path(folder))


@pytest.mark.parametrize("unit", [b"[", b"{", b"a", b" ", b"|", b"4,1,1,-;", b"\x00", b"9", b"- ", b"(XEN) ", b"\n"])
def test_ten_megabytes_are_read_to_a_bound(tmp_path: Path, unit: bytes) -> None:
    _write(tmp_path, "big", unit * ((10 << 20) // len(unit)))
    for name in NAMES:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "big")
    assert case(tmp_path / "tree").level in list(Level)


def test_a_pipe_in_the_tree_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg.txt")
    os.mkfifo(tmp_path / "smartctl.sda.json")
    assert case(tmp_path).level is Level.UNKNOWN


def test_truncated_and_foreign_answers_turn_unknown(tmp_path: Path) -> None:
    _write(tmp_path, "smartctl.sda.json", b'{"smart_status": {"passed": true}, "ata_smart_attri')
    _write(tmp_path, "nvme-smart-log.nvme0.json", b'{"critical_warning"')
    _write(tmp_path, "multipath-ll.txt", "chemin défaillant\n".encode("latin-1"))
    _write(tmp_path, "proc/mdstat", b"\xff\xfe\x00garbage")
    found = case(tmp_path)
    assert found.level is Level.UNKNOWN
    assert {sign.sensor for sign in found.signs} == {"smart", "nvme", "multipath", "md"}
    assert {sign.level for sign in found.signs} == {Level.UNKNOWN}


def test_a_comma_for_a_point_is_a_number_too(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "chronyc-tracking.txt",
        b"System time     : 0,900000000 seconds slow of NTP time\nLeap status : Normal\n",
    )
    assert case(tmp_path).level is Level.WATCH


class Broken:
    """A sensor that fails wherever it can."""

    name = "broken"

    def read(self, source: Source) -> object:
        if source.word("fail") == "read":
            raise RuntimeError("no such luck")
        return object()

    def judge(self, series: object) -> list[object]:
        raise KeyError("gone")


def test_a_sensor_that_fails_stops_no_other(tmp_path: Path) -> None:
    source = Source(tmp_path, Recorded(tmp_path))
    for text in ("read", "judge"):
        (tmp_path / "fail").write_text(text)
        signs = told(Broken(), [Moment(None, take(Broken(), source))], Given())  # type: ignore[arg-type]
        assert [sign.level for sign in signs] == [Level.UNKNOWN]


@pytest.mark.parametrize("text", ["", "[]", '{"sequence": ', "7"])
def test_what_is_given_has_to_be_an_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "given.json").write_text(text)
    with pytest.raises(Refused):
        case(tmp_path)


def test_what_is_given_may_hold_anything_else(tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(
        '{"uplinks": 7, "own_paths": [1, "/"], "sequence": [3, {"at": true}], "x": {}}'
    )
    assert case(tmp_path).level is Level.UNKNOWN
    with pytest.raises(Refused):
        case(tmp_path / "nowhere")
