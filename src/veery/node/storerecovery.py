"""Recovers the store on this node while domains run: its data, or a copy, becomes a store of one voter.

    1 every node that answers keeps still (node/stillness.py)
    2 etcd here is switched off; a new data folder is made beside the old one (cluster/restoring.py)
    3 every node that answers gives up its own member, and asks this one
    4 the identity of this node is updated, the folders are exchanged, etcd starts

If the daemon dies before step 4, nothing has changed here, and the order is given again. After step 4 the next daemon
continues. The new store has another id, so every node doubts it (cluster/trust.py) until `veery cluster adopt`. A voter
that did not answer learns from any node, when it is back, that its store was given up (`look_back`)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from ssl import SSLContext
from urllib.parse import urlsplit

from veery.cluster import restoring, server, upkeep, voting
from veery.cluster.etcd import EtcdStore
from veery.cluster.gateway import Gateway
from veery.cluster.identity import EtcdStart, client_url
from veery.cluster.trust import Trust
from veery.config.settings import Settings
from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.codec import convert, plain
from veery.model.node import Role
from veery.model.recovery import Aside, Recovered, StoreWord
from veery.node.etcdswitch import EtcdSwitch
from veery.node.membership import Membership
from veery.node.node_cache import NodeCache
from veery.node.peers import Peers
from veery.node.stillness import Stillness
from veery.node.votes import Votes

log = logging.getLogger(__name__)

ASK_S = 5.0  # for the answer of one node
ORDER_S = 60.0  # for one node to give up its member
STATUS_S = 2.0  # for the status of this node's own member
READY_S = 60.0  # for the new store to answer
DOUBT_S = 60.0  # for the doubt to be recorded in it
LOOK_BACK_S = 5.0  # between two checks whether this node's store was given up
LOOK_SELDOM_S = 60.0  # the same when its member has known a leader and EARLY_S have passed
EARLY_S = 120.0
ENDPOINTS_MAX, REPLACED_MAX = 8, 1000  # limits of an order to give up a member
_STORE_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


def judge(
    own: StoreWord,
    told: Mapping[str, StoreWord],
    silent: Mapping[str, str],
    *,
    voters: Collection[str],
    lost: Collection[str],
    data: bool,
    file: bool,
) -> list[str]:
    """Return what prevents a recovery on node `own`. `told`: the answers of the other nodes. `silent`: the nodes
    without an answer, and why. `voters`: the names of all voters. `lost`: the nodes that an operator declares to be
    off. `data`: this node has the data of a member. `file`: the store is to be made from a copy. Pure."""
    found = [
        f"the store of {each.node} has a quorum: there is nothing to recover"
        for each in (own, *told.values())
        if each.quorum and not each.restored
    ]
    found += [
        f"voter {name} does not answer ({why}): start its veeryd; or, if it is certainly off, --lost {name}"
        for name, why in sorted(silent.items())
        if name in voters and name not in lost
    ]
    found += [f"{name} answers: it is not lost" for name in sorted(lost) if name in told or name == own.node]
    found += [f"no node {name!r}" for name in sorted(set(lost) - set(told) - set(silent) - {own.node})]
    if not file and not data:
        found.append(f"{own.node} has no data of the store: pass a copy with --from, or recover on another voter")
    if not file and own.revision:
        newer = {each.node: each.revision for each in told.values() if each.voter and each.revision > own.revision}
        found += [
            f"{name} has newer data (revision {revision}, here {own.revision}): use veery --node {name} cluster recover"
            for name, revision in sorted(newer.items())
        ]
    return found


def judge_aside(order: Aside, caller: str, addresses: Collection[str], *, still: bool) -> str:
    """Return why this node does not give up its member by an order of node `caller`; "" if it does. `addresses` are
    those of the certificate that the caller showed. `still`: this node keeps still by the caller's order. Pure.

    The new store has one voter, the caller. So an order that names another machine is not from a recovery."""
    if not still:
        return f"this node knows of no recovery on {caller}"
    if not order.endpoints or len(order.endpoints) > ENDPOINTS_MAX:
        return "the order names no member of the new store, or too many"
    if len(order.replaced) > REPLACED_MAX or not all(map(_STORE_ID.fullmatch, order.replaced)):
        return "the order does not name stores"
    strange = [each for each in order.endpoints if not _leads_to(each, addresses)]
    return f"{strange[0]!r:.200} is not an endpoint of {caller}" if strange else ""


def _leads_to(url: str, addresses: Collection[str]) -> bool:
    """Return True if `url` is a member's client URL at one of `addresses`."""
    try:
        parts = urlsplit(url)
        plain_url = f"{parts.scheme}://{parts.netloc}" == url and parts.username is None and parts.port is not None
        host = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return plain_url and parts.scheme == "https" and host in {ipaddress.ip_address(each) for each in addresses}


