"""`veery selftest kvm` without a guest: its reading of the guest's lines, of a machine, and of two answers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from veery.errors import Refused
from veery.node.kvmcompare import differences, newest_machine
from veery.node.kvmfacts import capabilities, facts
from veery.node.selftest import plain_paths, ticks

ANSWER: dict[str, Any] = {
    "accelerator": {"is": "kvm"},
    "host": {"kernel": "6.1.0"},
    "qemu": {
        "version": "10.0.2",
        "machines": ["pc-q35-9.0", "pc-q35-9.2", "pc-q35-10.0"],
        "vendor": "GenuineIntel",
        "models": ["Haswell-v4"],
        "phys_bits": 46,
        "tsc_khz": 2_400_000,
        "tsc_scales": False,
        "post_copy": "it can",
    },
}


def other(**changes: Any) -> dict[str, Any]:
    answer = copy.deepcopy(ANSWER)
    answer["qemu"] |= changes
    return answer


def test_a_line_with_a_lost_character_is_passed_over() -> None:
    heard = b"fact model 1\r\ntick 1 3.20 1796033994 0 tsc\r\n"
    heard += b"tick 2 3.4 1796033994 0 tsc\r\ntick 3 3.60 1796033995 1 kvm-clock\r\n"
    assert [(tick.count, tick.disks, tick.source) for tick in ticks(heard)] == [(1, 0, "tsc"), (3, 1, "kvm-clock")]
    assert ticks(b"tick 4 3.80 17960339") == [], "half a line"


def test_a_machine_that_tells_nothing_has_no_facts(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert found["processor"]["phys_bits"] == 0
    assert found["kvm_capabilities"] == capabilities(tmp_path / "kvm") == {}


def test_a_machine_is_described_without_its_name(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx hypervisor\n"
        "address sizes\t: 39 bits physical, 48 bits virtual\n\nprocessor\t: 1\n",
        "proc/sys/kernel/hostname": "secret-name\n",
        "sys/devices/system/cpu/vulnerabilities/mds": "Mitigation: x\n",
        "sys/module/kvm_intel/parameters/nested": "Y\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = facts(tmp_path)
    assert found["processor"]["processors"] == 2
    assert (found["processor"]["virtualization"], found["processor"]["is_a_guest"]) == (True, True)
    assert found["processor"]["phys_bits"] == 39
    assert found["kvm_parameters"] == {"kvm_intel": {"nested": "Y"}}
    assert found["vulnerabilities"] == {"mds": "Mitigation: x"}
    assert "secret-name" not in str(found)


def test_the_folder_of_a_run_is_left_out() -> None:
    answer = {"steps": [{"error": "/tmp/veery-selftest-x/a/1: no"}]}
    assert plain_paths(answer, "/tmp/veery-selftest-x") == {"steps": [{"error": "FOLDER/a/1: no"}]}


def test_two_alike_nodes_differ_in_nothing() -> None:
    assert differences(ANSWER, other()) == ()
    assert newest_machine(ANSWER, other(machines=["pc-q35-9.0", "pc-q35-9.2"])) == "pc-q35-9.2"
    assert newest_machine(ANSWER, other()) == "pc-q35-10.0", "as numbers, not as words"


@pytest.mark.parametrize(
    ("changes", "what", "bars"),
    [
        ({"vendor": "AuthenticAMD"}, "vendor", True),
        ({"phys_bits": 39}, "phys_bits", False),
        ({"tsc_khz": 3_000_000}, "tsc_khz", False),
        ({"version": "10.1.0"}, "qemu", False),
        ({"machines": ["pc-q35-7.2"]}, "machines", True),
    ],
)
def test_what_bars_a_move_is_said(changes: dict[str, Any], what: str, bars: bool) -> None:
    assert [(each.what, each.bars) for each in differences(ANSWER, other(**changes))] == [(what, bars)]


def test_counters_that_are_scaled_or_all_but_alike_do_not_matter() -> None:
    scales = {"tsc_khz": 3_000_000, "tsc_scales": True}
    assert differences(other(tsc_scales=True), other(**scales)) == ()
    assert differences(ANSWER, other(tsc_khz=2_400_300)) == ()


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(Refused, match="not a complete answer"):
        differences(ANSWER, {"accelerator": {"works": False}})
