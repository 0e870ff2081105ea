"""A daemon that is restarted: that it is away stands until the new one's sign of life does."""

from __future__ import annotations

import asyncio

from veery.cluster.keys import ALIVE, INTENTS, MEANS, NODES
from veery.cluster.memory import MemoryStore
from veery.ha import orders
from veery.ha.simulation.clock import run
from veery.host.tasks import stop
from veery.model.cluster import Presence
from veery.model.ha import FenceMethods, IntentKind, NodeIntent
from veery.model.node import Node, Role
from veery.node.fence_methods import FenceMethodsWriter

OLD, NEW = 1.0, 2.0  # when the two daemons began


class LoopClock:
    """The clock of the virtual event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        return 1000.0 + self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def test_away_is_over_only_with_the_new_daemons_presence() -> None:
    async def play() -> None:
        clock = LoopClock()
        store = MemoryStore(clock)
        node = Node(name="test1", address="10.0.0.1", roles=(Role.HYPERVISOR,), driver="qemu")
        await store.commit([], [NODES.put("test1", node)])
        await store.commit([], [ALIVE.put("test1", Presence(node="test1", started=OLD))])
        await orders.away(store, "test1", 60.0, now=0.0)
        writer = FenceMethodsWriter("test1", store, FenceMethods, clock, started=NEW)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(3)
        assert await INTENTS.get(store, "test1"), "only the dead daemon's key stands, and its lease ends any moment"
        await store.commit([], [ALIVE.put("test1", Presence(node="test1", started=NEW))])
        await asyncio.sleep(3)
        assert await INTENTS.get(store, "test1") is None
        assert await MEANS.get(store, "test1") == FenceMethods()
        await orders.intend(store, "test1", NodeIntent(kind=IntentKind.DRAIN))
        await asyncio.sleep(30)
        intent = await INTENTS.get(store, "test1")
        assert intent and intent.kind is IntentKind.DRAIN
        await stop(task)

    run(play())
