"""This node as a member of the cluster: what it records at its start and at intervals, and how it admits other
nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from veery.cluster import join, levels, members, revocation
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity, save
from veery.cluster.keys import NODES
from veery.cluster.losses import Losses
from veery.cluster.vault import Vault
from veery.config.settings import Settings
from veery.errors import Failed, VeeryError
from veery.model.cluster import TokenStatus
from veery.model.codec import convert, plain
from veery.model.node import Role
from veery.node.peers import Peers

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 0.5
REFRESH_INTERVAL_S = 20.0  # seconds between two reads of the voters


class Membership:
    """The membership of this node. The daemon owns the task of `run`."""

    def __init__(self, settings: Settings, identity: Identity, store: EtcdStore, peers: Peers, vault: Vault) -> None:
        """Build it. Nothing is requested before `run`. Set `cut` on a voter."""
        self._settings, self.identity, self._store = settings, identity, store
        self._writing = asyncio.Lock()
        self._peers, self._vault = peers, vault
        self.cut: revocation.Cut | None = None

    async def run(self) -> None:
        """Until cancelled: write this node's records, wait for its vote, follow changes of the voters."""
        await self._insist("records", self._introduce)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_list(), name="the CA's list")
            if self.identity.etcd is not None:
                tasks.create_task(self._shut_out(), name="revoked certificates")
            await self._follow()

    async def _follow(self) -> None:
        await self._insist("vote", self.voted)
        while True:
            await self._insist("voters", self._refresh)
            if self.identity.etcd is not None:
                await self._insist("level", self._rise)
            if self.identity.etcd is not None and not self.identity.etcd.store:  # new after a recovery or a new vote
                await self._insist("vote", self.voted)
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def voted(self) -> None:
        """Return when this node's etcd has its vote and that is recorded; at once if this node is not a voter. Raises
        as members.promote."""
        await members.promote(self._store.voters, self._settings, self.identity)
        if (start := self.identity.etcd) is not None and not start.store:
            store = await self._store.voters.store()
            await self.become(replace(self.identity, etcd=replace(start, store=store)))

    def ca(self) -> join.CaReply:
        """Answer GET /v1/ca."""
        return join.CaReply(ca=self.identity.cluster.ca, epoch=time.time())

    async def token(self, node: str) -> str:
        """Make a token with which one node may join, for a caller on `node` ("": this node)."""
        return await join.make_token(self._store, node or self.identity.node.name)

    async def tokens(self) -> tuple[TokenStatus, ...]:
        """Return the tokens that are not used yet."""
        return await join.tokens(self._store)

    async def revoke_token(self, id: str) -> None:
        """Revoke a token. Raises Refused."""
        await join.revoke_token(self._store, id)

    async def leave(self, name: str) -> None:
        """Remove node `name` from the cluster. Raises Refused while it has domains or volumes, or its vote is
        needed."""
        await members.leave(self._store, self._store.voters, self._settings, name)

    async def forget(self, name: str, *, volumes: bool, everything: bool) -> Losses:
        """Remove node `name`, which is lost for good; return what was lost with it. Raises Refused as members.forget
        does."""
        return await members.forget(
            self._store, self._store.voters, self._settings, name, volumes=volumes, everything=everything
        )

    async def admit(self, request: join.JoinRequest, relay: str = "") -> join.JoinReply:
        """Answer POST /v1/join. `relay` is the node that passes the request on ("": none). A relay does not get the
        newcomer's CHAP password: the newcomer makes another one."""
        if self.identity.etcd is None:  # no vote, so no key of the CA: a voter admits it
            return await self._elsewhere(request)
        reply = await join.admit(self._store, self._store.voters, request, vault=self._vault)
        if relay and reply.initiator is not None:
            reply = replace(reply, initiator=replace(reply.initiator, password=""))
        return reply

    async def _elsewhere(self, request: join.JoinRequest) -> join.JoinReply:
        last: VeeryError = Failed("the cluster has no voter", hint="veery node list")
        for node in (await NODES.readable(self._store)).values():
            if node.has(Role.VOTER):
                try:
                    await self._peers.awake(node.name)
                except VeeryError as error:
                    last = error
                    continue
                told = await self._peers.call(
                    node.name, "POST", "/v1/join", plain(request), deadline=join.JOIN_TIMEOUT_S
                )
                return convert(told, join.JoinReply)
        raise last

    def settle_ca(self, ca: str) -> None:
        """Record the cluster's only CA (PEM) in this node's identity. Raises OSError."""
        if self.identity.cluster.ca != ca:
            self.identity = replace(self.identity, cluster=replace(self.identity.cluster, ca=ca))
            save(Path(self._settings.state), self.identity)

    async def _introduce(self) -> None:
        await members.bootstrap(self._store, Path(self._settings.state), self.identity)
        await members.incarnate(self._store)
        await members.update(self._store, members.current(self._settings, self.identity))
        await revocation.tell(self._store, self.identity.node.name, Path(self._settings.state) / "tls")

    async def _shut_out(self) -> None:
        """Keep this voter's etcd refusing the certificates of removed nodes."""
        while True:
            await self._insist("revoked certificates", self._write_revoked)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _keep_list(self) -> None:
        """Keep the CA's list of revoked certificates beside the certificates: QEMU reads it at the start of each
        move."""
        while True:
            await self._insist("the CA's list", self._write_list)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _write_list(self) -> None:
        try:
            await revocation.keep(self._store, Path(self._settings.state) / "tls")
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error

    async def _write_revoked(self) -> None:
        try:
            await revocation.follow(self._store, Path(self._settings.state) / "tls", self._vault, cut=self.cut)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error

    async def _refresh(self) -> None:
        async with self._writing:
            self.identity = await members.refresh(self._store, self._settings, self.identity)

    async def _rise(self) -> None:
        await levels.rise(self._store, self.identity.node.name, epoch=time.time())

    async def become(self, identity: Identity) -> None:
        """Make `identity` the identity of this node, now and after a restart of the daemon. Raises Failed: nothing has
        changed."""
        async with self._writing:
            cluster = replace(identity.cluster, ca=self.identity.cluster.ca)  # it may have been renewed meanwhile
            identity = replace(identity, cluster=cluster)
            try:
                save(Path(self._settings.state), identity)
            except OSError as error:
                raise Failed(
                    f"{error.filename}: {error.strerror}", hint="free some space there, then try again"
                ) from error
            self.identity = identity
            members.point(self._store, self._settings, identity)

    async def _insist(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        said = ""
        while True:
            try:
                await work()
                return
            except VeeryError as error:
                if error.message != said:
                    log.warning("membership: %s: waiting: %s", what, error.message)
                said = error.message
            await asyncio.sleep(RETRY_INTERVAL_S)
