"""Memory and processors: EDAC, the firmware's reports, machine checks, memory pressure."""

from __future__ import annotations

from pathlib import Path

import pytest
from health_trees import Files, judge, log

DIMM = "sys/devices/system/edac/mc/mc0/dimm0/dimm_ce_count"
CORRECTED = "[Hardware Error]: event severity: corrected"
BANK = "mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: "


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (["EDAC MC0: Giving out device to module sb_edac controller Haswell"], "ok"),
        (['EDAC MC0: CE page 0x3ba, offset 0x0, grain 8, syndrome 0xd4, row 0, channel 0, label "A1": e752x'], "watch"),
        (["EDAC MC0: UE - no information available: MCE overflow"], "bad"),
        (["EDAC MC0: 1 CE FAKE ERROR on DIMM_A1 (channel:0 slot:0)"], "ok"),
        (["EDAC MC0: 60 CE memory read error on A1 (channel:0)", "EDAC MC0: 60 CE memory read error on A1 (x)"], "bad"),
        (
            ["EDAC MC0: 60 CE memory read error on A1 (channel:0)", "EDAC MC0: 60 CE memory read error on B1 (x)"],
            "watch",
        ),
    ],
)
def test_edac_in_the_log(tmp_path: Path, rows: list[str], level: str) -> None:
    assert judge(tmp_path, log(*rows)).level == level


@pytest.mark.parametrize(
    ("counts", "at", "level"),
    [
        (("9", "9"), (0, 86400), "ok"),
        (("9", "10"), (0, 86400), "watch"),
        (("0", "101"), (0, 600), "bad"),
        (("0", "150"), (0, 2 * 86400), "watch"),  # 75 a day
        (("4000", "0"), (0, 3600), "ok"),  # the driver was loaded again
        (("0", "101"), (), "bad"),
        (("many", "x"), (), "unknown"),
    ],
)
def test_corrected_errors_count_by_their_rate(
    tmp_path: Path, counts: tuple[str, str], at: tuple[float, ...], level: str
) -> None:
    assert judge(tmp_path, *({DIMM: count} for count in counts), at=at).level == level


def test_errors_in_24_hours_are_counted_over_the_window_not_the_log(tmp_path: Path) -> None:
    rows = [f"EDAC MC0: 40 CE memory read error on A1 (page:0x{i})" for i in range(4)]
    assert judge(tmp_path, log(*rows, step=50_000)).level == "watch"


def test_an_uncorrected_error_stays_bad(tmp_path: Path) -> None:
    tree = {"sys/devices/system/edac/mc/mc0/ue_count": "1"}
    assert judge(tmp_path, tree, tree, at=(0, 86400)).level == "bad"


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (["GHES: APEI firmware first mode is enabled by APEI bit and WHEA _OSC."], "ok"),
        (["{1}" + CORRECTED, "{1}[Hardware Error]:   section_type: memory error"], "watch"),
        (["{1}" + CORRECTED, "{1}[Hardware Error]:   section_type: PCIe error"], "ok"),
        (["{900}" + CORRECTED, "{900}[Hardware Error]:   section_type: PCIe error"], "watch"),
        (["{1}[Hardware Error]: event severity: fatal"], "bad"),
        (["BERT: Error records from previous boot:", "[Hardware Error]: event severity: fatal"], "watch"),
        (["BERT: Error records from previous boot:", "{1}[Hardware Error]: event severity: fatal"], "bad"),
    ],
)
def test_reports_of_the_firmware(tmp_path: Path, rows: list[str], level: str) -> None:
    assert judge(tmp_path, log(*rows)).level == level


@pytest.mark.parametrize(
    ("rows", "start", "level"),
    [
        ([BANK + "8c00004f000800c2"], 5000, "watch"),  # valid, corrected
        ([BANK + "be00000000800400"], 5000, "bad"),  # valid, uncorrected, enabled
        ([BANK + "be00000000800400"], 1, "watch"),  # of the boot before
        ([BANK + "ae00000000800400"], 1, "ok"),  # uncorrected, not enabled: a left-over
        ([BANK + "0000000000000000"], 5000, "ok"),
        (["mce: [Hardware Error]: Machine check events logged"], 5000, "watch"),
        (["mce: [Hardware Error]: Machine check events logged"], 0.1, "ok"),
        ([BANK + "dc2040000000011b"], 1, "ok"),
        (["Triggering MCE exception on CPU 3", BANK + "be00000000800400"], 5000, "ok"),
        (["Memory failure: 0x1f3: recovery action for dirty LRU page: Recovered"], 5000, "watch"),
        (["Memory failure: 0x1f3: recovery action for reserved kernel page: Ignored"], 5000, "bad"),
        (["[Hardware Error]: Corrected error, no action required."], 5000, "watch"),
        (["[Hardware Error]: Deferred error, no action required."], 5000, "bad"),
    ],
)
def test_machine_checks(tmp_path: Path, rows: list[str], start: float, level: str) -> None:
    assert judge(tmp_path, log(*rows, start=start)).level == level


def test_polls_of_the_banks_are_not_exceptions(tmp_path: Path) -> None:
    rows = " MCE:          0          0   Machine check exceptions\n MCP:       9000       9000   Machine check polls\n"
    assert judge(tmp_path, {"proc/interrupts": rows}).level == "ok"
    assert judge(tmp_path, {"proc/interrupts": rows.replace("0          0 ", "0          1 ")}).level == "watch"


def _pressure(full: float, available: int) -> Files:
    memory = f"some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60={full:.2f} avg300=0.00 total=0\n"
    return {
        "proc/pressure/memory": memory,
        "proc/meminfo": f"MemTotal:  1000000 kB\nMemAvailable: {available} kB\n",
        "proc/pressure/cpu": "some avg10=99.00 avg60=99.00 avg300=99.00 total=1\n",
        "proc/pressure/io": "full avg10=99.00 avg60=99.00 avg300=99.00 total=1\n",
        "proc/loadavg": "400.00 400.00 400.00 400/900 1\n",
    }


@pytest.mark.parametrize(
    ("full", "available", "level"), [(0, 5000, "ok"), (6, 5000, "watch"), (30, 500_000, "watch"), (30, 5000, "bad")]
)
def test_memory_pressure_counts_and_load_does_not(tmp_path: Path, full: float, available: int, level: str) -> None:
    assert judge(tmp_path, _pressure(full, available)).level == level


def test_memory_has_to_be_short_for_a_minute(tmp_path: Path) -> None:
    calm, short = _pressure(0, 500_000), _pressure(30, 5000)
    assert judge(tmp_path / "a", calm, short, short, at=(0, 10, 40)).level == "watch"
    assert judge(tmp_path / "b", calm, short, short, at=(0, 10, 80)).level == "bad"
    assert judge(tmp_path / "c", short, calm, at=(0, 80)).level == "ok"


def test_checks_after_the_boot_count_beside_a_left_over(tmp_path: Path) -> None:
    early = log(BANK + "dc2040000000011b", start=0.6)["kmsg.txt"]
    late = log("mce: [Hardware Error]: Machine check events logged", start=310)["kmsg.txt"]
    assert judge(tmp_path, {"kmsg.txt": early + late}).level == "watch"


def test_errors_that_no_dimm_is_named_for(tmp_path: Path) -> None:
    total = "sys/devices/system/edac/mc/mc0/ce_count"
    same = {DIMM: "7", total: "9"}
    assert judge(tmp_path / "a", same, same, at=(0, 60)).level == "ok"
    assert judge(tmp_path / "b", same, same | {total: "10"}, at=(0, 60)).level == "watch"
