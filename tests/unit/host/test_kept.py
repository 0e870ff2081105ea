"""A file of ours that cannot be read never keeps the daemon from starting: it is put aside, logged, and told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from veery.cluster import identity
from veery.cluster.memory import MemoryStore
from veery.errors import Failed
from veery.host import kept
from veery.host.clock import RealClock
from veery.migrate.journal import Illegible, Journal, Side
from veery.model.node import Node
from veery.node.node_cache import NodeCache
from veery.node.volume_moves import journal as volumejournal
from veery.storage.served import Served

BAD = {
    "empty": b"",
    "zeroed": bytes(300),
    "cut": b'{"move":"m1","si',
    "newer": b'[{"side":"witness","targets":7}]',
    "binary": b"\xff\xfe\x00",
}


def _node_cache(file: Path) -> object:
    return NodeCache(MemoryStore(RealClock()), file, RealClock()).nodes or None


def _served(file: Path) -> object:
    return Served(file).known


def _volume_moves(file: Path) -> object:
    return volumejournal.Journal(file.parent).open() or None


def _moves(file: Path) -> object:
    journal = Journal(file.parent)
    found = journal.open()
    assert journal.illegible == (Illegible("m1", Side.SOURCE),)
    return found or None


READERS: dict[str, Callable[[Path], object]] = {
    "nodes.json": _node_cache,
    "served.json": _served,
    "m1.target.json": _volume_moves,
    "m1.source.json": _moves,
}


CASES = [(name, how) for name in READERS for how in BAD if (name, how) != ("m1.source.json", "empty")]  # began nothing


@pytest.mark.parametrize(("name", "how"), CASES)
def test_it_is_put_aside_with_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str) -> None:
    file = tmp_path / name
    file.write_bytes(BAD[how])
    with caplog.at_level(logging.ERROR):
        assert READERS[name](file) is None
    assert str(file) in caplog.text
    assert not file.exists()
    assert kept.unreadable([tmp_path]) == (tmp_path / f"{name}.unreadable",)
    assert (tmp_path / f"{name}.unreadable").read_bytes() == BAD[how]
    caplog.clear()
    assert name == "m1.source.json" or READERS[name](file) is None  # the next start finds nothing to say
    assert not caplog.records


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_bytes(b'{"a":{"name":"a","address":"10.0.0.1","roles":[],"extra":1}}')
    assert kept.take(file, dict[str, Node]) == {"a": Node(name="a", address="10.0.0.1", roles=())}
    assert kept.unreadable([tmp_path]) == ()


def test_a_folder_in_place_of_the_file_is_no_end_either(tmp_path: Path) -> None:
    (tmp_path / "nodes.json").mkdir()
    assert kept.take(tmp_path / "nodes.json", dict[str, Node]) is None


@pytest.mark.parametrize("how", BAD)
def test_who_this_node_is_cannot_be_guessed(tmp_path: Path, how: str) -> None:
    (tmp_path / "identity.json").write_bytes(BAD[how])
    with pytest.raises(Failed, match=r"identity\.json cannot be read") as caught:
        identity.load(tmp_path)
    assert "join again" in caught.value.hint
    assert (tmp_path / "identity.json").exists()
