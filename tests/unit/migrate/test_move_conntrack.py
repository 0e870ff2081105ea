"""Tracked connections go along with a move, and never hinder it."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_nodes import Pair, make_certificates, two_nodes

from veery.migrate import wire
from veery.model import codec
from veery.model.flow import Flow
from veery.model.move import MoveState

FLOW = Flow(
    source="172.16.31.100",
    target="fd00::4",
    protocol=6,
    source_port=40000,
    target_port=22,
    status=6,
    timeout=432000,
    mark=1,
    state=3,
    scales=(7, 9),
    flags=(3, 35),
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def moved(pair: Pair) -> None:
    assert (await pair.a.move(pair.b)).state is MoveState.DONE
    await pair.check("b")


async def test_connections_go_along(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.attacher.tracked = (FLOW,)
        await moved(pair)
        assert pair.b.attacher.tracked == (FLOW,)


@pytest.mark.parametrize("side", ["a", "b"])
async def test_a_node_that_cannot_say_or_learn_them_hinders_nothing(
    tmp_path: Path, certificates: Path, side: str
) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.attacher.tracked = (FLOW,)
        (pair.a if side == "a" else pair.b).attacher.fails = True
        await moved(pair)
        assert pair.b.attacher.tracked == ()


@pytest.mark.parametrize("side", ["a", "b"])
async def test_a_node_that_is_slow_is_not_waited_for(tmp_path: Path, certificates: Path, side: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.attacher.tracked = (FLOW,)
        (pair.a if side == "a" else pair.b).attacher.slow = 60.0
        await moved(pair)
        assert pair.b.attacher.tracked == ()


def test_an_older_node_says_finish_without_them() -> None:
    assert codec.decode(b'{"type": "finish"}', wire.Finish) == wire.Finish((), 0.0)
