"""The file of a described cluster: what it means, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veery.balance import file
from veery.balance.model import Domain, Group, Node
from veery.errors import Refused
from veery.model.ha import GroupKind

GOOD: dict[str, Any] = {
    "link": 1000,
    "nodes": [{"name": "a", "memory": 4096, "cores": 4, "reserved": 512, "load": 0.5, "in_service": False}],
    "groups": [{"name": "g", "kind": "together", "nodes": ["a"], "strict": True}],
    "domains": [
        {"name": "x", "node": "a", "memory": 512, "vcpus": 2, "load": 1, "groups": ["g"], "balance": "off"},
        {"name": "y", "node": "a", "memory": 512, "vcpus": 2, "restart": False},
    ],
}


def test_every_key() -> None:
    made = file.parse(GOOD)
    assert made.nodes == {"a": Node(name="a", memory=4096, cores=4, reserved=512, load=0.5, in_service=False)}
    assert made.groups == {"g": Group(kind=GroupKind.TOGETHER, nodes=("a",), strict=True)}
    assert made.domains["x"] == Domain(name="x", node="a", memory=512, vcpus=2, load=1.0, groups=("g",), balance=False)
    assert made.domains["y"].restart is False
    assert made.link == 1000.0


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("nodes", 0, "cores"), 0, "node a: cores must be a whole number from 1"),
        (("nodes", 0, "cores"), True, "node a: cores must be"),
        (("nodes", 0, "memory"), "8G", "node a: memory must be"),
        (("nodes", 0, "reserved"), 4096, "node a: reserved is not below memory"),
        (("nodes", 0, "name"), "a b", "node 1: name must be a word"),
        (("nodes", 0, "speed"), 3, "node 1: unknown key 'speed'"),
        (("nodes", 0, "in_service"), "no", "node a: in_service is not true or false"),
        (("nodes",), [], "no nodes"),
        (("nodes",), {}, "the cluster: nodes is not a list"),
        (("nodes", 0), 7, "node 1 is not an object"),
        (("domains", 0, "node"), "b", "domain x: no node 'b'"),
        (("domains", 0, "groups"), ["h"], "domain x: no group h"),
        (("domains", 0, "groups"), [["g"]], "domain x: groups must be a list of names"),
        (("domains", 0, "load"), float("nan"), "domain x: load is not a number"),
        (("domains", 0, "load"), -1, "domain x: load must be from 0"),
        (("domains", 0, "balance"), "auto", 'domain x: balance must be "on" or "off"'),
        (("domains", 1, "name"), "x", "domain x is there twice"),
        (("domains", 0, "memory"), 1 << 40, "domain x: memory must be"),
        (("groups", 0, "kind"), "near", "group g: kind must be apart or together"),
        (("groups", 0, "nodes"), ["b"], "group g: no node b"),
        (("link",), 0, "the cluster: link must be from"),
        (("rules",), [], "the cluster: unknown key 'rules'"),
    ],
)
def test_refused(place: tuple[Any, ...], value: object, said: str) -> None:
    data = json.loads(json.dumps(GOOD))
    where = data
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = value
    with pytest.raises(Refused) as caught:
        file.parse(data)
    assert caught.value.message.startswith(said)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{]", ":1:2: "),
        (b'"\xff"', " is not JSON"),
        (b"[" * 100_000, " is not JSON"),
        (b'{"nodes": [' + b"9" * 5000 + b"]}", " is not JSON"),
        (b"[]", ": the cluster is not an object"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_bytes(text)
    with pytest.raises(Refused) as caught:
        file.load(path)
    assert caught.value.message.startswith(f"{path}{said}")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(Refused):
            file.load(path)
