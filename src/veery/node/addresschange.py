"""Changes the address of a node in service. The node itself carries out the order.

    1  a certificate for both addresses             4  etcd restarts and serves both
    2  the store's members try both (on a voter)    5  the record and then the volumes' portals name the new one
    3  the identity names the new one               6  the members forget the old one; veeryd restarts

A failure up to step 5 is undone. If a daemon dies after step 3, the next one continues (`settle`): the identity is the
journal. etcd serves the old address, and it counts as the node's, for as long as the machine has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from veery.cluster import join, members, server, upkeep
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity, client_url, describe, peer_url
from veery.cluster.keys import ALIVE, NODES, VOLUME_MOVES, VOLUMES
from veery.cluster.store import Store, StoreUnavailable, Unchanged
from veery.config.settings import Settings
from veery.errors import OutcomeUnknown, Refused, VeeryError
from veery.host import ports
from veery.host.clock import Clock
from veery.host.log import decision
from veery.host.process import Process
from veery.model import endpoint
from veery.model.node import Node, Role
from veery.node import addressplan, reach
from veery.node.addressplan import AddressPlan, Facts
from veery.node.etcdswitch import EtcdSwitch
from veery.node.membership import Membership
from veery.node.peers import Peers
from veery.node.storeupkeep import READY_S, STOP_S, StoreUpkeep
from veery.node.volumes import VolumeService

log = logging.getLogger(__name__)

ASK_S = 10.0
SETTLE_S = 10.0  # between two checks for unfinished changes
ATTEMPTS = 5  # to write a record that others change at the same time


class Covering(Protocol):
    """The certificate of this node: node/certificates.py."""

    async def cover(self, address: str) -> None:
        """Renew the certificate so that it also covers `address`. Raises Refused, Failed."""
        ...

    async def require_cover(self, address: str) -> None:
        """Raise Refused if `cover` would."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a daemon that its change of address needs."""

    membership: Membership
    certificates: Covering
    upkeep: StoreUpkeep
    switch: EtcdSwitch
    volumes: VolumeService
    peers: Peers


