"""The page of figures: its tables are made of what a run wrote, and what has no figures stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import page, peers
from bench.figures import Figures

PLACE = "<!-- bench:{} -->\n{}\n<!-- bench:end -->\n"
TEXT = f"before\n{PLACE.format('one', 'old')}between\n{PLACE.format('six', 'kept')}after\n"


@pytest.fixture
def told(tmp_path: Path) -> page.Told:
    """Figures of a run with one domain, and one writer that never ended."""
    figures = Figures()
    for name, values in (("virsh", [800.0, 900.0]), ("veery", [300.0, 350.0, 400.0])):
        figures.add(f"one, {name}: whole command", "ms", values)
        figures.add(f"one, {name}: gap", "ms", [60.0])
    figures.add("writer flat out, virsh: whole command", "ms", [60100.0, 60200.0])
    figures.add("writer flat out, virsh: ended", "of 1", [0.0, 0.0])
    figures.tell(peers.ONE_RATIOS)
    figures.write(tmp_path / "latest.json")
    return page.read(tmp_path / "latest.json")


def test_a_table_is_made_anew_between_its_marks(told: page.Told) -> None:
    text, left = page.rewrite(TEXT, told)
    assert "| veery | 350 [300..400] |  | 60 | 1 |" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- bench:one -->") and text.endswith("after\n")
    assert "kept" in text
    assert left == ["six"]
    assert page.rewrite(text, told)[0] == text


def test_a_move_that_never_ended_says_so(told: page.Told) -> None:
    text, _ = page.rewrite("<!-- bench:writers -->\n<!-- bench:end -->\n", told)
    assert "| flat out, virsh | never | 60.1 s [60.1 s..60.2 s] |  |  | 2 |" in text


def test_a_missed_aim_says_so(told: page.Told) -> None:
    text, _ = page.rewrite("<!-- bench:ratios -->\n<!-- bench:end -->\n", told)
    assert "| one, whole command: veery over virsh | 0.41 | 0.5 | reached |" in text
    assert "| one, gap: veery over virsh | 1.00 | 0.6 | **missed** |" in text


def test_the_page_has_a_place_for_every_table_and_for_no_other() -> None:
    text = page.PAGE.read_text()
    for name in page.TABLES:
        assert text.count(f"<!-- bench:{name} -->") == 1
    assert text.count("<!-- bench:end -->") == len(page.TABLES) == text.count("<!-- bench:") / 2
