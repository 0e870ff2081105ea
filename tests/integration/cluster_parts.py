"""A cluster of nodes on loopback addresses, built as `veery init`, `veery join` and veeryd build it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from veery.cluster import identity, join, members, server
from veery.cluster.etcd import EtcdStore
from veery.cluster.vault import Vault
from veery.config.settings import Api, Etcd, Settings
from veery.errors import VeeryError
from veery.host import tls
from veery.host.process import Process, Service
from veery.model import codec
from veery.model.node import Role


def free_port(*addresses: str) -> int:
    """A TCP port that is free at all of `addresses`."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    stack.enter_context(socket.socket()).bind((address, port))
            except OSError:
                continue
            return port


class Member:
    """One node as the daemon would run it: its settings, its etcd, its store, and the two routes of joining."""

    def __init__(self, folder: Path, name: str, address: str, ports: tuple[int, int, int]) -> None:
        self.name, self.address = name, address
        self.clock = time.time  # what GET /v1/ca tells; 0.0 is what an older veery tells
        api, client, peer = ports
        self.settings = Settings(
            state=str(folder / name / "state"),
            run=str(folder / name / "run"),
            api=Api(port=api),
            etcd=Etcd(client_port=client, peer_port=peer, deadline=3.0),
        )
        self.identity: identity.Identity
        self.store: EtcdStore
        self.service: Service | None = None
        self._task: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """What veeryd does first."""
        self.identity = identity.load(Path(self.settings.state))
        self.store = members.open_store(self.settings, self.identity)
        await self.start_etcd()
        if self.identity.etcd:
            await server.ready(self.store.voters, self.url, deadline=30)
        await members.bootstrap(self.store, Path(self.settings.state), self.identity)
        await members.promote(self.store.voters, self.settings, self.identity)
        self.identity = await members.refresh(self.store, self.settings, self.identity)

    @property
    def vault(self) -> Vault:
        return Vault(Path(self.settings.state))

    @property
    def url(self) -> str:
        return identity.client_url(self.settings, self.identity.node)

    async def start_etcd(self) -> None:
        if self.identity.etcd:
            self.run_etcd(server.service(self.settings, self.identity))

    def run_etcd(self, service: Service) -> None:
        self.service = service
        self._task = asyncio.create_task(service.run())

    @property
    def process(self) -> Process:
        assert self.service is not None
        assert self.service.process is not None
        return self.service.process

    async def let_go(self) -> None:
        """Its etcd runs on, and is somebody else's to look after."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def stop_etcd(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.service is not None and self.service.process is not None:
            self.service.process.send(signal.SIGCONT)
            await self.service.process.stop(grace=0)
            self.service = None

    async def serve(self) -> None:
        """GET /v1/ca and POST /v1/join, as docs/api.md has them."""

        async def ca(_: web.Request) -> web.Response:
            reply = join.CaReply(ca=self.identity.cluster.ca, epoch=self.clock())
            return web.Response(body=codec.encode(reply), content_type="application/json")

        async def admit(request: web.Request) -> web.Response:
            try:
                wish = codec.decode(await request.read(), join.JoinRequest)
                reply = await join.admit(self.store, self.store.voters, wish, vault=self.vault)
            except VeeryError as error:
                told = {"kind": error.kind, "message": error.message, "hint": error.hint}
                return web.json_response({"error": told}, status=409)
            return web.Response(body=codec.encode(reply), content_type="application/json")

        app = web.Application()
        app.add_routes([web.get("/v1/ca", ca), web.post("/v1/join", admit)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        context = tls.server_context(Path(self.settings.state) / "tls")
        await web.TCPSite(self._runner, self.address, self.settings.api.port, ssl_context=context).start()

    async def end(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if hasattr(self, "store"):
            await self.store.close()
        await self.stop_etcd()


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Callable[[str], Member]]:
    """Makes members test1, test2, ... at 127.31.16.1, ...; ends all of them."""
    made: list[Member] = []
    addresses = [f"127.31.16.{number}" for number in range(1, 5)]
    ports = (free_port(*addresses), free_port(*addresses), free_port(*addresses))

    def member(name: str) -> Member:
        made.append(Member(folder, name, addresses[len(made)], ports))
        return made[-1]

    try:
        yield member
    finally:
        for each in made:
            await each.end()


async def first(member: Member) -> None:
    """`veery init`, then veeryd."""
    identity.init(
        member.settings,
        name=member.name,
        address=member.address,
        roles=[Role.HYPERVISOR, Role.VOTER],
        driver="qemu",
        cluster="lab",
    )
    await member.start()
    await member.serve()


async def another(member: Member, by: Member, *roles: Role) -> None:
    """`veery token` there, `veery join` here, then veeryd."""
    token = await join.make_token(by.store, by.name)
    await join.join(
        member.settings,
        token=token,
        peer=by.address,
        name=member.name,
        address=member.address,
        roles=roles or (Role.HYPERVISOR, Role.VOTER),
        driver="qemu",
    )
    await member.start()


async def eventually(check: Callable[[], object], *, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not check():
            await asyncio.sleep(0.05)
