"""A real etcd, put back to an earlier copy of its data folder: noticed, doubted by all, trusted again once adopted."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from pathlib import Path

import pytest

from veery.cluster import adopt, identity, server
from veery.cluster import owner as gate
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity
from veery.cluster.keys import EVENTS, OWNERS
from veery.cluster.members import bootstrap, incarnate, open_store
from veery.cluster.store import StoreRestored
from veery.cluster.trust import SeenFile, Standing, Trust
from veery.cluster.watch_cache import WatchCache
from veery.config.settings import Api, Etcd, Settings
from veery.errors import VeeryError
from veery.host.clock import RealClock
from veery.host.process import Process
from veery.host.tasks import stop
from veery.model.adoption import CopyHere, Inventory
from veery.model.node import Role


def _free_ports(address: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


class Member:
    """One etcd, as `veery init` and the daemon make it, and its data folder."""

    def __init__(self, folder: Path) -> None:
        api, client, peer = _free_ports("127.0.0.1", 3)
        self.folder = folder
        self.settings = Settings(
            state=str(folder / "state"),
            run=str(folder / "run"),
            api=Api(port=api),
            etcd=Etcd(client_port=client, peer_port=peer),
        )
        self.identity: Identity = identity.init(
            self.settings, name="one", address="127.0.0.1", roles=[Role.VOTER], driver="", cluster="restored"
        )
        self.data = folder / "state" / "etcd"
        self._process: Process | None = None

    async def start(self) -> None:
        command = server.command(self.settings, self.identity)
        self._process = Process.spawn(command, log_file=self.folder / "etcd.log", env=server.environment())
        store = open_store(self.settings, self.identity)
        await server.ready(store.voters, self.identity.voters[0], deadline=60)
        await store.close()

    async def stop(self) -> None:
        if self._process is not None:
            await self._process.stop(grace=10)
            self._process = None


async def _until(what: str, done: object) -> None:
    assert callable(done)
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.1)


@pytest.mark.timeout(300)
async def test_a_store_from_a_copy_is_doubted_and_trusted_again_once_adopted(tmp_path: Path) -> None:
    member, copy = Member(tmp_path), tmp_path / "copy"
    await member.start()
    trusts = {name: Trust(name, SeenFile(tmp_path / f"{name}.json"), RealClock()) for name in ("one", "two")}
    stores = {name: open_store(member.settings, member.identity, trust) for name, trust in trusts.items()}
    one, two = stores["one"], stores["two"]
    watches: list[asyncio.Task[None]] = []
    try:
        await bootstrap(one, tmp_path / "state", member.identity)
        await incarnate(one)
        owner = await gate.claim(one, "web", "one", "b1", None)
        await two.revision()
        await member.stop()
        shutil.copytree(member.data, copy)
        await member.start()

        promise = await gate.reserve(one, "web", "m1", "one", "two")
        await gate.commit(one, owner, promise)  # the move that the copy does not know
        mirror = WatchCache(two)
        watches.append(asyncio.ensure_future(mirror.run()))
        await mirror.current()
        await member.stop()
        shutil.rmtree(member.data)
        shutil.copytree(copy, member.data)
        await member.start()

        with pytest.raises(VeeryError):
            await gate.claim(one, "web", "one", "b2", None)
        for name, trust in trusts.items():

            async def mark(why: str, store: EtcdStore = stores[name], trust: Trust = trust) -> None:
                await store.mark(trust, why, RealClock().epoch())

            watches.append(asyncio.ensure_future(trust.run(stores[name].look, mark)))
        await _until("both doubt it", lambda: all(trust.stands() for trust in trusts.values()))
        for store in stores.values():
            with pytest.raises(StoreRestored, match=r"cluster|revision"):
                await OWNERS.get(store, "web")
            with pytest.raises(StoreRestored):
                await store.grant(5)
        with pytest.raises(StoreRestored):
            await mirror.current()
        told = await EVENTS.all(one.raw)
        assert [event.what for event in told.values()] == ["store-restored"]

        records = await adopt.read(one.raw)
        runs = {
            "one": Inventory(node="one", restored=True),
            "two": Inventory(node="two", restored=True, copies=(CopyHere(domain="web", boot="b1"),)),
        }
        made = adopt.plan(records, runs, {}, [])
        assert "web runs on two: the store says one" in made.changes
        await adopt.write(one.raw, records, made, by="operator", epoch=RealClock().epoch())
        await _until("both trust it", lambda: all(trust.standing is Standing.FITS for trust in trusts.values()))
        now = await OWNERS.get(two, "web")
        assert now is not None and now.node == "two"
        await mirror.current()
        assert mirror.get("owner/web") == await two.get("owner/web")
    finally:
        await stop(*watches)
        for store in stores.values():
            await store.close()
        await member.stop()