class AddressChange:
    """Changes the address of this node. The daemon owns the task of `settle`."""

    def __init__(
        self, settings: Settings, store: EtcdStore, parts: Parts, clock: Clock, *, idle: Callable[[], bool]
    ) -> None:
        """`idle` returns True if no move is under way here."""
        self._settings, self._store, self._parts, self._clock = settings, store, parts, clock
        self._membership, self._idle = parts.membership, idle
        self._one = asyncio.Lock()
        self._rerouted = False  # True once the volumes' records name the portal of tgtd here

    @property
    def busy(self) -> bool:
        """Return True if an order is under way."""
        return self._one.locked()

    # ---- judging
    async def plan(self, address: str) -> AddressPlan:
        """Return the plan of a change to `address`; changes nothing. Raises Refused if it is not an address,
        StoreUnavailable."""
        return addressplan.plan(await self._facts(address))

    async def _facts(self, address: str) -> Facts:
        node = members.current(self._settings, self._membership.identity)
        described = describe(self._settings, name=node.name, address=address, roles=node.roles, driver=node.driver)
        address = endpoint.canonical(described.address)
        nodes = tuple((await NODES.all(self._store)).values())
        alive = await ALIVE.readable(self._store)
        own = ports.is_own(address)
        return Facts(
            node=node,
            address=address,
            own=own,
            nodes=nodes,
            absent=frozenset(each.name for each in nodes if each.name not in alive and each.name != node.name),
            unreached=await self._unreached(address, [each for each in nodes if each.name in alive]) if own else {},
            pinned=addressplan.pinned(self._settings, node.address),
            users=await self._users(),
            volume_moves=await self._volume_moves(),
            idle=self._idle(),
            certificate=await self._certificate(address),
            seen=await upkeep.look(self._store.voters) if node.has(Role.VOTER) else (),
        )

    async def _certificate(self, address: str) -> str:
        try:
            await self._parts.certificates.require_cover(address)
        except Refused as error:
            return error.message
        return ""

    async def _unreached(self, address: str, nodes: list[Node]) -> dict[str, str]:
        node = self._membership.identity.node
        wanted = addressplan.ports(self._settings, node)
        names = [each.name for each in nodes if each.name != node.name]
        with reach.listening(address, wanted):
            told = await asyncio.gather(*(self._reached(name, address, wanted) for name in names))
        return {name: why for name, why in zip(names, told, strict=True) if why}

    async def _reached(self, name: str, address: str, wanted: tuple[int, ...]) -> str:
        body = {"address": address, "ports": list(wanted)}
        try:
            told = await self._parts.peers.call(name, "POST", "/v1/reach", body, deadline=ASK_S)
        except VeeryError as error:
            return error.message
        return str(told["missing"])

    async def _users(self) -> tuple[str, ...]:
        """Return the domains on volumes of this node, from their records and from tgtd's sessions."""
        if self._parts.volumes.here is None or self._settings.storage.address:  # the portal does not change
            return ()
        name, found = self._membership.identity.node.name, set[str]()
        rows = await self._parts.volumes.list()
        for row in rows:
            volume, users = row["volume"], row["used_by"]
            if getattr(volume, "node", "") == name and isinstance(users, list):
                found.update(map(str, users))
        return tuple(sorted(found | await self._sessions()))

    async def _sessions(self) -> set[str]:
        """Return who is logged in at a volume here."""
        here = self._parts.volumes.mine()
        volumes = {each.iqn: each.name for each in await here.here()}
        return {
            f"{session.initiator} (volume {volumes[target.iqn]})"
            for target in await here.targets()
            if target.iqn in volumes
            for session in target.sessions
        }

    async def _volume_moves(self) -> tuple[str, ...]:
        name = self._membership.identity.node.name
        moves = (await VOLUME_MOVES.all(self._store)).values()
        return tuple(sorted(each.volume for each in moves if name in (each.source, each.target)))

    # ---- changing
    async def change(self, address: str) -> AddressPlan:
        """Move this node to `address` and return what was done. Raises Refused or Failed: nothing has changed. Raises
        OutcomeUnknown: veeryd continues by itself, or an undo is incomplete."""
        async with self._one, self._turn():
            facts = await self._facts(address)
            made = addressplan.plan(facts)
            if made.refusals:
                hint = f"veery node readdress {facts.node.name} {address} --plan shows all that prevents it"
                raise Refused(f"{facts.node.name} keeps {facts.node.address}: {made.refusals[0]}", hint=hint)
            before = self._membership.identity
            after = changed(self._settings, before, facts.address)
            await self._parts.certificates.cover(facts.address)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._back, before, after)
                await self._members(before, after)
                await self._membership.become(after)
                if after.etcd is not None:
                    await self._restart(after, alone=len(facts.seen) < 3)
                await members.update(self._store, members.current(self._settings, after))
                await self._portals(after)
                if used := await self._users():  # a domain that started meanwhile got the old portal
                    raise Refused(
                        f"{', '.join(used)} has begun to use a volume here", hint="shut that domain down first"
                    )
                undo.pop_all()
            log.info(decision("node.readdressed", node=after.node.name, address=address, former=before.node.address))
            await self._forget(after)
            return made

    def _turn(self) -> AbstractAsyncContextManager[object]:
        """Return a lock for one voter at a time: two that restart their etcd at once could cost the quorum."""
        identity = self._membership.identity
        return join.turn(self._store, identity.node.name) if identity.etcd is not None else nullcontext()

    async def _members(self, before: Identity, after: Identity) -> None:
        """Let the store's other members try both addresses."""
        if after.etcd is None:
            return
        old, new = (peer_url(self._settings, each.node) for each in (before, after))
        own = next((each for each in await self._store.voters.all() if old in each.peers), None)
        if own is None:
            raise Refused(f"the store has no member at {old}", hint="veery doctor --all")
        await self._store.voters.update(own.id, [old, new])

    async def _restart(self, after: Identity, *, alone: bool) -> None:
        await self._parts.upkeep.restart(force=alone)
        await server.ready(self._store.voters, client_url(self._settings, after.node), deadline=READY_S)

    async def _back(self, before: Identity, after: Identity) -> None:
        """Undo the change. Raises OutcomeUnknown if a part could not be undone."""
        log.warning(decision("node.readdress-undone", node=before.node.name, address=after.node.address))
        try:
            restarted = self._membership.identity.node.address != before.node.address
            await self._membership.become(before)
            if before.etcd is not None:
                url = client_url(self._settings, before.node)
                process = self._parts.switch.service.process
                if restarted and process is not None and advertised(process) != url:
                    await process.stop(grace=STOP_S)
                await server.ready(self._store.voters, url, deadline=READY_S)
                old, new = (peer_url(self._settings, each.node) for each in (before, after))
                for each in await self._store.voters.all():
                    if old in each.peers and new in each.peers:
                        await self._store.voters.update(each.id, [old])
            await members.update(self._store, members.current(self._settings, before))
            await self._portals(before)
        except VeeryError as error:
            raise OutcomeUnknown(
                f"the change failed, and it is not completely undone: {error.message}",
                hint=f"when the store answers: systemctl restart veeryd on {before.node.name}; then veery doctor --all",
            ) from error

    async def _portals(self, identity: Identity) -> None:
        if self._parts.volumes.here is not None:
            storage = self._settings.storage
            portal = endpoint.join(storage.address or identity.node.address, storage.portal_port)
            await reroute(self._store, identity.node.name, portal)

    async def _forget(self, identity: Identity) -> None:
        """Let the store's other members try only this node's present address."""
        if identity.etcd is None:
            return
        peer = peer_url(self._settings, identity.node)
        for each in await self._store.voters.all():
            if peer in each.peers and len(each.peers) > 1:
                await self._store.voters.update(each.id, [peer])

    # ---- unfinished changes
    async def settle(self) -> None:
        """Until cancelled: continue a change that was interrupted, and drop former addresses once the machine lacks
        them."""
        while True:
            try:
                if not self._one.locked():
                    await self._settle()
            except VeeryError as error:
                log.debug("the change of address waits: %s", error.message)
            await self._clock.sleep(SETTLE_S)

    async def _settle(self) -> None:
        identity = self._membership.identity
        process = self._parts.switch.service.process
        if identity.etcd is not None and process is not None:
            url = client_url(self._settings, identity.node)
            if (now := advertised(process)) and now != url:
                log.warning("etcd still serves %s: it restarts for %s", now, url)
                await self._restart(identity, alone=len(await self._store.voters.all()) < 3)
        if not self._rerouted:  # a change of storage.address, or an interrupted change of the address
            await self._portals(identity)
            self._rerouted = True
        if not identity.node.former:
            return
        await self._forget(identity)
        former = tuple(each for each in identity.node.former if ports.is_own(each))
        if former != identity.node.former:
            async with self._one:
                identity = self._membership.identity
                if identity.etcd is not None and process is not None:
                    await self._revive(identity, process)
                await self._membership.become(replace(identity, node=replace(identity.node, former=former)))
                await members.update(self._store, members.current(self._settings, self._membership.identity))

    async def _revive(self, identity: Identity, process: Process) -> None:
        """Restart etcd after an address was removed.

        Its JSON gateway calls its own port, perhaps from that address. Such a connection hangs for as long as TCP
        retries. Raises Refused if others are needed first."""
        try:
            await self._restart(identity, alone=len(await self._store.voters.all()) < 3)
        except StoreUnavailable:  # it may be the only voter, and hang: ending it loses nothing
            await process.stop(grace=STOP_S)
            await server.ready(self._store.voters, client_url(self._settings, identity.node), deadline=READY_S)


