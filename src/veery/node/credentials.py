"""This node's credentials at the targets. Voters and storage nodes also hold the key that opens those of the other
nodes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Protocol

from veery.cluster import initiators, keys, vault
from veery.cluster.identity import make_password
from veery.cluster.store import Store
from veery.cluster.vault import Vault
from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.host.tasks import look_for_ever
from veery.model.node import Node
from veery.model.volume import ChapSecret, Initiator

log = logging.getLogger(__name__)

LOOK_S = 5.0
ASK_S = 10.0  # for the answer of a holder


class Asked(Protocol):
    """The APIs of the other nodes: node/peers.py."""

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        """As Peers.call."""
        ...


class Credentials:
    """Keeps the credentials of this node. The daemon owns the task of `run`."""

    def __init__(self, node: Node, store: Store, state: Path, *, peers: Asked, clock: Clock) -> None:
        """`state` is the node's state folder."""
        self._node, self._store, self._state = node, store, state
        self._peers, self._clock = peers, clock
        self._vault = Vault(state, vault.CHAP)
        self._own: Initiator | None = None
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled: keep this node's credentials, record them in the store, hold the key, and seal passwords
        that are not sealed."""
        await look_for_ever(self.look, what="credentials at the targets", every_s=LOOK_S, clock=self._clock, log=log)

    async def look(self) -> None:
        """Check once, and do what is needed. Raises VeeryError, OSError."""
        async with self._busy:
            held, trouble = None, None
            try:
                held = await self._hold()
            except VeeryError as error:  # this node's own credentials are kept anyway
                trouble = error
            own = await self._keep()
            if await initiators.must_offer(self._store, own):
                await self._offer(own)
            if held is not None:
                await initiators.seal_all(self._store, self._vault, held)
            if trouble is not None:
                raise trouble

    async def mine(self) -> Initiator:
        """Return this node's credentials. Raises Failed if there are none, StoreUnavailable if the store is needed for
        them."""
        if self._own is None:
            self._own = initiators.load(self._state)
        if self._own is not None:
            return self._own
        try:
            async with self._busy:
                return await self._keep()
        except OSError as error:
            raise Failed(f"{self._state}: {error.strerror}", hint="check the disk of this node") from error

    async def password(self, node: str, secret: ChapSecret) -> str:
        """Return the password in `secret` of `node`, on a voter or storage node. Raises VeeryError."""
        if self._vault.id != secret.key:
            try:
                async with self._busy:
                    await self._hold()
            except OSError as error:
                raise Failed(f"{self._state}: {error.strerror}", hint="check the disk of this node") from error
        return initiators.open_secret(self._vault, node, secret)

    # ---- asked by other nodes
    async def sealing(self, caller: str) -> str:
        """Answer POST /v1/initiators/sealing: return the key to another voter or storage node. Raises Refused."""
        node = await keys.NODES.get(self._store, caller)
        if node is None or not vault.CHAP.holds(node):
            log.warning(
                "refused to give the key of the CHAP passwords to %s: it is not a %s", caller, vault.CHAP.holder
            )
            raise Refused(f"{caller} is not a {vault.CHAP.holder}", hint="veery node list shows the roles")
        return self._vault.export()

    async def accept(self, caller: str, password: str) -> None:
        """Answer POST /v1/initiators: take the password that node `caller` gives as its own. Raises Refused."""
        await initiators.accept(self._store, self._vault, caller, password)

    # ---- inside
    async def _keep(self) -> Initiator:
        self._own = await initiators.keep(self._store, self._state, self._node.name, make_password())
        return self._own

    async def _hold(self) -> vault.Held | None:
        if not vault.CHAP.holds(self._node):
            await vault.let_go(self._store, self._vault, self._node)
            return None
        held = await vault.hold(self._store, self._vault, self._node.name, self._ask_sealing)
        if held is None:  # the key was made: a second check tells whose it is
            held = await vault.hold(self._store, self._vault, self._node.name, self._ask_sealing)
        return held

    async def _ask_sealing(self, holder: str) -> str:
        return str((await self._peers.call(holder, "POST", "/v1/initiators/sealing", deadline=ASK_S))["key"])

    async def _offer(self, own: Initiator) -> None:
        """Give this node's password to a node that seals it. Raises VeeryError if none does."""
        last: VeeryError = Failed(f"the cluster has no {vault.CHAP.holder}", hint="veery node list")
        if self._vault.id:
            try:
                await initiators.accept(self._store, self._vault, own.node, own.password)
                return
            except Refused as error:  # the key of this node may have been replaced
                last = error
        for node in (await keys.NODES.readable(self._store)).values():
            if vault.CHAP.holds(node) and node.name != self._node.name:
                try:
                    body = {"password": own.password}
                    await self._peers.call(node.name, "POST", "/v1/initiators", body, deadline=ASK_S)
                    return
                except VeeryError as error:
                    last = error
        raise last
