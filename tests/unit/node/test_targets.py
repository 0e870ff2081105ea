"""A node by its name, its address, or a host name; and addresses that are not this machine's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from veery.errors import Refused
from veery.host.ports import bind_refused, require_own
from veery.model.node import Node, Role
from veery.node.targets import find_node

NODES = (
    Node(name="test1", address="192.0.2.1", roles=(Role.HYPERVISOR,)),
    Node(name="test2", address="127.0.0.1", roles=(Role.HYPERVISOR,), relocation_address="192.0.2.22"),
)


@pytest.mark.parametrize(
    ("target", "name"), [("test1", "test1"), ("192.0.2.1", "test1"), ("192.0.2.22", "test2"), ("localhost", "test2")]
)
def test_a_node_is_found_by_name_address_or_host_name(target: str, name: str) -> None:
    assert asyncio.run(find_node(target, NODES)).name == name


@pytest.mark.parametrize("target", ["nowhere.invalid", "a..b", ""])
def test_an_unknown_node_is_refused_with_the_addresses_there_are(target: str) -> None:
    with pytest.raises(Refused) as caught:
        asyncio.run(find_node(target, NODES))
    assert caught.value.hint == "the cluster has test1 (192.0.2.1), test2 (127.0.0.1)"


def test_a_foreign_address_is_no_address_of_this_machine() -> None:
    require_own("127.0.0.1")
    require_own("test1.example.org")
    with pytest.raises(Refused, match=r"192\.0\.2\.9 is not an address of this machine"):
        require_own("192.0.2.9")
    with socket.socket() as listener, pytest.raises(OSError, match="assign") as caught:
        listener.bind(("192.0.2.9", 8001))
    error = bind_refused("API port", "api", "192.0.2.9", 8001, caught.value)
    assert "192.0.2.9 is not an address of this machine" in error.message
    assert "see who has it" not in error.hint
