"""The journal of open moves: the last whole line counts."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from veery.errors import Failed, Refused
from veery.migrate.journal import Illegible, Journal, Line, Side
from veery.model.move import Phase

LINE = Line(
    move="m1", side=Side.SOURCE, domain="d", uuid="u", boot="b", source="test1", target="test2", owner_revision=7
)


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_the_last_line_of_each_move_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for phase in (Phase.BEGIN, Phase.PREPARE, Phase.COPY):
        journal.write(LINE.at(phase))
    assert Journal(tmp_path / "journal").open() == (LINE.at(Phase.COPY),)
    journal.strike(LINE)
    assert journal.open() == ()


@pytest.mark.parametrize("cut", [b"\n", b'\n{"move":"m1","side":"sou'])
def test_a_line_cut_short_does_not_count(tmp_path: Path, cut: bytes) -> None:
    journal = Journal(tmp_path)
    journal.write(LINE.at(Phase.COPY))
    with file_of(tmp_path).open("ab") as file:
        file.write(cut)
    assert journal.open() == (LINE.at(Phase.COPY),)
    journal.write(LINE.at(Phase.LOADED))  # by the same daemon, which met a full disk in between
    assert journal.open() == (LINE.at(Phase.LOADED),)


def test_what_nobody_understands_is_put_aside_and_noted(tmp_path: Path) -> None:
    """One such file must not hide the other moves, nor keep the daemon from starting."""
    journal = Journal(tmp_path)
    journal.write(LINE)
    file_of(tmp_path).write_bytes(b"what?\n")
    other = journal.write(replace(LINE, move="m2"))
    assert journal.open() == (other,)
    assert journal.illegible == (Illegible("m1", Side.SOURCE),)
    assert (tmp_path / "m1.source.json.unreadable").exists()
    assert journal.open() == (other,)


def test_a_file_without_a_line_began_nothing(tmp_path: Path) -> None:
    (tmp_path / "m1.source.json").touch()
    assert Journal(tmp_path).open() == ()


def test_no_room_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failed, match="journal") as caught:
        Journal(tmp_path / "file" / "journal").write(LINE)
    assert "make room" in caught.value.hint


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: the kernel cuts a write short, as on a disk that runs full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 20])
def test_a_full_disk_leaves_no_file_of_a_move_that_was_not_begun(tmp_path: Path, size: int) -> None:
    journal = Journal(tmp_path)
    with room(size), pytest.raises(Failed, match="cannot journal"):
        journal.write(LINE)
    assert list(tmp_path.iterdir()) == []
    journal.write(LINE)
    before = file_of(tmp_path).read_bytes()
    with room(len(before) + 20), pytest.raises(Failed, match="cannot journal"):
        journal.write(LINE.at(Phase.COPY))
    assert file_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize("move", ["../pwn", "/tmp/pwn", "", "M1", "a.b", "x" * 40])
def test_a_moves_id_is_a_files_name_and_no_path(tmp_path: Path, move: str) -> None:
    journal = Journal(tmp_path / "journal")
    for act in (journal.write, journal.strike):
        with pytest.raises(Refused):
            act(replace(LINE, move=move))
    assert not list(tmp_path.rglob("*.json"))
