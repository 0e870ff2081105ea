"""The real actions of the brain: orders to the APIs of nodes, and fences.

Each order carries its own guard: the revision of a ticket, the state of a fence, the boot of an instance. The receiving
node checks the guard against the store, so a late order changes nothing."""

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
from veery.model.codec import convert, plain
from veery.model.ha import Proof, Ticket
from veery.model.move import MoveReport, Phase
from veery.model.node import Role
from veery.model.plan import Plan
from veery.model.verdict import MoveOutcome, MovePromise, MoveResult
from veery.node.peers import Peers, read_answer

log = logging.getLogger(__name__)

ADMIT_DEADLINE_S = 20.0  # seconds for one storage node to admit a node
START_DEADLINE_S = 110.0  # less than Rules.start_deadline: the node's own error says more than a timeout here
END_DEADLINE_S = 60.0
URGENT = "must-finish"  # the policy of a move out of a node that may die at any moment
SWITCHOVER = (Phase.LOADED, Phase.COMMIT, Phase.FINISH)  # the domain is paused; before, the hypervisor counts it
FORECAST_DEADLINE_S = 30.0  # the caller has a shorter one
SILENCE_S = 120.0  # seconds without an event from a move


class PeerControl:
    """`veery.ha.base.NodeControl` on real nodes."""

    def __init__(self, store: Store, peers: Peers, fences: Mapping[str, Fence]) -> None:
        """`fences` by the name of their method. `peers` must find addresses without the store."""
        self._store, self._peers, self._fences = store, peers, fences

    async def fence(self, node: str, method: str, absent: float) -> Proof:
        """As NodeControl.fence: give the order, then check for the proof separately."""
        fence = self._fences.get(method)
        if fence is None:
            raise Failed(f"this version has no fence method {method!r}", hint="compare the versions: veery version -a")
        record = await fencing.require(self._store, node)
        await fence.off(record, absent)
        return await fence.proof(record, absent)

    async def admit(self, node: str, revision: int) -> None:
        """As NodeControl.admit: ask every storage node. It fails if one does not answer."""
        storage = [name for name, each in (await NODES.all(self._store)).items() if each.has(Role.STORAGE)]
        path = f"/v1/fences/{quote(node, safe='')}/admit"
        orders = (
            self._peers.call(name, "POST", path, {"revision": revision}, deadline=ADMIT_DEADLINE_S) for name in storage
        )
        answers = await asyncio.gather(*orders, return_exceptions=True)
        for name, answer in zip(storage, answers, strict=True):
            if isinstance(answer, VeeryError):
                raise type(answer)(f"{name} does not admit {node}: {answer.message}", hint=answer.hint)
            if isinstance(answer, BaseException):
                raise answer

    async def start(self, ticket: Ticket) -> None:
        """As NodeControl.start."""
        await self._peers.call(ticket.node, "POST", "/v1/tickets", plain(ticket), deadline=START_DEADLINE_S)

    async def end(self, node: str, domain: str, boot: str) -> None:
        """As NodeControl.end."""
        path = f"/v1/domains/{quote(domain, safe='')}/end"
        await self._peers.call(node, "POST", path, {"boot": boot}, deadline=END_DEADLINE_S)

    async def forecast(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MovePromise:
        """As NodeControl.forecast."""
        path = f"/v1/domains/{quote(domain, safe='')}/plan"
        order: dict[str, Any] = {"target": target, "quick": urgent, "settings": _settings(urgent)}
        plan = convert(await self._peers.call(source, "POST", path, order, deadline=FORECAST_DEADLINE_S), Plan)
        if plan.forecast is None:
            return MovePromise(why="the source gives no forecast")
        if not plan.forecast.converges:
            return MovePromise(why=plan.forecast.why)
        return MovePromise(gap_ms=plan.forecast.gap_ms, total_ms=plan.forecast.total_ms)

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MoveOutcome:
        """As NodeControl.move. The source continues the move if this connection ends."""
        path = f"/v1/domains/{quote(domain, safe='')}/migrate"
        order: dict[str, Any] = {"target": target, "brain": True, "settings": _settings(urgent)}
        try:
            async with await self._peers.open(source, "POST", path, json=order) as response:
                if response.status >= 400:
                    await read_answer(response)
                return await self._followed(response, domain, source)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OutcomeUnknown(
                f"{source} stopped reporting the move of {domain}: {error}",
                hint=f"when {source} answers again: veery --node {source} moves",
            ) from error

    async def _followed(self, response: aiohttp.ClientResponse, domain: str, source: str) -> MoveOutcome:
        while True:
            async with asyncio.timeout(SILENCE_S):
                line = await response.content.readline()
            if not line:
                raise OutcomeUnknown(
                    f"{source} closed the connection while {domain} was moving", hint=f"veery --node {source} moves"
                )
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "error":
                told = event["error"]
                raise from_kind(told["kind"], told["message"], told.get("hint", ""))
            if event["event"] == "done":
                return _outcome(event.get("result"))


def _settings(urgent: bool) -> dict[str, str]:
    return {"policy": URGENT} if urgent else {}


def _outcome(told: Any) -> MoveOutcome:
    """Return the figures in the report of a move that has succeeded; without figures if the report is of another
    version."""
    try:
        report = convert(told, MoveReport)
    except Failed:
        return MoveOutcome(result=MoveResult.DONE)
    switched_ms = sum(report.phases.get(each, 0.0) for each in SWITCHOVER)
    paused_ms = round(report.downtime_ms + switched_ms, 1) if report.downtime_ms or report.rounds else None
    return MoveOutcome(result=MoveResult.DONE, paused_ms=paused_ms, total_ms=round(report.total_ms, 1))
