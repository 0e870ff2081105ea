"""What the brain acts through: orders to the nodes' APIs, and the fences.

An order carries its own guard (a ticket's revision, a fence's state, a run's boot), which the node that gets it checks
against the store: one that comes late changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from veery.cluster import fencing
from veery.cluster.keys import NODES
from veery.cluster.store import Store
from veery.errors import Failed, OutcomeUnknown, VeeryError, from_kind
from veery.ha.fence.base import Fence
from veery.model.codec import plain
from veery.model.ha import Proof, Ticket
from veery.model.node import Role
from veery.node.peers import Peers, read_answer

log = logging.getLogger(__name__)

ADMIT = 20.0  # seconds for one storage node to let a node in
START = 110.0  # less than Rules.start_deadline: what the node itself says is worth more than our own "too late"
END = 60.0
URGENT = "must-finish"  # the policy of a move out of a node that may die at any moment
SILENCE = 120.0  # seconds without a word from a move


class PeerControl:
    """`veery.ha.base.NodeControl` on real nodes."""

    def __init__(self, store: Store, peers: Peers, fences: Mapping[str, Fence]) -> None:
        """`fences` by the name of their method; `peers` must not need the store to find a node's address."""
        self._store, self._peers, self._fences = store, peers, fences

    async def fence(self, node: str, method: str, absent: float) -> Proof:
        """As NodeControl.fence: the order, then a look of its own for the proof."""
        fence = self._fences.get(method)
        if fence is None:
            raise Failed(f"this version knows no fence {method!r}", hint="compare `veery version -a`")
        record = await fencing.require(self._store, node)
        await fence.off(record, absent)
        return await fence.proof(record, absent)

    async def admit(self, node: str, revision: int) -> None:
        """As NodeControl.admit: at every storage node; one that does not answer fails it."""
        storage = [name for name, each in (await NODES.all(self._store)).items() if each.has(Role.STORAGE)]
        path = f"/v1/fences/{quote(node, safe='')}/admit"
        orders = (self._peers.call(name, "POST", path, {"revision": revision}, deadline=ADMIT) for name in storage)
        answers = await asyncio.gather(*orders, return_exceptions=True)
        for name, answer in zip(storage, answers, strict=True):
            if isinstance(answer, VeeryError):
                raise type(answer)(f"{name} does not let {node} in: {answer.message}", hint=answer.hint)
            if isinstance(answer, BaseException):
                raise answer

    async def start(self, ticket: Ticket) -> None:
        """As NodeControl.start."""
        await self._peers.call(ticket.node, "POST", "/v1/tickets", plain(ticket), deadline=START)

    async def end(self, node: str, domain: str, boot: str) -> None:
        """As NodeControl.end."""
        path = f"/v1/domains/{quote(domain, safe='')}/end"
        await self._peers.call(node, "POST", path, {"boot": boot}, deadline=END)

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> None:
        """As NodeControl.move. A move goes on at its source when we leave."""
        path = f"/v1/domains/{quote(domain, safe='')}/migrate"
        order: dict[str, Any] = {"target": target, "brain": True}
        if urgent:
            order["settings"] = {"policy": URGENT}
        try:
            async with await self._peers.open(source, "POST", path, json=order) as response:
                if response.status >= 400:
                    await read_answer(response)
                await self._followed(response, domain, source)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OutcomeUnknown(
                f"{source} does not tell how the move of {domain} goes on: {error}",
                hint=f"veery --node {source} moves, once it answers",
            ) from error

    async def _followed(self, response: aiohttp.ClientResponse, domain: str, source: str) -> None:
        while True:
            async with asyncio.timeout(SILENCE):
                line = await response.content.readline()
            if not line:
                raise OutcomeUnknown(f"{source} broke off while {domain} was moving", hint="veery moves on that node")
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "error":
                told = event["error"]
                raise from_kind(told["kind"], told["message"], told.get("hint", ""))
            if event["event"] == "done":
                return
