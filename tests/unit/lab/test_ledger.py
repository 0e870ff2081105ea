"""The judge of faults: what it says of a disk that lost a record, or had two writers."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Failed
from veery.lab.ledger import SECTOR, Record, judge, scan


def _disk(path: Path, rows: dict[int, str]) -> Path:
    data = bytearray(SECTOR * 16)
    for number, text in rows.items():
        data[number * SECTOR : (number + 1) * SECTOR] = text.encode().ljust(SECTOR - 1) + b"\n"
    path.write_bytes(data)
    return path


def test_a_good_disk(tmp_path: Path) -> None:
    records = scan(_disk(tmp_path / "disk", {1: "1 aa 3.5", 2: "2 aa 3.6", 3: "3 bb 2.0"}))
    assert [record.boot for record in records] == ["aa", "aa", "bb"]
    assert judge(records, [Record(1, "aa", 9.0), Record(3, "bb", 9.5)]) == []


def test_what_is_wrong_is_said() -> None:
    disk = [Record(1, "aa", 1), Record(2, "bb", 1), Record(3, "aa", 2), Record(5, "bb", 2)]
    told = "\n".join(judge(disk, [Record(1, "bb", 9), Record(4, "bb", 9), Record(4, "aa", 9)]))
    assert "record 4 is missing" in told
    assert "record 3: boot aa writes again" in told
    assert "record 1 of boot bb was acknowledged, and boot aa has it" in told
    assert "record 4 of boot bb was acknowledged, and it is not there" in told
    assert "record 4 was acknowledged by two boots" in told


def test_a_sector_that_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="sector 2"):
        scan(_disk(tmp_path / "disk", {1: "1 aa 3.5", 2: "7 aa 3.6"}))
