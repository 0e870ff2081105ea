"""Every scenario of this folder goes as its golden log says, and README.md has a line for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Refused
from veery.ha.simulation.play import play
from veery.ha.simulation.scenario import load
from veery.ha.simulation.steps import NEEDS, STEPS

HERE = Path(__file__).parent
SCENARIOS = sorted(folder for folder in (HERE / "scenarios").iterdir() if folder.is_dir())


@pytest.mark.parametrize("folder", SCENARIOS, ids=lambda folder: folder.name)
def test_a_scenario_goes_as_its_log_says(folder: Path) -> None:
    told = play(load(folder))
    assert not told.broken
    assert told.text == (folder / "log.expect").read_text(), (
        f"if the new log is correct: veery simulate --update {folder}"
    )


def test_there_are_scenarios_for_every_promise() -> None:
    assert len(SCENARIOS) >= 80


def test_the_readme_has_a_line_for_each_scenario() -> None:
    wanted = [f"- `{folder.name}`: {load(folder).about}" for folder in SCENARIOS]
    found = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("- `")]
    assert found == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seconds = 10\nabout = 'x'\ncolour = 1", "unknown key 'colour'"),
        ("about = 'x'\n[domains]\na = { on = 'nowhere' }", "no node 'nowhere'"),
        ("about = 'x'\n[[at]]\ndo = 'power-off'\nnode = 'test1'", "has no `second`"),
        ("about = 'x'\n[[at]]\nsecond = 1\ndo = 'power-off'\nnode = 'test9'", "no node 'test9'"),
        ("about = 'x'\n[[at]]\nsecond = 1\ndo = 'cut'\nnode = 'test1'\npeer = 'test9'", "no node 'test9'"),
        ("about = 'x'\n[[at]]\nsecond = 1\ndo = 'cut'\nnode = 'test1'\nway = 'up'", "no way 'up'"),
        ("about = 'x'\n[rules]\nblind = 60", "blind must be at most"),
        ("about = ", "Invalid value"),
    ],
)
def test_a_bad_scenario_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "scenario.toml").write_text(text)
    with pytest.raises(Refused, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("do = 'sick'", "sick needs `node`"),
        ("do = 'migrate'\ndomain = 'a'", "migrate needs `node`"),
        ("do = 'crash'", "crash needs `domain`"),
        ("do = 'slow-fence'\nnode = 'test1'", "slow-fence needs `method`"),
        ("do = 'why'", "why needs `node` or `domain`"),
        ("do = 'cut'\nnode = 'test1'\nnet = 'moon'", "no net 'moon'"),
    ],
)
def test_a_step_without_what_it_needs_is_refused_before_anything_is_played(
    tmp_path: Path, step: str, said: str
) -> None:
    text = f"about = 'x'\n[domains]\na = {{ on = 'test1' }}\n[[at]]\nsecond = 1\n{step}"
    (tmp_path / "scenario.toml").write_text(text)
    with pytest.raises(Refused, match=said):
        play(load(tmp_path))


def test_every_step_that_needs_something_is_a_step() -> None:
    assert set(NEEDS) <= set(STEPS)


def test_an_unknown_step_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text("about = 'x'\n[[at]]\nsecond = 1\ndo = 'explode'")
    with pytest.raises(Refused, match="no step 'explode'"):
        play(load(tmp_path))
