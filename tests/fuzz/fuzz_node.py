"""A whole veeryd but for its outside: every route of the daemon, a store in memory, the fake driver; on a unix socket.

It watches what no request may cause: a traceback, an answer that is none of ours, silence, a descriptor that stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
import msgspec
from described import misfits, row

from veery.api.route import Form, Route
from veery.cluster import identity as identities
from veery.cluster import members
from veery.cluster.etcd import EtcdStore
from veery.cluster.keys import INITIATORS, NODES, VOLUMES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import StoreUnavailable
from veery.config.settings import Api, Etcd, Image, Relocation, Settings, StorageSettings
from veery.daemon.daemon import Daemon
from veery.host.clock import RealClock
from veery.host.log import Tail
from veery.host.tasks import stop
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.node import Node, Role
from veery.model.volume import Backing, Volume

T = TypeVar("T")

ADDRESS = "127.0.0.1"
ANSWER_S = 60.0
"""An answer begins within so many seconds. The slowest that was seen took five."""
STREAM_S = 0.15
"""For so long a stream is read."""
READ_MAX = 1 << 20
UUID = "11111111-2222-4333-8444-555555555555"


def open_descriptors(most: int) -> int:
    """How many descriptors this process has, once there are no more than `most` or a minute is over; 0: now."""
    ends = time.monotonic() + 60
    while True:
        count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        if not most or count <= most or time.monotonic() > ends:
            return count
        time.sleep(0.2)


class NoVoters:
    """The members of a store that does not answer."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def away(*_: object, **__: object) -> Any:
            raise StoreUnavailable("the store's members do not answer")

        return away


class NoGateway:
    """Where the members are is of no use to a store that has none."""

    def use(self, endpoints: object) -> None:
        """As Gateway."""


class Stand(MemoryStore):
    """The store in memory, with what the daemon asks of etcd besides."""

    def __init__(self, clock: RealClock) -> None:
        super().__init__(clock)
        self.voters, self.gateway = NoVoters(), NoGateway()

    @property
    def raw(self) -> Stand:
        """As EtcdStore."""
        return self


class Watch(logging.Handler):
    """Keeps what the log says of an error that nobody expected."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """As logging.Handler."""
        if record.exc_info and record.exc_info[0] is not None:
            self.found.append(logging.Formatter().format(record))
        elif record.name == "asyncio" and record.levelno >= logging.WARNING:
            self.found.append(record.getMessage())


@dataclass
class Answer:
    """What came back: the status (0: the connection was closed without one), and the beginning of the body. `whole`: it
    is the whole body. `route`: the row that the request met."""

    status: int
    body: bytes = b""
    whole: bool = False
    route: Route | None = None
    tracebacks: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Fail unless it is one that a request may get."""
        assert not self.tracebacks, self.tracebacks[0]
        if self.status >= 400:
            told = msgspec.json.decode(self.body)["error"]
            assert told["message"], self
            assert told["hint"], self
            assert self.status < 500 or (self.status, told["kind"]) in {
                (500, "failed"),
                (503, "failed"),
                (504, "unknown"),
            }, self
        if self.whole or (self.status == 200 and self.route is not None and self.route.form is Form.LINES):
            assert [*misfits(self.route, self.status, self.body)] == [], self


