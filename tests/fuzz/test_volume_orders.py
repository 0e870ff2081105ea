"""What a node may have another one do for the move of a volume: only what the store knows of, as the store has it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_node import FuzzedNode

from veery.cluster.keys import VOLUME_MOVES
from veery.model.codec import plain
from veery.model.volume import Backing, Volume, VolumeMove


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FuzzedNode]:
    made = FuzzedNode(tmp_path)
    yield made
    made.close()


def a_move(node: FuzzedNode, path: Path) -> VolumeMove:
    was = Volume(
        name="web",
        size=1 << 20,
        node="b",
        backing=Backing.FILE,
        path="/srv/web.raw",
        iqn="iqn.2026-11.internal.fuzz:web",
        tid=2,
        portal="127.0.0.1:1",
    )
    place = dataclasses.replace(was, node="a", path=str(path), tid=3)
    return VolumeMove(id="0a1b2c3d", volume="web", source="b", target="a", was=was, place=place)


@pytest.mark.parametrize("order", ["fetch", "take-in"])
@pytest.mark.parametrize("stands", [False, True])
def test_an_order_that_the_store_does_not_know_touches_no_file(
    node: FuzzedNode, tmp_path: Path, order: str, stands: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    move = a_move(node, tmp_path / "volumes" / "web.raw")
    if stands:
        node.run(node.store.commit([], [VOLUME_MOVES.put("web", move)]))
    for change in (
        {"place": dataclasses.replace(move.place, path=str(victim))},
        {"id": f"../../{tmp_path}/new"},
        {"id": "0a1b2c3e"},
        {"target": "b"},
    ):
        changed = dataclasses.replace(move, **change)
        told = node.ask("POST", f"/v1/volumes/web/{order}", json.dumps(plain(changed)).encode())
        told.judge()
        assert b"there is no move" in told.body or b"is not the id of a move" in told.body, told.body
        assert victim.read_bytes() == b"precious"
        assert not list((tmp_path / "lib" / "volume-moves").glob("*"))
    assert not list(tmp_path.rglob("new*"))
