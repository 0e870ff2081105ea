"""Fencing by power through the real fence agents: fence_dummy, whose board is a file, and boards that are silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.config.settings import PowerSettings
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.ha.fence.base import NotProven
from veery.ha.fence.power import PowerFence
from veery.lab import agents
from veery.model.fence import Fenced
from veery.model.ha import FenceRecord, FenceState

FENCE = Fenced(node="test1", iqn="", created=7, record=FenceRecord(state=FenceState.FENCING, revision=7))


def power(*, agent: str = "fence_dummy", deadline: float = 60.0, password_file: str = "", **options: str) -> PowerFence:
    """The fence of test1, with this board."""
    found = agents.find()
    assert found is not None, "no fence agents: run make setup"
    program = str(found.program(agent)) if agent.startswith("fence_") else agent
    board = PowerSettings(agent=program, options=options, password_file=password_file, deadline=deadline)
    return PowerFence({"test1": board}, env=found.env)


async def test_off_and_then_seen_off(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("on")
    way = power(status_file=str(status))
    assert "its power is on" in await way.test("test1")
    with pytest.raises(NotProven, match="it is on"):
        await way.proof(FENCE, 60.0)
    await way.off(FENCE, 60.0)
    assert status.read_text() == "off"
    assert "its power is off" in (await way.proof(FENCE, 60.0)).seen
    await way.off(FENCE, 60.0)
    assert "its power is off" in await way.test("test1")


async def test_a_board_that_obeys_and_does_nothing_proves_nothing() -> None:
    """`type=fail`: it takes the order, and the power stays on."""
    way = power(type="fail", plug="1", power_timeout="1")
    with pytest.raises(Failed, match="Timed out waiting to power OFF"):
        await way.off(FENCE, 60.0)
    with pytest.raises(NotProven, match="it is on"):
        await way.proof(FENCE, 60.0)


async def test_a_board_that_cannot_be_read_is_not_off(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("on fire")
    way = power(status_file=str(status))
    for attempt in (way.off(FENCE, 60.0), way.proof(FENCE, 60.0), way.test("test1")):
        with pytest.raises(Failed, match="Unable to obtain correct plug status"):
            await attempt


async def test_what_cannot_even_be_asked(tmp_path: Path) -> None:
    unreachable = power(agent="fence_ipmilan", ip="127.0.0.1", username="admin", lanplus="1")
    with pytest.raises(NotProven):
        await unreachable.proof(FENCE, 60.0)
    missing = power(agent=str(tmp_path / "nothing"))
    with pytest.raises(NotProven, match="is not installed"):
        await missing.proof(FENCE, 60.0)
    with pytest.raises(Refused, match="no power board is set for test2"):
        await missing.test("test2")
    slow = power(status_file=str(tmp_path / "none"), random_sleep_range="1", delay="30", deadline=0.5)
    with pytest.raises(OutcomeUnknown, match="did not end within"):
        await slow.off(FENCE, 60.0)
    with pytest.raises(NotProven):
        await slow.proof(FENCE, 60.0)


async def test_a_password_is_given_on_standard_input_from_a_file_of_root(tmp_path: Path) -> None:
    agent, heard, secret = tmp_path / "agent", tmp_path / "heard", tmp_path / "secret"
    agent.write_text(f"#!/bin/sh\ncat >{heard}\nprintf '%s' \"$*\" >>{heard}\nexit 2\n")
    agent.chmod(0o755)
    secret.write_text("s3cret\n")
    secret.chmod(0o640)
    way = power(agent=str(agent), ip="10.0.0.1", password_file=str(secret))
    with pytest.raises(Refused, match="may be read by others"):
        await way.off(FENCE, 60.0)
    assert not heard.exists()
    secret.chmod(0o600)
    assert (await way.proof(FENCE, 60.0)).method == "power"
    assert heard.read_text() == "ip=10.0.0.1\naction=status\npassword=s3cret\n"
    secret.write_text("")
    with pytest.raises(VeeryError, match="does not hold one line"):
        await way.off(FENCE, 60.0)