def changed(settings: Settings, identity: Identity, address: str) -> Identity:
    """Return the identity of the same node at `address`. Its etcd is asked at both addresses: before the change only
    the old one works, after it perhaps only the new one."""
    old = identity.node
    node = describe(settings, name=old.name, address=address, roles=old.roles, driver=old.driver)
    former = tuple(dict.fromkeys(each for each in (*old.former, old.address) if each != address))
    node = replace(node, initiator=old.initiator, former=former)
    was, now = client_url(settings, old), client_url(settings, node)
    own = (now, was) if was in identity.voters else ()
    voters = tuple(dict.fromkeys((*own, *identity.voters)))
    return replace(identity, node=node, voters=voters)


async def reroute(store: Store, node: str, portal: str) -> None:
    """Update the records of the volumes of `node` to name `portal`. Raises StoreUnavailable, OutcomeUnknown: call it
    again."""
    for _ in range(ATTEMPTS):
        stale = False
        for entry in (await store.scan(VOLUMES.prefix)).entries:
            volume = VOLUMES.value(entry)
            if volume.node == node and volume.portal != portal:
                moved = VOLUMES.put(volume.name, replace(volume, portal=portal))
                stale |= not (await store.commit([Unchanged(entry.key, entry.revision)], [moved])).held
        if not stale:
            return
    raise OutcomeUnknown(f"the volumes of {node} change faster than they can be written", hint="veery volume list")


def advertised(process: Process) -> str:
    """Return the client URL that a running etcd advertises, "" if that cannot be seen."""
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[words.index("--advertise-client-urls") + 1]
    except (OSError, ValueError, IndexError):
        return ""