class Recoverer:
    """Recovers the store. The daemon owns the task of `look_back`."""

    def __init__(
        self,
        settings: Settings,
        store: EtcdStore,
        trust: Trust,
        membership: Membership,
        *,
        switch: EtcdSwitch,
        votes: Votes,
        stillness: Stillness,
        node_cache: NodeCache,
        peers: Peers,
        tls: Callable[[], SSLContext],
        clock: Clock,
    ) -> None:
        """`peers` finds nodes without the store. `tls` returns the context for this node's own etcd."""
        self._settings, self._store, self._trust, self._membership = settings, store, trust, membership
        self._switch, self._votes, self._stillness = switch, votes, stillness
        self._node_cache, self._peers, self._tls, self._clock = node_cache, peers, tls, clock
        self._state = Path(settings.state)
        self._one = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Return True if a recovery is under way here."""
        return self._one.locked()

    async def word(self) -> StoreWord:
        """Return what this node knows of the store. It asks only its own member, not the store."""
        identity, seen = self._membership.identity, self._trust.seen
        quorum, revision, member = None, 0, ""
        if identity.etcd is not None:
            quorum, member = False, identity.etcd.store  # a member without a leader may not have opened its port yet
            with contextlib.suppress(VeeryError):
                own = await self._store.voters.status(client_url(self._settings, identity.node), within=STATUS_S)
                quorum, revision, member = own.leader != 0, own.revision, own.cluster
        return StoreWord(
            node=identity.node.name,
            voter=identity.etcd is not None,
            quorum=quorum,
            restored=self._trust.restored,
            revision=revision,
            member=member,
            cluster=seen.cluster if seen else "",
            replaced=identity.replaced,
            endpoints=identity.voters,
            still=self._stillness.holds(),
        )

    # ---- recovering
    async def plan(self, file: str, lost: Collection[str]) -> Recovered:
        """Return the plan of a recovery; changes nothing."""
        own, told, refusals = await self._judged(file, lost)
        here, others = own.node, sorted(name for name, each in told.items() if each.voter)
        steps = [f"{', '.join([here, *sorted(told)])} keep still: no watchdog fires, no domain is ended"]
        steps.append(f"{here} makes a new store from {file or 'its own data'}, and is its only voter")
        steps += [f"{name} gives up its vote; its data is kept in {self._state}/etcd.before-..." for name in others]
        steps += [f"{name} gives up its vote when it is back: you declare that it is off" for name in sorted(lost)]
        return Recovered(refusals=tuple(refusals), steps=tuple(steps))

    async def recover(self, file: str, lost: Collection[str]) -> Recovered:
        """Recover the store. Raises Refused with everything that prevents it. Raises Failed, OutcomeUnknown: order it
        again."""
        if self._one.locked():
            raise Refused("a recovery is under way here", hint="wait for its end: veery cluster status")
        async with self._one:
            plan = await self.plan(file, lost)
            own, told, refusals = await self._judged(file, lost)
            if refusals:
                raise Refused("; ".join(refusals), hint="veery cluster recover --plan")
            await self._stand_still(told)
            words = (own, *told.values())
            old = {*own.replaced, *(each.cluster for each in words), *(each.member for each in words)}
            replaced = tuple(sorted(old - {""}))
            async with AsyncExitStack() as undo:
                start, copied = await self._restored(file, undo)
                await self._aside(told, replaced)
                await self._take(start, replaced, undo)
            log.warning(decision("store.recovered", node=own.node, source=copied, lost=",".join(sorted(lost))))
            return plan

    async def _judged(self, file: str, lost: Collection[str]) -> tuple[StoreWord, dict[str, StoreWord], list[str]]:
        own, (told, silent) = await self.word(), await self._asked()
        data = restoring.has_data(self._state)
        refusals = judge(own, told, silent, voters=self._voters(), lost=lost, data=data, file=bool(file))
        if file and not Path(file).is_file():
            refusals.append(f"{file} is not a file on {own.node}")
        return own, told, refusals

    def _voters(self) -> set[str]:
        """Return the nodes that have a vote, as far as this node knows."""
        return {name for name, node in self._node_cache.nodes.items() if node.has(Role.VOTER)}

    async def _asked(self) -> tuple[dict[str, StoreWord], dict[str, str]]:
        """Return the answers of all other known nodes, and why the rest gave none."""
        here = self._membership.identity.node.name
        names = sorted(set(self._node_cache.nodes) - {here})
        told: dict[str, StoreWord] = {}
        silent: dict[str, str] = {}

        async def ask(name: str) -> None:
            try:
                told[name] = convert(await self._peers.call(name, "GET", "/v1/recovery", deadline=ASK_S), StoreWord)
            except VeeryError as error:
                silent[name] = error.message

        await asyncio.gather(*map(ask, names))
        return told, silent

    async def _stand_still(self, told: Collection[str]) -> None:
        here = self._membership.identity.node.name
        self._stillness.order(here)
        path = "/v1/recovery/still"
        await asyncio.gather(*(self._peers.call(name, "POST", path, {"by": here}, deadline=ASK_S) for name in told))

    async def _restored(self, file: str, undo: AsyncExitStack) -> tuple[EtcdStart, str]:
        """Make STATE/etcd.new from the file or from this node's own data. Return what its etcd starts with, and the
        source.

        etcd here is off afterwards. An etcd whose data is gone is restarted again and again: it would start with the
        new data before the other members have given up theirs."""
        identity = self._membership.identity
        source, checked = Path(file), True
        if not file:
            source, checked = await self._own_copy()
        await self._switch.off()
        undo.callback(self._switch.on)
        undo.callback(restoring.discard, self._state)
        token = f"{identity.cluster.id}-{secrets.token_hex(6)}"
        flags = await restoring.restore(self._settings, identity, source, token=token, checked=checked)
        if not file:
            source.unlink(missing_ok=True)
        start = EtcdStart(initial_cluster=flags[0], initial_cluster_state=flags[1], prepared=True)
        return start, file or "own data"

    async def _own_copy(self) -> tuple[Path, bool]:
        """Make a snapshot from this node's own member, which need not know a leader. If it does not answer, copy its
        file."""
        path = self._state / "etcd.snapshot"
        path.unlink(missing_ok=True)
        gateway = Gateway(
            (client_url(self._settings, self._membership.identity.node),),
            tls=self._tls(),
            deadline=self._settings.etcd.deadline,
        )
        try:
            await upkeep.backup(gateway, path, leader=False)
            return path, True
        except VeeryError as error:
            log.warning("etcd of this node gives no snapshot (%s): its file is copied", error.message)
        finally:
            await gateway.close()
        await self._switch.off()
        try:
            await asyncio.to_thread(shutil.copyfile, restoring.database(self._state), path)
        except OSError as error:
            self._switch.on()
            raise Failed(f"{error.filename}: {error.strerror}", hint="pass a copy: --from FILE") from error
        return path, False

    async def _aside(self, told: Mapping[str, StoreWord], replaced: tuple[str, ...]) -> None:
        """Order every node that answers to give up its member, the voters first, and to ask this node's member from now
        on."""
        endpoint = client_url(self._settings, self._membership.identity.node)
        order = plain(Aside(replaced=replaced, endpoints=(endpoint,)))
        for name in sorted(told, key=lambda name: not told[name].voter):
            await self._peers.call(name, "POST", "/v1/recovery/aside", order, deadline=ORDER_S)

    async def _take(self, start: EtcdStart, replaced: tuple[str, ...], undo: AsyncExitStack) -> None:
        """Update this node's identity first, which does not affect the old data. From there on nothing is undone. Then
        exchange the folders; if the daemon dies in between, the next start of etcd does that."""
        identity = self._membership.identity
        endpoint = client_url(self._settings, identity.node)
        self._trust.expect(f"it was recovered on {identity.node.name}")
        new = voting.with_vote(voting.without_vote(identity, (endpoint,), replaced, roles=False), start)
        await self._membership.become(new)
        undo.pop_all()
        try:
            restoring.put_aside(self._state, epoch=self._clock.epoch())
            restoring.take(self._state)
        finally:
            self._switch.on()
        await server.ready(self._store.voters, endpoint, deadline=READY_S)
        for _ in range(int(DOUBT_S / 0.2)):  # the task of the trust writes the doubt
            if self._trust.stands():
                return
            await asyncio.sleep(0.2)

    # ---- a voter that was away meanwhile
    async def look_back(self) -> None:
        """Until cancelled, on a voter: call `look`, often at first, and while its member knows no leader."""
        begun, pause = self._clock.now(), LOOK_BACK_S
        while True:
            await asyncio.sleep(pause)
            if self._membership.identity.etcd is None or self._one.locked():
                continue
            often = not await self.look() or self._clock.now() - begun < EARLY_S
            pause = LOOK_BACK_S if often else LOOK_SELDOM_S

    async def look(self) -> bool:
        """Give up this node's member if another node reports that its store was given up. Return True if the member
        knows a leader."""
        own = await self.word()
        told = (await self._asked())[0] if own.member else {}
        word = believed(own.member, told, self._voters())
        if word is None:
            return bool(own.quorum)
        async with self._one:
            now = await self.word()  # a recovery may have made this store again since the others were asked
            if not given_up(now.member, word):
                return bool(now.quorum)
            log.error("the store of this node was given up, as reported by %s: its member is put aside", word.node)
            try:
                await self._votes.aside(Aside(replaced=word.replaced, endpoints=word.endpoints))
            except VeeryError as error:
                log.error("etcd of this node could not be put aside: %s", error.message)
        return False


def believed(cluster: str, told: Mapping[str, StoreWord], voters: Collection[str]) -> StoreWord | None:
    """Return the answer by which this node's member of the store `cluster` has to be given up, or None. `told`: the
    answers of the nodes, by the names of their certificates. `voters`: the nodes known to have a vote. Pure.

    The answer of one voter is enough. A node without a vote could take the store away from all voters by a lie. So its
    answer counts only if all that answer say the same."""
    found = {name: word for name, word in told.items() if given_up(cluster, word)}
    known = [word for name, word in found.items() if name in voters]
    if known:
        return known[0]
    return next(iter(found.values()), None) if len(found) == len(told) else None


def given_up(cluster: str, word: StoreWord) -> bool:
    """Return True if `word` says that the store with id `cluster` was given up, and names the members to ask."""
    return bool(cluster) and cluster in word.replaced and bool(word.endpoints) and cluster != word.member
