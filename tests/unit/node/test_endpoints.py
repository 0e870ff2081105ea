"""Addresses with ports: made and taken apart alike for IPv4 and IPv6."""

from __future__ import annotations

import pytest

from veery.model import endpoint
from veery.model.node import Node, Role
from veery.node.guard import serving


@pytest.mark.parametrize(("address", "text"), [("10.0.0.3", "10.0.0.3:3260"), ("fd00::3", "[fd00::3]:3260")])
def test_what_is_joined_is_split_again(address: str, text: str) -> None:
    assert endpoint.join(address, 3260) == text
    assert endpoint.split(text) == (address, 3260)


@pytest.mark.parametrize("text", ["fd00::3", "[fd00::3]", "10.0.0.3", "", ":3260", "[10.0.0.3]:3260", "fd00::3:3260"])
def test_what_is_no_endpoint_is_not_split(text: str) -> None:
    with pytest.raises(ValueError, match=r"ADDRESS:PORT|int\(\)"):
        endpoint.split(text)


@pytest.mark.parametrize("address", ["10.0.0.3", "fd00::3", "FD00:0:0::3"])
def test_the_guard_knows_the_storage_node_by_its_portal(address: str) -> None:
    roles = (Role.STORAGE,)
    nodes = [Node(name="stor", address=address, roles=roles), Node(name="other", address="fd00::4", roles=roles)]
    nodes.append(Node(name="test1", address=address, roles=(Role.HYPERVISOR,)))
    portal = endpoint.join(endpoint.canonical(address), 3260)
    assert serving({portal}, nodes) == {"stor"}
    assert serving(set(), nodes) == frozenset()
