"""How long volumes take to answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from health_trees import Files, judge

from veery.health.sign import Level


def _stats(**disks: tuple[int, int, int]) -> Files:
    """Disks by name: requests answered, milliseconds, requests waiting; half of each are reads."""
    rows = [
        f"   8       0 {name} {done // 2} 0 80 {ms // 2} {done - done // 2} 0 80 {ms - ms // 2} {waiting} 5 5\n"
        for name, (done, ms, waiting) in disks.items()
    ]
    return {"proc/diskstats": "".join(rows)}


def _level(folder: Path, *moments: Files, luns: tuple[str, ...] = ("sdb", "sdc"), step: float = 60) -> str:
    found = judge(folder, *moments, at=[index * step for index in range(len(moments))], own_luns=luns)
    return next((str(each.level) for each in found.signs if each.sensor == "latency"), "none")


START = _stats(sda=(100, 100, 0), sdb=(1000, 1000, 0), sdc=(1000, 1000, 0))


@pytest.mark.parametrize(
    ("sdb", "sdc", "level"),
    [
        ((1000, 1000, 0), (1000, 1000, 0), "none"),  # nothing was asked
        ((1500, 3000, 2), (1000, 1000, 0), "ok"),
        ((1100, 101_000, 2), (1000, 1000, 0), "watch"),
        ((1100, 601_000, 2), (1000, 1000, 0), "bad"),
        ((1005, 61_000, 2), (1000, 1000, 0), "ok"),  # too few to judge
        ((10, 10, 0), (1000, 1000, 0), "none"),  # another volume took the name
        ((1000, 1000, 4), (1000, 1000, 0), "ok"),  # requests that have just begun to wait
    ],
)
def test_the_average_of_all_volumes(
    tmp_path: Path, sdb: tuple[int, int, int], sdc: tuple[int, int, int], level: str
) -> None:
    assert _level(tmp_path, START, _stats(sda=(100, 100, 0), sdb=sdb, sdc=sdc)) == level


def test_volumes_that_do_not_answer(tmp_path: Path) -> None:
    hung = _stats(sdb=(1000, 1000, 4), sdc=(1000, 1000, 0))
    assert _level(tmp_path / "all", hung, hung, hung) == "bad"
    one = [_stats(sdb=(1000, 1000, 4), sdc=(1000 + number, 1000, 0)) for number in range(3)]
    assert _level(tmp_path / "one", *one) == "watch"
    assert _level(tmp_path / "short", hung, hung, step=5) == "ok"
    back = _stats(sdb=(1010, 200_000, 0), sdc=(1000, 1000, 0))
    assert _level(tmp_path / "back", hung, hung, back) == "ok"


def test_only_volumes_of_domains_count(tmp_path: Path) -> None:
    slow = _stats(sda=(5000, 90_000_000, 3), sdb=(1000, 1000, 0))
    assert _level(tmp_path, START, slow) == "none"
    assert _level(tmp_path / "none", START, slow, luns=()) == "none"


def test_a_single_reading_says_nothing(tmp_path: Path) -> None:
    slow = _stats(sdb=(5000, 90_000_000, 3))
    found = judge(tmp_path, slow, own_luns=["sdb"])
    assert all(each.sensor != "latency" or each.level is Level.OK for each in found.signs)


@pytest.mark.parametrize("text", ["", "8 0 sdb\n", "8 0 sdb 1 2 x 4 5 6 7 8 9 10 11\n", "\n" * 50])
def test_garbage_is_no_reading(tmp_path: Path, text: str) -> None:
    assert _level(tmp_path, {"proc/diskstats": text}, {"proc/diskstats": text}) == "none"
