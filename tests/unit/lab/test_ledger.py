"""The judge of faults: what it says of a disk that lost a record, or had two writers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from veery.errors import Failed
from veery.host.process import Process
from veery.lab.ledger import SECTOR, Collector, Ledger, Record, judge, scan
from veery.lab.services import Lab


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
    assert "record 1 of boot bb was acknowledged, but boot aa has it" in told
    assert "record 4 of boot bb was acknowledged, but it is missing" in told
    assert "record 4 was acknowledged by two boots" in told


def test_a_sector_that_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="sector 2"):
        scan(_disk(tmp_path / "disk", {1: "1 aa 3.5", 2: "7 aa 3.6"}))


@dataclass(frozen=True, slots=True)
class WritingOn(Ledger):
    """One whose domain writes a record and acknowledges it while its disk is being read."""

    disk: Path = Path()
    heard: Path = Path()

    async def read(self, lab: Lab) -> tuple[Record, ...]:
        records = scan(self.disk)
        with self.heard.open("a") as book:
            book.write(f"9.5 kept {len(records) + 1} aa .\n")
        return records


async def test_a_record_that_is_written_meanwhile_is_not_lost(tmp_path: Path) -> None:
    disk = _disk(tmp_path / "disk", {1: "1 aa 3.5", 2: "2 aa 3.6"})
    ledger = WritingOn("kept", "10.0.0.1", disk=disk, heard=tmp_path / "heard")
    (tmp_path / "heard").write_text("listening\n9.0 kept 1 aa .\n9.1 kept 2 aa .\n")
    collector = Collector(tmp_path / "heard", Process(0, 0))
    assert await ledger.judged(None, collector) == []  # type: ignore[arg-type]
    (tmp_path / "heard").write_text("listening\n")
    with pytest.raises(Failed, match="kept has written nothing"):
        await ledger.judged(None, collector)  # type: ignore[arg-type]