class FuzzedNode:
    """Node `a` of a cluster whose other node `b` does not answer. Domain `web` runs; volume `data` is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.watch = folder, Watch()
        self.web = {"name": "web", "uuid": UUID, "memory": 64, "kernel": str(folder / "files" / "kernel")}
        self.socket = folder / "api.sock"
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="node a")
        logging.getLogger().addHandler(self.watch)
        self._thread.start()
        self._started.result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        logging.getLogger().removeHandler(self.watch)

    def ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str] | None = None) -> Answer:
        """One request as root, on a connection of its own."""
        work = asyncio.run_coroutine_threadsafe(self._ask(method, path, data, headers or {}), self._loop)
        return self._told(work.result(ANSWER_S + 30))

    def say(self, data: bytes) -> Answer:
        """So many bytes on a connection of their own, and no more."""
        with socket.socket(socket.AF_UNIX) as call:
            call.settimeout(ANSWER_S)
            call.connect(str(self.socket))
            answered = b""
            with contextlib.suppress(ConnectionError):
                call.sendall(data)
                call.shutdown(socket.SHUT_WR)
                while (piece := call.recv(65536)) and len(answered) < READ_MAX:
                    answered += piece
        return self._told(Answer(int(answered[9:12]) if answered.startswith(b"HTTP/1.1 ") else 0))

    def descriptors(self, most: int = 0) -> int:
        """How many are open in this process, once there are no more than `most` or a minute is over."""
        self.run(asyncio.sleep(1.0))
        return open_descriptors(most)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` in the node's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def renew(self) -> None:
        """Have node `b`, volume `data` and domain `web` again, whatever was ordered, and none of the store's past."""
        self.run(self._renew())
        self.ask("POST", "/v1/domains/web/destroy", None).judge()
        self.ask("POST", "/v1/domains", msgspec.json.encode({"spec": self.web})).judge()

    def _told(self, answer: Answer) -> Answer:
        answer.tracebacks, self.watch.found = self.watch.found, []
        return answer

    async def _renew(self) -> None:
        await self.store.commit([], self._records)
        self.store.compact(max(await self.store.revision() - 100, 0))

    async def _ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        connector = aiohttp.UnixConnector(str(self.socket), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            call = session.request(method, f"http://a{path}", data=data, headers=headers, allow_redirects=False)
            response = await asyncio.wait_for(call, ANSWER_S)
            route, got, whole = row(method, path), b"", False
            ends = response.status >= 400 or route is None or route.form is Form.JSON
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(ANSWER_S if ends else STREAM_S):
                    while (piece := await response.content.read(65536)) and len(got) < READ_MAX:
                        got += piece
                    whole = response.content.at_eof()
            response.close()
            return Answer(response.status, got, whole, route)

    async def _main(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        clock, state = RealClock(), self.folder / "lib"
        ports = []
        for _ in range(5):
            with socket.socket() as free:
                free.bind((ADDRESS, 0))
                ports.append(free.getsockname()[1])
        settings = Settings(
            state=str(state),
            run=str(self.folder / "run"),
            api=Api(port=ports[0]),
            relocation=Relocation(port=ports[1]),
            etcd=Etcd(client_port=ports[2], peer_port=ports[3]),
            storage=StorageSettings(pool=str(self.folder / "volumes"), portal_port=ports[4]),
            image=Image(kernel=str(self.folder / "no-kernel"), modules=str(self.folder / "no-modules")),
        )
        roles = (Role.VOTER, Role.HYPERVISOR, Role.STORAGE)
        made = identities.init(settings, name="a", address=ADDRESS, roles=roles, driver="xen", cluster="fuzz")
        for name in ("run", "volumes", "files"):
            (self.folder / name).mkdir()
        (self.folder / "files" / "kernel").touch()
        self.store = Stand(clock)
        driver = FakeDriver("a", World(), clock)
        daemon = Daemon(settings, made, Tail(100), store=cast(EtcdStore, self.store), driver=driver)
        base, self.routes = daemon.base, daemon.api.routes
        await self._fill(state, made)
        running = [
            asyncio.create_task(each.run())
            for each in (base.admission, base.heartbeat, daemon.domains.moves, daemon.domains.settler, base.watch_cache)
        ]
        daemon.api.bind(ADDRESS, ports[0])
        await daemon.api.open(self.socket, base.server_tls)
        self._started.set_result(None)
        await self._over.wait()
        await stop(*running)
        await daemon.api.close()
        await base.peers.close()
        await base.near.close()
        await daemon.brain.probes.close()

    async def _fill(self, state: Path, made: identities.Identity) -> None:
        await members.bootstrap(self.store, state, made)
        with socket.socket() as nobody:
            nobody.bind((ADDRESS, 0))
            port = nobody.getsockname()[1]
        other = Node(name="b", address=ADDRESS, roles=(Role.HYPERVISOR, Role.STORAGE), api_port=port)
        path = self.folder / "volumes" / "data.raw"
        path.write_bytes(bytes(1 << 20))
        volume = Volume(
            name="data",
            size=1 << 20,
            node="a",
            backing=Backing.FILE,
            path=str(path),
            iqn=f"{made.cluster.authority}:data",
            tid=1,
            portal=f"{ADDRESS}:1",
        )
        self._records = [
            NODES.put("a", made.node),
            NODES.put("b", other),
            INITIATORS.put("a", identities.make_initiator(made.cluster, "a")),
            INITIATORS.put("b", identities.make_initiator(made.cluster, "b")),
            VOLUMES.put("data", volume),
        ]
        await self._renew()
