"""Finds the node that a user names: by its name, its address, or a host name that resolves to its address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from veery.errors import Refused
from veery.model.node import Node

RESOLVE_DEADLINE_S = 3.0


async def find_node(target: str, nodes: Sequence[Node]) -> Node:
    """Return the node that `target` names. Raises Refused with the names and addresses of all nodes."""
    for node in nodes:
        if target in (node.name, *node.addresses):
            return node
    resolved = await _resolve(target)
    for node in nodes:
        if resolved.intersection(node.addresses):
            return node
    known = ", ".join(f"{node.name} ({node.address})" for node in nodes)
    raise Refused(f"there is no node {target}", hint=f"the cluster has {known}")


async def _resolve(name: str) -> set[str]:
    """Return the addresses of host `name`; empty if there are none, or the resolver does not answer in time."""
    try:
        async with asyncio.timeout(RESOLVE_DEADLINE_S):
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return set()
    return {str(address[0]) for *_, address in found}
