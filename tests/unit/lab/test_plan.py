"""The seed's drawing."""

from pathlib import Path

import pytest

from veery.errors import Refused
from veery.lab.plan import lab_of, plan
from veery.model.node import Role


def test_the_seeds_three_machines() -> None:
    drawn = plan("lab")
    rows = [(node.name, node.address, node.mac, node.roles) for node in drawn.nodes]
    assert rows == [
        ("stor", "172.16.31.3", "02:00:ac:10:1f:03", (Role.STORAGE, Role.VOTER)),
        ("test1", "172.16.31.1", "08:00:27:16:d9:aa", (Role.HYPERVISOR, Role.VOTER)),
        ("test2", "172.16.31.2", "08:00:27:6a:9d:57", (Role.HYPERVISOR, Role.VOTER)),
    ]


def test_further_nodes_have_addresses_and_no_vote() -> None:
    drawn = plan("lab", 60)
    addresses = [node.address for node in drawn.nodes]
    assert drawn.node("test3").address == "172.16.31.11"
    assert len(set(addresses)) == 61
    assert "172.16.31.4" not in addresses
    assert "172.16.31.100" not in addresses
    assert [node.name for node in drawn.nodes if Role.VOTER in node.roles] == ["stor", "test1", "test2"]


def test_every_namespace_is_known_as_the_labs() -> None:
    assert {lab_of(name) for name in plan("a1", 12).namespaces()} == {"a1"}
    assert {lab_of(name) for name in ("vy-a1-other", "vy-a1-test", "x-a1-stor", "vy-A-stor", "vy--stor")} == {""}


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "a" * 17, "../x"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a name for a lab"):
        plan(name)


@pytest.mark.parametrize("count", [0, 61, -1])
def test_bad_numbers_are_refused(count: int) -> None:
    with pytest.raises(Refused, match="1 to 60 hypervisors"):
        plan("lab", count)


def test_a_folder_too_deep_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 60)))
    with pytest.raises(Refused, match="too long for the unix sockets") as refusal:
        plan("lab")
    assert "XDG_CACHE_HOME" in refusal.value.hint


def test_an_unknown_node_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="lab lab has no node test9") as refusal:
        plan("lab").node("test9")
    assert refusal.value.hint == "its nodes are stor, test1, test2"
