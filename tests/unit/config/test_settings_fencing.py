"""The settings of guard, watchdog and power boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.config.settings import load
from veery.errors import Refused


def _load(folder: Path, text: str) -> object:
    path = folder / "veery.toml"
    path.write_text(text)
    return load(path)


def test_a_guard_is_through_before_the_watchdog(tmp_path: Path) -> None:
    _load(tmp_path, '[watchdog]\ndevice = "/dev/watchdog"\ntimeout = 23\n')
    _load(tmp_path, "[watchdog]\ntimeout = 5\n")  # none is set
    with pytest.raises(Refused, match=r":1: watchdog.timeout 22 must be 3 s more than guard.end"):
        _load(tmp_path, '[watchdog]\ndevice = "/dev/watchdog"\ntimeout = 22\n')
    with pytest.raises(Refused, match=r":4: watchdog.timeout 60"):
        _load(tmp_path, '[guard]\nend = 0\n\n[watchdog]\ndevice = "/dev/watchdog"\ntimeout = 60\n')


def test_a_power_board_is_read_and_its_keys_checked(tmp_path: Path) -> None:
    board = '[power.test1]\nagent = "fence_ipmilan"\noptions = { ip = "10.0.0.1" }\n'
    settings = load_power(tmp_path, board)
    assert settings == ("fence_ipmilan", {"ip": "10.0.0.1"})
    with pytest.raises(Refused, match=r":4: unknown key 'power.test1.password'"):
        _load(tmp_path, f'{board}password = "no"\n')
    with pytest.raises(Refused, match="agent"):
        _load(tmp_path, "[power.test1]\ndeadline = 3\n")


def load_power(folder: Path, text: str) -> tuple[str, dict[str, str]]:
    path = folder / "veery.toml"
    path.write_text(text)
    board = load(path).power["test1"]
    return board.agent, board.options
