"""The API of one node with some of its routes, which root asks over the unix socket."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
from aiohttp import web
from test_api_server import ADDRESS, shown, sign

from veery.api.server import ApiServer
from veery.cluster.admission import Admission
from veery.cluster.memory import MemoryStore
from veery.host import tls
from veery.node.peers import Peers


@asynccontextmanager
async def serving(
    folder: Path, store: MemoryStore, table: Callable[[Peers], list[web.RouteDef]]
) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the routes of `table`; a session of root with them."""
    certificates = sign(folder / "tls", tls.make_ca("lab", epoch=time.time()), "a")
    admission = Admission(store, shown(certificates, "a"), folder / "certificates.json")
    peers = Peers(tls.client_context(certificates), SimpleNamespace())  # type: ignore[arg-type]
    server = ApiServer("a", peers, [table(peers)], admission=admission, member=lambda address: True)
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        port = free.getsockname()[1]
    server.bind(ADDRESS, port)
    await server.open(folder / "api.sock", tls.server_context(certificates))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / "api.sock"))) as session:
        yield session
    await server.close()
    await peers.close()
