"""Disks: SMART, NVMe, arrays, paths, filesystems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from health_trees import Files, judge, log

ROW = "SMART overall-health self-assessment test result: "


def _ata(raw: dict[int, int] | None = None, *, status: int = 0, passed: bool = True, **more: Any) -> Files:
    table = [
        {"id": key, "name": f"A{key}", "value": 100, "thresh": 0, "when_failed": "", "raw": {"string": str(value)}}
        for key, value in (raw or {}).items()
    ]
    found = {
        "smartctl": {"exit_status": status},
        "device": {"protocol": "ATA"},
        "smart_status": {"passed": passed},
        "ata_smart_attributes": {"table": table},
        **more,
    }
    return {"smartctl.sda.json": json.dumps(found)}


def _tests(*codes: tuple[int, int]) -> dict[str, Any]:
    rows = [{"status": {"value": code << 4}, "lifetime_hours": hour} for code, hour in codes]
    return {"ata_smart_self_test_log": {"standard": {"table": rows}}, "power_on_time": {"hours": 20_000}}


@pytest.mark.parametrize(
    ("tree", "level"),
    [
        (_ata(), "ok"),
        (_ata(status=8, passed=False), "bad"),
        (_ata(status=32), "ok"),  # an attribute was at its threshold in the past
        (_ata(status=64), "ok"),  # an error was logged once
        (_ata(status=16), "watch"),
        (_ata({5: 400, 197: 0}), "ok"),
        (_ata({5: 4000}), "watch"),
        (_ata({197: 8}), "watch"),
        (_ata({197: 1}, rotation_rate=0), "ok"),  # firmware of some SSDs
        (_ata({197: 1}, rotation_rate=7200), "watch"),
        (_ata(status=128, **_tests((7, 19_990), (0, 19_000))), "bad"),
        (_ata(status=128, **_tests((7, 1000))), "watch"),
        (_ata(status=128, **_tests((0, 19_990), (7, 19_000))), "watch"),
        (_ata(status=0, **_tests((0, 19_990), (7, 19_000))), "ok"),  # made good by a long test
        (_ata(status=0, **_tests((1, 19_990), (2, 19_000))), "ok"),  # aborted
        (_ata(temperature={"current": 70}, rotation_rate=7200), "watch"),
        (_ata(endurance_used={"current_percent": 95}), "watch"),
        ({"smartctl.sda.json": '{"smartctl": {"exit_status": 2, "messages": [{"string": "in STANDBY mode"}]}}'}, "ok"),
        ({"smartctl.sda.json": '{"smartctl": {"exit_status": 2, "messages": [{"string": "failed"}]}}'}, "unknown"),
        ({"smartctl.sda.json": '{"smart_status": {"passed": tr'}, "unknown"),
        ({"smartctl.sda.txt": f"{ROW}PASSED\n"}, "ok"),
        ({"smartctl.sda.txt": f"{ROW}FAILED!\n"}, "bad"),
        ({"smartctl.sda.txt": "SMART Health Status: OK\nElements in grown defect list: 3\n"}, "ok"),
        ({"smartctl.sda.txt": "smartctl 7.3\nSmartctl open device: /dev/sda failed: No such device\n"}, "unknown"),
    ],
)
def test_one_reading_of_a_disk(tmp_path: Path, tree: Files, level: str) -> None:
    assert judge(tmp_path, tree).level == level


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        ({197: 20}, {197: 20}, "watch"),
        ({197: 20}, {197: 21}, "bad"),
        ({197: 2}, {197: 3}, "watch"),
        ({5: 4000}, {5: 4000}, "ok"),
        ({5: 4000}, {5: 4001}, "watch"),
        ({199: 12}, {199: 13}, "watch"),
    ],
)
def test_counters_of_a_disk_count_by_growth(
    tmp_path: Path, before: dict[int, int], after: dict[int, int], level: str
) -> None:
    assert judge(tmp_path, _ata(before), _ata(after), at=(0, 86400)).level == level


@pytest.mark.parametrize(
    ("told", "level"),
    [([{"error_description": "Error: ABRT"}], "ok"), ([{"error_description": "Error: UNC"}], "watch"), ([], "watch")],
)
def test_new_errors_count_if_the_medium_made_them(tmp_path: Path, told: list[dict[str, str]], level: str) -> None:
    logs = [{"ata_smart_error_log": {"summary": {"count": count, "table": told}}} for count in (3, 5)]
    assert judge(tmp_path, *(_ata(**each) for each in logs), at=(0, 600)).level == level


def _nvme(warning: object = 0, used: int = 3, spare: int = 100, errors: int = 0, threshold: int = 10) -> Files:
    found = {
        "critical_warning": warning,
        "percent_used": used,
        "avail_spare": spare,
        "spare_thresh": threshold,
        "media_errors": errors,
    }
    return {"nvme-smart-log.nvme0.json": json.dumps(found)}


@pytest.mark.parametrize(
    ("tree", "level"),
    [
        (_nvme(), "ok"),
        (_nvme({"value": 8}), "bad"),
        (_nvme("0x02"), "watch"),
        (_nvme(1, spare=3), "bad"),
        (_nvme(0, spare=3), "bad"),
        (_nvme(0, used=104), "watch"),
        (_nvme(4, used=130), "watch"),
        (_nvme(4, used=130, spare=5), "bad"),
        (_nvme(4, used=12), "bad"),
        (_nvme(255, used=255, spare=255), "unknown"),
        (_nvme(None), "unknown"),
        ({"nvme-smart-log.nvme0.txt": "critical_warning : 0\navailable_spare : 100%\npercentage_used : 3%\n"}, "ok"),
        ({"nvme-smart-log.nvme0.txt": "critical_warning : 0x8\navailable_spare : 100%\n"}, "bad"),
        ({"smartctl.nvme0.txt": "Critical Warning: 0x00\nMedia and Data Integrity Errors:  1’382 [x]\n"}, "watch"),
        ({"smartctl.nvme0.txt": "Critical Warning: 0x00\nMedia and Data Integrity Errors:  12\n"}, "ok"),
        ({"smartctl.nvme0.json": '{"device": {"protocol": "NVMe"}, "smart_status": {"passed": false}}'}, "bad"),
        ({"smartctl.nvme0.json": '{"device": {"protocol": "NVMe"}, "smartctl": {"exit_status": 2}}'}, "unknown"),
    ],
)
def test_one_reading_of_an_nvme_disk(tmp_path: Path, tree: Files, level: str) -> None:
    assert judge(tmp_path, tree).level == level


def test_wear_does_not_explain_errors_that_grow(tmp_path: Path) -> None:
    worn = [_nvme(4, used=104, errors=count) for count in (1, 2)]
    assert judge(tmp_path / "a", *worn, at=(0, 86400)).level == "bad"
    assert judge(tmp_path / "b", worn[0], worn[0], at=(0, 86400)).level == "watch"


def _mdstat(*rows: str) -> Files:
    return {"proc/mdstat": "Personalities : [raid1] [raid6]\n" + "\n".join(rows) + "\nunused devices: <none>\n"}


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (["md0 : active raid1 sdb1[1] sda1[0]", "      100 blocks super 1.2 [2/2] [UU]"], "ok"),
        (["md0 : active raid1 sdb1[1] sda1[0] sdc1[2](F)", "      100 blocks super 1.2 [3/2] [UU_]"], "watch"),
        (["md0 : active raid10 sdb1[1] sdc1[2] sdd1[3]", "      100 blocks 2 near-copies [4/3] [_UUU]"], "bad"),
        (["md0 : active raid6 sda[0] sdb[1]", "      100 blocks level 6 [4/2] [UU__]"], "bad"),
        (
            ["md0 : active (auto-read-only) raid1 sda[0] sdb[1]", "      1 blocks [2/2] [UU]", "      resync=PENDING"],
            "ok",
        ),
        (
            ["md0 : active raid5 sda[0] sdb[1] sdc[3]", "      1 blocks [3/2] [UU_]", "      [>.]  recovery =  1.0%"],
            "watch",
        ),
        (["md0 : inactive sda[0](S) sdb[1](S)", "      1 blocks super 1.2"], "watch"),
        (["md0 : inactive raid1 sda[0](F) sdb[1](S)", "      1 blocks [2/2] [UU]"], "bad"),
        (["md0 : active raid6 sda[0] sdb[1]", "      1 blocks [4/2] [UU__]", "      [>.]  reshape = 4.0%"], "watch"),
        (["md0 : active raid1 sda[0] sdb[1]", "      1 blocks [2/2] [UU]", "      [>.]  resync = 4.0%"], "watch"),
        (["md0 : active raid1 sda[0] sdb[1]", "      1 blocks [2/2] [UU]", "      [>.]  check = 4.0%"], "ok"),
    ],
)
def test_arrays(tmp_path: Path, rows: list[str], level: str) -> None:
    assert judge(tmp_path, _mdstat(*rows)).level == level


def test_an_array_in_sysfs(tmp_path: Path) -> None:
    folder = "sys/block/md0/md"
    tree = {f"{folder}/array_state": "clean", f"{folder}/level": "raid6", f"{folder}/raid_disks": "6"}
    assert judge(tmp_path / "a", tree | {f"{folder}/degraded": "1"}).level == "watch"
    assert judge(tmp_path / "b", tree | {f"{folder}/degraded": "2"}).level == "bad"
    assert judge(tmp_path / "c", tree | {f"{folder}/degraded": "0", f"{folder}/array_state": "broken"}).level == "bad"


SESSION = "SID: 4\n\tiSCSI Connection State: {}\n\tiSCSI Session State: {}\n"


def test_sessions_and_disks_of_the_initiator(tmp_path: Path) -> None:
    up, lost = SESSION.format("LOGGED IN", "LOGGED_IN"), SESSION.format("TRANSPORT WAIT", "FAILED")
    assert judge(tmp_path / "a", {"iscsiadm-session-P1.txt": up}).level == "ok"
    assert judge(tmp_path / "b", {"iscsiadm-session-P1.txt": lost}).level == "watch"
    moments = [{"iscsiadm-session-P1.txt": text} for text in (lost, up)]
    assert judge(tmp_path / "c", *moments, at=(0, 60)).level == "ok"
    disk = {"sys/block/sda/device/state": "offline\n"}
    assert judge(tmp_path / "d", disk).level == "watch"
    assert judge(tmp_path / "e", disk, host_disks=["sda"]).level == "bad"
    assert judge(tmp_path / "f", {"iscsiadm-session-P1.txt": "iscsiadm: No active sessions.\n"}).level == "ok"


MAP = "mpatha (3600) dm-2 LIO,disk\nsize=1G features='0'\n|-+- policy='x' prio=1 status=active\n"


@pytest.mark.parametrize(
    ("paths", "used", "level"),
    [
        (("active ready running", "active ghost running"), ["mpatha"], "ok"),
        (("failed faulty running", "active ready running"), ["mpatha"], "watch"),
        (("failed faulty offline", "failed faulty running"), ["3600"], "bad"),
        (("failed faulty offline", "failed faulty running"), [], "ok"),
        (("active undef unknown", "active undef unknown"), ["mpatha"], "unknown"),
    ],
)
def test_paths_of_a_map(tmp_path: Path, paths: tuple[str, str], used: list[str], level: str) -> None:
    rows = "".join(f"| `- {i}:0:0:1 sd{'ab'[i]} 8:{i} {state}\n" for i, state in enumerate(paths))
    assert judge(tmp_path, {"multipath-ll.txt": MAP + rows}, maps_in_use=used).level == level


def test_a_map_whose_disks_are_gone_may_be_a_left_over(tmp_path: Path) -> None:
    rows = MAP + "".join(f"| `- #:#:#:# - 8:{i} failed undef unknown\n" for i in range(2))
    assert judge(tmp_path / "a", {"multipath-ll.txt": rows}).level == "watch"
    assert judge(tmp_path / "b", {"multipath-ll.txt": rows}, maps_in_use=["mpatha"]).level == "bad"


def _mounts(options: str, whole: str, kind: str = "ext4") -> Files:
    return {"proc/self/mountinfo": f"22 1 8:1 / / {options},relatime shared:1 - {kind} /dev/sda1 {whole}\n"}


REMOUNTED = "EXT4-fs (sda1): Remounting filesystem read-only"


@pytest.mark.parametrize(
    ("tree", "level"),
    [
        (_mounts("rw", "rw"), "ok"),
        (_mounts("rw", "ro"), "bad"),
        (_mounts("ro", "rw"), "ok"),  # a root that is mounted so on purpose
        (_mounts("ro", "rw") | log(REMOUNTED), "bad"),
        (_mounts("ro", "ro", "squashfs"), "ok"),
        (_mounts("rw", "rw") | log(REMOUNTED), "ok"),
        (_mounts("rw", "rw") | log("EXT4-fs error (device sda1): ext4_lookup:1: deleted inode"), "watch"),
        (_mounts("rw", "rw") | log("EXT4-fs error (device loop7): ext4_lookup:1: deleted inode"), "ok"),
        (_mounts("rw", "rw") | log("XFS (sda1): Filesystem has been shut down due to log error (0x2)."), "bad"),
        (_mounts("rw", "rw") | log("XFS (sdz9): Filesystem has been shut down due to log error (0x2)."), "ok"),
        (
            {"df.txt": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/a 100000000 1 1000 99% /\n"},
            "bad",
        ),
        ({"df.txt": "/dev/a 100000000 1 10000000 90% /\n/dev/loop1 100 100 0 100% /snap/a\n"}, "watch"),
        ({"df.txt": "/dev/a 100000000 1 60000000 40% /\n/dev/loop1 100 100 0 100% /snap/a\n"}, "ok"),
    ],
)
def test_filesystems(tmp_path: Path, tree: Files, level: str) -> None:
    assert judge(tmp_path, tree).level == level


def test_a_root_that_was_writable_before(tmp_path: Path) -> None:
    assert judge(tmp_path, _mounts("rw", "rw"), _mounts("ro", "rw"), at=(0, 60)).level == "bad"


def test_a_lost_session_in_the_log_counts_while_no_state_is_shown(tmp_path: Path) -> None:
    given_up = log(" session4: session recovery timed out after 120 secs")
    up = {"iscsiadm-session-P1.txt": SESSION.format("LOGGED IN", "LOGGED_IN")}
    assert judge(tmp_path / "a", given_up).level == "watch"
    assert judge(tmp_path / "b", given_up | up).level == "ok"
    assert judge(tmp_path / "c", log(" connection4:0: detected conn error (1020)")).level == "ok"


def test_a_disk_that_goes_away_is_told(tmp_path: Path) -> None:
    both = _nvme() | {"nvme-smart-log.nvme1.json": _nvme()["nvme-smart-log.nvme0.json"]}
    assert judge(tmp_path, both, _nvme(), at=(0, 60)).level == "watch"


def test_no_array_is_well(tmp_path: Path) -> None:
    assert judge(tmp_path, _mdstat()).level == "ok"


@pytest.mark.parametrize(
    ("tree", "part", "serial"),
    [
        (_ata(serial_number="WD-1"), "sda", "WD-1"),
        (_ata(status=8, passed=False, serial_number="WD-1"), "sda", "WD-1"),
        (_ata(serial_number="  "), "sda", ""),
        (_ata(serial_number=["x"] * 1000), "sda", None),
        ({"smartctl.sda.txt": f"Serial Number:    WD-2\n{ROW}PASSED\n"}, "sda", "WD-2"),
        (
            {"nvme-smart-log.nvme0n1.json": '{"critical_warning": 0}', "sys/class/nvme/nvme0/serial": "S4\n"},
            "nvme0n1",
            "S4",
        ),
        (
            {"nvme-smart-log.nvme0.json": '{"critical_warning": 1}', "sys/class/nvme/nvme0/serial": "S4\n"},
            "nvme0",
            "S4",
        ),
        ({"nvme-smart-log.nvme0.json": '{"critical_warning": 0}'}, "nvme0", ""),
    ],
)
def test_signs_of_disks_carry_the_serial(tmp_path: Path, tree: Files, part: str, serial: str | None) -> None:
    (found,) = [each for each in judge(tmp_path, tree).signs if each.part == part and each.sensor in ("smart", "nvme")]
    assert found.serial == serial or (serial is None and len(found.serial) <= 64)


def test_counters_of_another_disk_in_the_same_place_are_no_growth(tmp_path: Path) -> None:
    old, new = _ata({197: 2}, serial_number="A1"), _ata({197: 40}, serial_number="B2")
    assert judge(tmp_path, old, new, at=(0, 600)).level == "watch"
    grown = judge(tmp_path / "same", old, _ata({197: 40}, serial_number="A1"), at=(0, 600))
    assert grown.level == "bad"
