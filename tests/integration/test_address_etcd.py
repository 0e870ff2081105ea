"""A voter's address changed on a real etcd: done, undone, and gone on with after a daemon that died in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster_parts import Member, another, eventually, first, rig

from veery.cluster import identity, keys, members, renewal, revocation, server
from veery.cluster.identity import client_url, peer_url
from veery.cluster.store import Put, StoreUnavailable
from veery.cluster.vault import Vault
from veery.errors import Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.host.process import Process
from veery.host.tasks import stop
from veery.model.cluster import Presence
from veery.model.node import Node
from veery.node.addresschange import AddressChange, Parts, advertised, changed
from veery.node.etcdswitch import EtcdSwitch
from veery.node.membership import Membership
from veery.node.peers import Peers
from veery.node.storeupkeep import StoreUpkeep
from veery.node.volumes import VolumeRecords, VolumeService

pytestmark = pytest.mark.timeout(300)
NEW = "127.31.17.1"


class Own:
    """The node's certificate, signed by the node itself: it is a voter."""

    def __init__(self, member: Member) -> None:
        self._member, self.folder = member, Path(member.settings.state) / "tls"

    async def require_cover(self, address: str) -> None:
        pass

    async def cover(self, address: str) -> None:
        held = tls.facts((self.folder / "server-cert.pem").read_text())
        await revocation.tell(self._member.store, self._member.name, self.folder)
        shown, csr = tls.Shown(self._member.name, held.serial), renewal.request(self.folder, self._member.name)
        store, vault = self._member.store, self._member.vault
        cert = await renewal.sign(store, vault, shown, csr, epoch=time.time(), address=address)
        renewal.install(self.folder, self._member.name, cert)


class Reached(Peers):
    """The other nodes reach everything."""

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        return {"missing": ""}


class Idle:
    """A storage node that serves nothing."""

    async def here(self) -> tuple[()]:
        return ()

    async def targets(self) -> tuple[()]:
        return ()


class Busy(VolumeService):
    """A node whose volumes come into use in the middle of the change."""

    looks = 0

    async def list(self) -> list[dict[str, object]]:
        self.looks += 1
        if self.looks > 1:
            raise Refused("web on test2 began", hint="-")
        return []


class Daemon:
    """What a daemon has of a change of address; another one begins with what is in the state folder."""

    def __init__(self, member: Member, volumes: type[VolumeService] = VolumeService) -> None:
        self.state = Path(member.settings.state)
        found = identity.load(self.state)
        peers = Reached(Contexts(self.state / "tls").client, self._find)
        self.membership = Membership(member.settings, found, member.store, peers, Vault(self.state))
        service = server.later(member.settings, lambda: self.membership.identity)
        self.switch = EtcdSwitch(service, on=True)
        clock, store = RealClock(), member.store
        upkeep = StoreUpkeep(member.name, store, [service], state=self.state, clock=clock, quota=1 << 28)
        here: Any = None if volumes is VolumeService else Idle()
        served = volumes(member.name, store, peers, VolumeRecords(store), here)
        parts = Parts(self.membership, Own(member), upkeep, self.switch, served, peers)
        self.change = AddressChange(member.settings, store, parts, clock, idle=lambda: True)

    async def _find(self, name: str) -> Node:
        raise Refused(f"no node {name}")

    @property
    def process(self) -> Process:
        assert self.switch.service.process is not None
        return self.switch.service.process

    @property
    def stands(self) -> bool:
        return self.switch.service.process is not None


@contextlib.asynccontextmanager
async def daemon(member: Member, volumes: type[VolumeService] = VolumeService) -> AsyncIterator[Daemon]:
    """For a while; etcd outlives it, but for the last one."""
    made = Daemon(member, volumes)
    work = asyncio.ensure_future(made.switch.run())
    try:
        await eventually(lambda: made.stands)
        yield made
    finally:
        await stop(work)


async def at(member: Member) -> list[tuple[str, ...]]:
    """Where the members are reached."""
    return [each.peers for each in await member.store.voters.all() if each.name == member.name]


