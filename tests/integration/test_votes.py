"""Votes in a real store that come and go, orders that are broken off at each point, and members without their data."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_parts import Member, another, eventually, first, rig

from veery.cluster import identity, join, restoring, server, voting
from veery.cluster.identity import peer_url
from veery.cluster.store import Put
from veery.cluster.vault import Vault
from veery.errors import Refused, VeeryError
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.host.tasks import stop
from veery.model.node import Node, Role
from veery.node.etcdswitch import EtcdSwitch
from veery.node.membership import Membership
from veery.node.peers import Peers
from veery.node.storehealth import judge_hashes, read
from veery.node.votes import Votes

pytestmark = pytest.mark.timeout(300)

MARK = b"only here to be damaged " * 20


class Daemon:
    """What a daemon has of votes; another one begins with what is in the state folder."""

    def __init__(self, member: Member) -> None:
        self.state = Path(member.settings.state)
        found = identity.load(self.state)
        peers = Peers(Contexts(self.state / "tls").client, self._find)
        self.membership = Membership(member.settings, found, member.store, peers, Vault(self.state))
        service = server.later(member.settings, lambda: self.membership.identity)
        self.switch = EtcdSwitch(service, on=found.etcd is not None)
        self.votes = Votes(member.settings, member.store, self.membership, self.switch, RealClock())

    async def _find(self, name: str) -> Node:
        raise Refused(f"no node {name}")

    @property
    def voter(self) -> bool:
        """Whether the file says that it is one, and nothing else."""
        found = identity.load(self.state)
        assert (found.etcd is not None) == found.node.has(Role.VOTER)
        return found.etcd is not None


@contextlib.asynccontextmanager
async def daemon(member: Member, *, ends: bool = False) -> AsyncIterator[Daemon]:
    """For a while; etcd outlives it, but for the last one."""
    made = Daemon(member)
    work = asyncio.ensure_future(made.switch.run())
    try:
        yield made
    finally:
        await stop(work)
        if ends:
            await made.switch.service.stop()


async def votes(member: Member) -> int:
    return sum(not each.learner for each in await member.store.voters.all())


async def test_a_vote_is_given_and_given_up_in_place(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one)
        await another(three, one, Role.HYPERVISOR)
        async with daemon(three, ends=True) as node:
            told = await node.votes.on()
            assert (told.votes, told.warning, node.voter) == (3, "", True)
            assert (await node.votes.on()).votes == 3, "a second order changes nothing"

            await two.stop_etcd()
            with pytest.raises(Refused, match="only 1 of 2 voters would be up"):
                await node.votes.off()
            assert (await votes(one), node.voter) == (3, True)
            await two.start_etcd()
            await server.ready(two.store.voters, two.url, deadline=60)

            told = await node.votes.off()
            assert (told.votes, node.voter, restoring.has_data(node.state)) == (2, False, False)
            assert "survives the loss of 0" in told.warning
            assert list(node.state.glob("etcd.before-*"))
            assert (await node.votes.on()).votes == 3, "the old data is not in the way"


async def test_a_vote_that_would_cost_the_quorum_is_not_given(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, three, four = (make(f"test{number}") for number in range(1, 5))
        await first(one)
        await another(two, one)
        await another(three, one)
        await another(four, one, Role.HYPERVISOR)
        await three.stop_etcd()
        async with daemon(four, ends=True) as node:
            with pytest.raises(Refused, match="voter test3 does not answer"):
                await node.votes.on()
            assert (len(await one.store.voters.all()), node.voter) == (3, False)


async def test_an_order_that_was_broken_off_is_given_again(tmp_path: Path) -> None:
    """After each step that outlives the daemon."""
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one)
        await another(three, one, Role.HYPERVISOR)
        peer = peer_url(three.settings, three.identity.node)

        await join.seat(three.store, three.store.voters, three.identity.node, peer)  # on: the learner is there
        async with daemon(three) as node:
            assert (await node.votes.on()).votes == 3
            await node.votes.off()

        start = await join.seat(three.store, three.store.voters, three.identity.node, peer)
        async with daemon(three) as node:  # on: the identity says so, and etcd was not started
            await node.membership.become(voting.with_vote(node.membership.identity, start))
        async with daemon(three) as node:
            async with asyncio.timeout(60):
                await node.membership.voted()
            assert (await votes(one), node.voter) == (3, True)

        (own,) = (each for each in await one.store.voters.all() if peer in each.peers)
        await one.store.voters.remove(own.id)  # off: the member is removed
        async with daemon(three) as node:
            assert ((await node.votes.off()).votes, node.voter) == (2, False)
            await node.votes.on()

        (own,) = (each for each in await one.store.voters.all() if peer in each.peers)
        await one.store.voters.remove(own.id)
        async with daemon(three) as node:  # off: the identity says so, and the data is still there
            await node.membership.become(voting.without_vote(node.membership.identity))
        async with daemon(three, ends=True) as node:
            assert ((await node.votes.on()).votes, node.voter) == (3, True)


async def test_a_voter_without_its_data_is_not_started_empty(tmp_path: Path) -> None:
    """It would take part in votes on what it had acknowledged before. Given up and given anew, the vote is good."""
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one)
        await another(three, one, Role.HYPERVISOR)
        async with daemon(three, ends=True) as node:
            await node.votes.on()
            await node.switch.off()
            shutil.rmtree(node.state / "etcd")
            node.switch.on()
            await eventually(lambda: node.switch.service.ends(within=60) > 0)
            assert (node.switch.service.process, restoring.has_data(node.state)) == (None, False)
            assert (await node.votes.off()).votes == 2
            assert (await node.votes.on()).votes == 3


async def test_a_member_with_other_data_is_made_anew(tmp_path: Path) -> None:
    """As docs/hosts.md has it: take etcd's alarm back, take the vote, give it again."""
    async with rig(tmp_path) as make:
        one, two, three = make("test1"), make("test2"), make("test3")
        await first(one)
        await another(two, one)
        await another(three, one, Role.HYPERVISOR)
        async with daemon(three, ends=True) as node:
            await node.votes.on()
            await one.store.commit([], [Put("junk/a", MARK)])
            file = restoring.database(node.state)
            await eventually(lambda: MARK in file.read_bytes())
            with file.open("rb+") as db:
                data = db.read()
                for place in (each.start() for each in re.finditer(MARK, data)):
                    db.seek(place)
                    db.write(b"#" * len(MARK))
            (own,) = (each for each in await one.store.voters.all() if each.name == "test3")
            body = {"action": "ACTIVATE", "memberID": own.id, "alarm": "CORRUPT"}
            await one.store.gateway.write("/v3/maintenance/alarm", body, dict)
            row = judge_hashes("test1", await read(one.store.voters, ()))
            assert row.told.startswith("test3 differs"), row

            with pytest.raises(VeeryError):
                await node.votes.off()  # its record cannot be written
            await one.store.voters.disarm(own.id, "CORRUPT")
            assert (await node.votes.off()).votes == 2
            assert (await node.votes.on()).votes == 3
            row = judge_hashes("test1", await read(one.store.voters, ()))
            assert (row.level, row.told.startswith("3 of 3")) == ("ok", True), row
