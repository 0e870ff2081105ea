"""The node's end of a relay, closed while somebody waits at it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from veery.errors import Failed
from veery.hypervisor.xen.relay_link import RelayLink

PATIENCE_S = 30.0


async def test_it_is_closed_while_news_are_waited_for(tmp_path: Path) -> None:
    """The loop waits for the descriptor no more: a program whose output gets the same number is heard."""
    door = RelayLink(tmp_path / "door")
    door.open()
    with socket.socket(socket.AF_UNIX) as relay:
        relay.connect(str(door.path))
        await door.answer()
        before = set(_waited_for())
        hearing = asyncio.create_task(door.hear())
        await asyncio.sleep(0.05)
        assert set(_waited_for()) > before
        door.close()
        assert await asyncio.wait_for(hearing, PATIENCE_S) is None
        assert set(_waited_for()) == before
        assert relay.recv(1) == b""


async def test_it_is_closed_while_the_relay_is_waited_for(tmp_path: Path) -> None:
    door = RelayLink(tmp_path / "door")
    door.open()
    before = set(_waited_for())
    answering = asyncio.create_task(door.answer())
    await asyncio.sleep(0.05)
    door.close()
    with pytest.raises(Failed, match="closed before the relay connected"):
        await asyncio.wait_for(answering, PATIENCE_S)
    assert set(_waited_for()) == before
    assert not door.path.exists()


def _waited_for() -> list[int]:
    """The descriptors that the loop waits for."""
    loop, found = asyncio.get_running_loop(), []
    for number in range(3, 256):
        with contextlib.suppress(KeyError):
            loop._selector.get_key(number)  # type: ignore[attr-defined]
            found.append(number)
    return found
