"""The store as one simulated node reaches it: late, or not at all, as its machine and its networks are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from veery.cluster.memory import MemoryStore
from veery.cluster.store import Change, Committed, Delete, Entry, Put, Snapshot, StoreUnavailable, Unchanged
from veery.cluster.trust import Trust
from veery.errors import OutcomeUnknown
from veery.ha.simulation.world import ANSWER, World

TRIP = 0.002  # seconds to the store and back
CUT = 0.2  # seconds after which a watch that was cut off tries again
FURTHER = 0.0001  # and for each node of the list so much more: of two that ask at once the first comes first


class NodeStore:
    """A `Store`: the shipped memory store, seen by a node of the simulated world."""

    def __init__(self, world: World, node: str, data: MemoryStore, trust: Trust) -> None:
        self._world, self._node, self.view = world, node, data.view(trust)
        self._trip = TRIP + FURTHER * list(world.machines).index(node)
        self.lose: tuple[str, bool] | None = None  # a key's beginning: the next write to it gets no answer; done or not

    async def _asked(self) -> None:
        """Return when what is asked has arrived; raises StoreUnavailable where it does not."""
        machine = self._world.machines[self._node]
        await machine.gate()
        if not self._world.writes_store(self._node):
            await asyncio.sleep(ANSWER)
            await machine.gate()
            raise StoreUnavailable("the store does not answer", hint="no quorum, or no way to it")
        await asyncio.sleep(self._trip + machine.slow / 2)

    async def _answered(self, *, wrote: bool) -> None:
        """Return when its answer has come. Raises OutcomeUnknown or, where nothing was written, StoreUnavailable."""
        machine = self._world.machines[self._node]
        if machine.slow:
            await asyncio.sleep(machine.slow / 2)
        if not self._world.paths.whole and not self._world.reaches_store(self._node):
            await asyncio.sleep(ANSWER)
            await machine.gate()
            if wrote:
                raise OutcomeUnknown("the store's answer was lost")
            raise StoreUnavailable("the store does not answer", hint="nothing comes back from it")
        await machine.gate()

    async def get(self, key: str) -> Entry | None:
        """As Store.get."""
        await self._asked()
        found = await self.view.get(key)
        await self._answered(wrote=False)
        return found

    async def revision(self) -> int:
        """As Store.revision."""
        await self._asked()
        found = await self.view.revision()
        await self._answered(wrote=False)
        return found

    async def scan(self, prefix: str) -> Snapshot:
        """As Store.scan."""
        await self._asked()
        found = await self.view.scan(prefix)
        await self._answered(wrote=False)
        return found

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """As Store.commit."""
        await self._asked()
        if self.lose and any(operation.key.startswith(self.lose[0]) for operation in operations):
            (_, done_too), self.lose = self.lose, None
            if done_too:
                await self.view.commit(conditions, operations)
            raise OutcomeUnknown("the store's answer was lost")
        done = await self.view.commit(conditions, operations)
        await self._answered(wrote=True)
        return done

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """As Store.watch: silent while the node, or its way to the store, is not there."""
        machine, told = self._world.machines[self._node], after
        async with contextlib.aclosing(self.view.watch(prefix, after)) as changes:
            async for change in changes:
                if change.revision != told:
                    await asyncio.sleep(self._trip)
                    while not self._world.reaches_store(self._node):  # noqa: ASYNC110 (the world has no event for it)
                        await asyncio.sleep(CUT)
                    await machine.gate()
                    told = change.revision
                yield change

    async def grant(self, ttl: int) -> int:
        """As Store.grant."""
        await self._asked()
        lease = await self.view.grant(ttl)
        await self._answered(wrote=True)
        return lease

    async def keep(self, lease: int) -> float:
        """As Store.keep."""
        await self._asked()
        left = await self.view.keep(lease)
        await self._answered(wrote=True)
        return left

    async def revoke(self, lease: int) -> None:
        """As Store.revoke."""
        await self._asked()
        await self.view.revoke(lease)
        await self._answered(wrote=True)

    async def look(self) -> None:
        """As EtcdStore.look."""
        await self._asked()
        await self.view.look()

    async def mark(self, trust: Trust, why: str, epoch: float) -> None:
        """As EtcdStore.mark."""
        await self._asked()
        await self.view.mark(trust, why, epoch)

    def generation(self) -> int:
        """As Store.generation."""
        return self.view.generation()

    async def close(self) -> None:
        """As Store.close."""
        await self.view.close()
