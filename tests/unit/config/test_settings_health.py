"""[health] in veery.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.config.settings import load
from veery.errors import Refused
from veery.model.verdict import SensorMode


def test_modes_of_sensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "veery.toml"
    path.write_text('[health]\npace = 0.5\n[health.sensors]\necc = "evacuate"\npsi = "off"\n')
    health = load(path).health
    assert dict(health.sensors) == {"ecc": SensorMode.EVACUATE, "psi": SensorMode.OFF}
    assert (health.pace, health.root) == (0.5, "/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[health.sensors]\necc = "leave"', "leave"),
        ("[health]\npace = 0", "health.pace must be more than 0"),
        ("[health]\npaces = 1", "unknown key 'health.paces'"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "veery.toml"
    path.write_text(text)
    with pytest.raises(Refused, match=said):
        load(path)
