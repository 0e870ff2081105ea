"""Gives this node a vote in the store, and removes it, in place.

on   1 a learner is added       2 the identity says so     3 etcd starts, catches up, gets its vote
off  1 the member is removed    2 the identity says so     3 etcd ends, its data is put aside

If the daemon dies after step 1, the same order continues: each step finds what is done. After step 2 the next daemon
continues by itself. The node itself carries out the order."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from veery.cluster import join, members, restoring, upkeep, voting
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import peer_url
from veery.config.settings import Settings
from veery.errors import OutcomeUnknown, Refused
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.recovery import Aside
from veery.node.etcdswitch import EtcdSwitch
from veery.node.membership import Membership

log = logging.getLogger(__name__)

VOTE_S = 60.0  # for a new member to catch up and get its vote
UP_FIRST = "start it first (veery doctor --all), or remove it: veery node forget NODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The result of a change: how many votes there are now, and a warning about that."""

    votes: int
    warning: str = ""


class Votes:
    """Changes the vote of this node."""

    def __init__(
        self, settings: Settings, store: EtcdStore, membership: Membership, switch: EtcdSwitch, clock: Clock
    ) -> None:
        """Nothing changes before an order."""
        self._settings, self._store, self._membership = settings, store, membership
        self._switch, self._clock = switch, clock
        self._state = Path(settings.state)
        self._one = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Return True if an order is under way."""
        return self._one.locked()

    async def on(self) -> Vote:
        """Give this node a vote, unless it has one. Raises Refused if a voter does not answer. Raises Failed,
        StoreUnavailable. Raises OutcomeUnknown: the vote comes by itself when etcd has caught up."""
        async with self._one:
            identity, voters = self._membership.identity, self._store.voters
            peer = peer_url(self._settings, identity.node)
            await self._store.revision()  # do not change a store that is not trusted
            seen = await upkeep.look(voters)
            if why := voting.judge_gain(seen, peer):
                raise Refused(f"{identity.node.name} cannot get a vote now: {why}", hint=UP_FIRST)
            member = any(peer in each.voter.peers and each.voter.name for each in seen)
            if identity.etcd is None or not member:
                await self._begin(peer)
            await self._wait(peer)
            return await self._told()

    async def _begin(self, peer: str) -> None:
        """Do steps 1 and 2; undo them if they fail."""
        identity, voters = self._membership.identity, self._store.voters
        await self._switch.off()
        async with AsyncExitStack() as undo:
            start = await join.seat(self._store, voters, identity.node, peer)
            undo.push_async_callback(join.unseat, voters, peer)
            place = restoring.put_aside(self._state, epoch=self._clock.epoch())
            restoring.discard(self._state)
            await self._membership.become(voting.with_vote(identity, start))
            undo.pop_all()
        log.info(decision("vote.on", node=identity.node.name, aside=str(place or "-")))
        self._switch.on()

    async def _wait(self, peer: str) -> None:
        identity = self._membership.identity
        self._switch.on()
        try:
            async with asyncio.timeout(VOTE_S):
                await self._membership.voted()
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the member of {identity.node.name} has no vote yet; it continues by itself",
                hint="veery doctor --all shows when it has one; see etcd.log in its run folder",
            ) from error
        await members.update(self._store, members.current(self._settings, identity))

    async def off(self) -> Vote:
        """Remove this node's vote. Raises Refused for the last voter, if the others would be no majority, and for a
        node without another role. Raises Failed, StoreUnavailable, OutcomeUnknown: order it again."""
        async with self._one:
            identity, voters = self._membership.identity, self._store.voters
            name, peer = identity.node.name, peer_url(self._settings, identity.node)
            without = voting.without_vote(identity)
            if not without.node.roles:
                raise Refused(f"{name} has no other role", hint=f"veery node leave {name}")
            await self._store.revision()
            seen = await upkeep.look(voters)
            own = next((each for each in seen if peer in each.voter.peers), None)
            if own is not None:
                if not own.voter.learner and (why := voting.judge_loss(seen, own.voter.name)):
                    raise Refused(f"{name} keeps its vote: {why}", hint="start the others: veery node list")
                await self._lead_elsewhere(seen, own)
                await voters.remove(own.voter.id)
            others = tuple(url for each in seen if each is not own and each.well for url in each.voter.clients)
            await self._membership.become(replace(without, voters=others or without.voters))
            await self._put_aside()
            log.info(decision("vote.off", node=name))
            await members.update(self._store, members.current(self._settings, self._membership.identity))
            return await self._told()

    async def _lead_elsewhere(self, seen: tuple[upkeep.Seen, ...], own: upkeep.Seen) -> None:
        if own.status is None or own.status.leader != own.voter.id:
            return
        other = next((each for each in seen if each.well and each is not own), None)
        if other is not None:
            await upkeep.hand_over(self._store.voters, own.endpoint, other.voter.id)

    async def aside(self, order: Aside) -> None:
        """Give up the stores that the order names, and this node's member of one of them: a recovery replaces them. Its
        data is kept. Raises Refused if the order is outdated, Failed: order it again."""
        async with self._one:
            identity = self._membership.identity
            if not order.endpoints:
                raise Refused("the order names no member of the new store", hint="veery cluster recover")
            await self._membership.become(voting.without_vote(identity, order.endpoints, order.replaced))
            place = await self._put_aside()
            log.warning(decision("vote.aside", node=identity.node.name, data=str(place or "-")))

    async def _put_aside(self) -> Path | None:
        await self._switch.off()
        return restoring.put_aside(self._state, epoch=self._clock.epoch())

    async def _told(self) -> Vote:
        votes = sum(not each.learner for each in await self._store.voters.all())
        return Vote(votes=votes, warning=voting.warn(votes))
