"""Who may have a node stand aside for a new store, over real TLS: the node that recovers it, and for itself alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from veery.api.recovery import RecoveryRoutes
from veery.api.server import ApiServer
from veery.cluster import revocation
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.errors import Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.model.codec import plain
from veery.model.node import Node, Role
from veery.model.recovery import Aside
from veery.node.peers import Peers, read_answer
from veery.node.stillness import Stillness
from veery.node.storerecovery import Recoverer
from veery.node.votes import Votes

AT = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}
STILL, ASIDE = "/v1/recovery/still", "/v1/recovery/aside"


class Asked:
    """In place of Votes: the orders that were let through."""

    def __init__(self) -> None:
        self.orders: list[Aside] = []

    async def aside(self, order: Aside) -> None:
        self.orders.append(order)


class NodeA:
    """The API of node a, and callers b and c with certificates of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.port = folder, Asked(), 0
        authority = tls.make_ca("lab", epoch=time.time())
        for name, address in AT.items():
            now, request = time.time(), tls.make_request(name)
            cert = tls.sign(authority, request.cert, name=name, addresses=[address], epoch=now)
            tls.write_folder(folder / name, ca=authority.cert, node=tls.KeyPair(cert, request.key))
        self.callers = {name: Peers(tls.client_context(folder / name), self.find) for name in AT}

    async def find(self, name: str) -> Node:
        return Node(name=name, address=AT["a"], roles=(Role.VOTER,), api_port=self.port)

    async def open(self) -> None:
        clock = RealClock()
        store = MemoryStore(clock)
        for name in AT:
            record = revocation.certificate((self.folder / name / "server-cert.pem").read_text())
            await store.commit([], [CERTIFICATES.put(name, record)])
        own = tls.Shown("a", revocation.certificate((self.folder / "a/server-cert.pem").read_text()).serial)
        admission = Admission(store, own, self.folder / "certificates.json")
        self._running = asyncio.create_task(admission.run())
        still = Stillness(Heartbeat(store, "a", ttl=9, clock=clock), clock)
        votes, recoverer = cast("Votes", self.asked), cast("Recoverer", None)  # not asked by these two routes
        routes = RecoveryRoutes("a", recoverer, votes, still, peers=self.callers["a"])
        self.api = ApiServer("a", self.callers["a"], [routes.table()], admission=admission, member=lambda _: True)
        with socket.socket() as free:
            free.bind((AT["a"], 0))
            self.port = free.getsockname()[1]
        self.api.bind(AT["a"], self.port)
        await self.api.open(self.folder / "api.sock", tls.server_context(self.folder / "a"))

    async def close(self) -> None:
        for each in self.callers.values():
            await each.close()
        await self.api.close()
        await stop(self._running)

    async def order(self, by: str, path: str, body: Any = None) -> None:
        await self.callers[by].call("a", "POST", path, body, deadline=60)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeA]:
    made = NodeA(tmp_path)
    await made.open()
    yield made
    await made.close()


def aside(*endpoints: str) -> Any:
    return plain(Aside(replaced=("1234",), endpoints=endpoints))


async def test_a_node_stands_aside_for_the_one_that_recovers(node: NodeA) -> None:
    await node.order("b", STILL, {"by": "b"})
    await node.order("b", ASIDE, aside("https://127.0.0.2:2379"))
    assert node.asked.orders == [Aside(replaced=("1234",), endpoints=("https://127.0.0.2:2379",))]


async def test_it_does_not_for_any_member_nor_for_another_machine(node: NodeA) -> None:
    with pytest.raises(Refused, match="knows of no recovery on b"):
        await node.order("b", ASIDE, aside("https://127.0.0.2:2379"))
    await node.order("b", STILL, {"by": "c"})  # the certificate tells, and not the body
    with pytest.raises(Refused, match="knows of no recovery on c"):
        await node.order("c", ASIDE, aside("https://127.0.0.3:2379"))
    for endpoints in (("https://127.0.0.3:2379",), ("https://127.0.0.2:2379", "https://127.0.0.9:2379"), ()):
        with pytest.raises(Refused, match="does not stand aside"):
            await node.order("b", ASIDE, aside(*endpoints))
    assert node.asked.orders == []


async def test_it_does_not_by_an_order_that_was_sent_on(node: NodeA) -> None:
    with pytest.raises(Refused, match="must call this route itself"):
        async with await node.callers["b"].open("a", "POST", STILL, json={}, headers={"X-Veery-By": "c"}) as response:
            await read_answer(response)
