"""The brain's doors in the simulated world: what a leader learns and does, as far as its networks reach."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from veery.errors import Failed, OutcomeUnknown, Refused
from veery.ha.simulation.node import SimNode
from veery.ha.simulation.promises import Promises
from veery.ha.simulation.world import ANSWER, World
from veery.model.ha import WATCHDOG, NodeReading, Proof, StorageHeartbeat, StorageHeartbeats, Ticket
from veery.model.verdict import MoveOutcome, MovePromise, MoveResult

T = TypeVar("T")

GAP_MS = 100.0  # of every move
ORDER = 20.0  # seconds after which an order without an answer is given up


class SimDoors:
    """`Probes` and `NodeControl` of the brain on node `me`."""

    def __init__(self, world: World, nodes: Mapping[str, SimNode], me: str, promises: Promises) -> None:
        self._world, self._nodes, self._me, self._promises = world, nodes, me, promises

    # ---- senses
    async def signs(self) -> StorageHeartbeats:
        """As Probes.signs."""
        await asyncio.sleep(0.003)
        ages: dict[str, StorageHeartbeat] = {}
        witnesses = 0
        for storage in self._world.storages():
            if not (self._world.linked(self._me, storage.name) and storage.target and storage.knows):
                continue
            witnesses += 1
            for name, sign in self._world.sign(storage).items():
                if name not in ages or sign.age < ages[name].age:
                    ages[name] = sign
        return StorageHeartbeats(witnesses=witnesses, ages=ages)

    async def readings(self) -> Mapping[str, NodeReading]:
        """As Probes.readings."""
        await asyncio.sleep(0.003)
        return {name: node.reading() for name, node in self._nodes.items() if self._world.linked(self._me, name)}

    # ---- hands
    async def fence(self, node: str, method: str, absent: float) -> Proof:
        """As NodeControl.fence."""
        await self._gate()
        await self._promises.fence(self._me, node, method)
        if lasts := self._world.lasting.get(f"{node}/{method}"):
            await asyncio.sleep(lasts)
            await self._gate()
        self._world.fails("fence", f"{node}/{method}")
        match method:
            case "storage":
                seen = await self._by_storage(node)
            case "power":
                await self._world.call(self._me, self._me)
                if not self._world.machines[node].board:
                    await asyncio.sleep(ANSWER)
                    raise Failed(f"the power board of {node} does not answer")
                self._world.power_off(node, "is switched off by its power fence")
                seen = "its power was seen off"
            case _ if method == WATCHDOG:
                machine, now = self._world.machines[node], self._world.now()
                lived = machine.went_off < now - absent - machine.watchdog  # a loss of power ends all that ran, too
                if machine.power and lived and now - machine.fed < machine.watchdog:
                    self._world.breaks(f"the watchdog of {node} was taken as proof, and has not fired")
                seen = f"{absent:.0f} s without a sign, its watchdog fires after {machine.watchdog:g} s"
            case _:
                raise Failed(f"no method {method!r}")
        self._world.fences.append((self._world.now(), node, method))
        self._world.losses.append((self._world.now(), node))
        return Proof(method=method, seen=seen)

    async def _by_storage(self, node: str) -> str:
        said = []
        for storage in self._world.storages():
            await self._world.call(self._me, storage.name)
            said.append(await self._answer(storage.name, self._nodes[storage.name].deny(node)))
        return ", ".join(said)

    async def admit(self, node: str, revision: int) -> None:
        """As NodeControl.admit."""
        await self._gate()
        await self._promises.admit(self._me, node)
        for storage in self._world.storages():
            await self._world.call(self._me, storage.name)
            await self._answer(storage.name, self._nodes[storage.name].admit(node, revision))

    async def start(self, ticket: Ticket) -> None:
        """As NodeControl.start."""
        await self._gate()
        await self._promises.start(self._me, ticket)
        try:
            await self._world.call(self._me, ticket.node)
            await self._answer(ticket.node, self._nodes[ticket.node].start(ticket))
        finally:
            self._promises.started(ticket)
        self._world.fails("answer", ticket.domain)
        self._world.starts.append((self._world.now(), ticket.domain, ticket.node))

    async def forecast(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MovePromise:
        """As NodeControl.forecast: the time of the copy."""
        del target, urgent
        await self._gate()
        await self._world.call(self._me, source)
        return MovePromise(gap_ms=GAP_MS, total_ms=self._world.scenario.domains[domain].copy * 1000)

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MoveOutcome:
        """As NodeControl.move. Every copy takes its time, be it urgent or not."""
        del urgent
        await self._gate()
        begun = self._world.now()
        await self._promises.move(self._me, domain, source, target)
        try:
            await self._world.call(self._me, source)
            if not self._world.linked(source, target):
                raise Refused(f"{source} does not hear {target}")
            self._world.moves.append((self._world.now(), domain, target))
            await self._answer(source, self._nodes[source].send(domain, self._nodes[target]), deadline=3600.0)
        finally:
            self._promises.moved(domain)
        total_ms = round((self._world.now() - begun) * 1000, 1)
        return MoveOutcome(result=MoveResult.DONE, paused_ms=GAP_MS, total_ms=total_ms)

    async def end(self, node: str, domain: str, boot: str) -> None:
        """As NodeControl.end."""
        await self._gate()
        await self._promises.end(self._me, node, domain)
        await self._world.call(self._me, node)
        await self._answer(node, self._nodes[node].end(domain, boot))

    async def _gate(self) -> None:
        await self._world.machines[self._me].gate()

    async def _answer(self, node: str, work: Coroutine[Any, Any, T], *, deadline: float = ORDER) -> T:
        """What `node` answers. The work is the node's own: it goes on when we do not, and ends with its power."""
        task = self._world.works(node, work)
        try:
            async with asyncio.timeout(deadline):
                result = await asyncio.shield(task)
        except TimeoutError:
            raise OutcomeUnknown(f"node {node} has not answered") from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise OutcomeUnknown(f"node {node} went away before it answered") from None
            raise
        await self._gate()
        if not (self._world.paths.whole or self._world.linked(self._me, node)):
            await asyncio.sleep(ANSWER)
            raise OutcomeUnknown(f"the answer of node {node} was lost")
        return result
