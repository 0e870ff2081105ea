"""Which connections to a voter's etcd are cut when a certificate is put out, and when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

from veery.cluster.keys import NODES
from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.model.node import Node, Role
from veery.node.etcdcut import EtcdCut, strange
from veery.storage.sockets import Peer

A = Node(name="a", address="127.0.0.2", roles=(Role.VOTER,), relocation_address="fd00:0:0::2")


def test_what_comes_from_no_node_is_cut() -> None:
    peers = [Peer(address, str(at)) for at, address in enumerate(("127.0.0.2", "fd00::2", "127.0.0.9", "fd00::9"))]
    assert [each.address for each in strange(peers, [A])] == ["127.0.0.9", "fd00::9"]
    assert strange(peers, []) == tuple(peers)


def test_each_address_of_a_node_is_its_own() -> None:
    """Those on other networks, and one that it had before, as long as its machine has it."""
    moved = Node(name="b", address="127.0.0.3", roles=(Role.VOTER,), former=("127.0.0.4",), storage_address="127.0.0.5")
    peers = [Peer(f"127.0.0.{last}", str(last)) for last in (3, 4, 5, 6)]
    assert [each.address for each in strange(peers, [moved])] == ["127.0.0.6"]


@contextlib.asynccontextmanager
async def pair(listener: socket.socket, source: str) -> AsyncIterator[asyncio.StreamReader]:
    """A connection from `source` to `listener`, both ends of this process; the end that came."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*listener.getsockname(), local_addr=(source, 0))
    accepted, _ = await loop.sock_accept(listener)
    with accepted:
        yield reader
        writer.close()


async def test_it_is_done_once_for_each_certificate() -> None:
    store = MemoryStore(RealClock())
    await store.commit([], [NODES.put("a", A)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        cut = EtcdCut(store, (listener.getsockname()[1],), os.getpid)
        await cut([])
        for serials in (["1"], ["1", "2"]):
            async with pair(listener, "127.0.0.9") as gone, pair(listener, "127.0.0.2") as kept:
                await cut(serials)
                async with asyncio.timeout(30):
                    assert await gone.read() == b""
                assert not kept.at_eof()
        async with pair(listener, "127.0.0.9") as stands:
            await cut(["2"])
            await cut([])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await stands.read()
            assert not stands.at_eof()