async def reached(member: Member, peer: str) -> bool:
    """Whether the member is reached at `peer` alone; not while etcd restarts."""
    with contextlib.suppress(StoreUnavailable):
        return await at(member) == [(peer,)]
    return False


async def alone(make: Any) -> Member:
    """A cluster of one node, whose etcd is a daemon's to run."""
    one: Member = make("test1")
    await first(one)
    await one.store.commit([], [Put("word", b"kept")])
    await one.let_go()
    return one


@pytest.mark.parametrize("address", [NEW, "::1"])
async def test_the_only_voter_changes_and_changes_back(tmp_path: Path, address: str) -> None:
    async with rig(tmp_path) as make:
        one = await alone(make)
        old = one.address
        async with daemon(one) as node:
            for new, former in ((address, old), (old, address)):
                before = node.process
                await node.change.change(new)
                found = identity.load(node.state)
                assert (found.node.address, found.node.former) == (new, (former,))
                assert await at(one) == [(peer_url(one.settings, found.node),)]
                assert advertised(node.process) == client_url(one.settings, found.node)
                assert node.process != before
                entry, record = await one.store.get("word"), await keys.NODES.get(one.store, "test1")
                assert (entry and entry.value, record and record.address) == (b"kept", new)
            await node.switch.off()


async def test_a_change_that_fails_is_undone(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one = await alone(make)
        before = identity.load(Path(one.settings.state))
        async with daemon(one, Busy) as node:
            with pytest.raises(Refused, match="web on test2 began"):
                await node.change.change(NEW)
            assert identity.load(node.state).node == before.node
            assert await at(one) == [(peer_url(one.settings, before.node),)]
            assert advertised(node.process) == client_url(one.settings, before.node)
            record = await keys.NODES.get(one.store, "test1")
            assert record is not None
            assert (record.address, record.former) == (one.address, ())
            await node.switch.off()


async def test_one_of_three_changes_and_one_that_is_down_keeps_it_from_that(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one)
        await another(three, one)
        await one.let_go()
        for each in (one, two, three):
            lease = await one.store.grant(300)
            await one.store.commit([], [keys.ALIVE.put(each.name, Presence(node=each.name, started=0.0), lease=lease)])
        async with daemon(one) as node:
            await three.stop_etcd()
            with pytest.raises(Refused, match="voter test3 does not answer"):
                await node.change.change(NEW)
            await three.start_etcd()
            await server.ready(three.store.voters, three.url, deadline=60)
            lease = await one.store.grant(300)
            await one.store.commit([], [Put(keys.JOINING, b"test2", lease)])
            work = asyncio.ensure_future(node.change.change(NEW))
            await asyncio.sleep(2)  # less than it waits for its turn
            assert not work.done()
            assert identity.load(node.state).node.address == one.address, "it is another node's turn"
            await one.store.revoke(lease)
            await work
            assert await at(one) == [(peer_url(one.settings, node.membership.identity.node),)]
            await two.store.commit([], [Put("after", b"1")])
            found = await members.refresh(two.store, two.settings, identity.load(Path(two.settings.state)))
            assert client_url(one.settings, node.membership.identity.node) in found.voters
            await node.switch.off()


async def test_the_next_daemon_goes_on_with_a_change(tmp_path: Path) -> None:
    """It died when its identity said the new address and its etcd had not been restarted."""
    async with rig(tmp_path) as make:
        one = await alone(make)
        async with daemon(one) as node:
            before = node.membership.identity
            after = changed(one.settings, before, NEW)
            await Own(one).cover(NEW)
            (own,) = await one.store.voters.all()
            await one.store.voters.update(own.id, [peer_url(one.settings, each.node) for each in (before, after)])
            await node.membership.become(after)
        async with daemon(one) as node:
            work = asyncio.ensure_future(node.change.settle())
            async with asyncio.timeout(120):
                while not await reached(one, peer_url(one.settings, after.node)):
                    await asyncio.sleep(0.2)
            assert advertised(node.process) == client_url(one.settings, after.node)
            await stop(work)
            await node.switch.off()
