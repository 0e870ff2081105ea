"""One leader at a time, who stops before another can begin; who is absent since when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from veery.cluster.keys import ALIVE, EVENTS, NODES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put, Unchanged
from veery.errors import Refused
from veery.ha import orders
from veery.ha.journal import Journal, last
from veery.ha.leader import Leadership, NotLeader
from veery.ha.observer import StoreObserver
from veery.ha.simulation.clock import run
from veery.host.tasks import stop
from veery.model.cluster import Presence
from veery.model.ha import Event, Level, NodeReading, Policy, Rules, StorageHeartbeats, Ticket
from veery.model.node import Node, Role


class LoopClock:
    """The clock of the virtual event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        return 1000.0 + self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Blind:
    """Probes that tell nothing."""

    async def signs(self) -> StorageHeartbeats:
        return StorageHeartbeats(witnesses=1)

    async def readings(self) -> Mapping[str, NodeReading]:
        return {}


def test_a_cut_off_leader_stops_before_another_begins() -> None:
    async def play() -> None:
        clock = LoopClock()
        store = MemoryStore(clock)
        views = {name: store.view() for name in ("a", "b")}
        both = {name: Leadership(view, name, ttl=6, clock=clock) for name, view in views.items()}
        tasks = [asyncio.create_task(each.run()) for each in both.values()]
        await asyncio.sleep(5)
        (leads,) = [name for name, each in both.items() if each.held()]
        other = "b" if leads == "a" else "a"
        views[leads].set_available(False)
        for _ in range(200):
            await asyncio.sleep(0.1)
            assert not (both["a"].held() and both["b"].held())
        assert both[other].held()
        with pytest.raises(NotLeader):
            both[leads].guard()
        views[leads].set_available(True)
        await asyncio.sleep(20)
        assert both[other].held()
        assert not both[leads].held()
        await both[other].resign()
        await asyncio.sleep(3)
        assert both["a"].held() != both["b"].held()
        await stop(*tasks)

    run(play())


def test_an_absence_is_counted_from_its_first_sight_and_forgotten_after_a_pause() -> None:
    async def play() -> None:
        clock = LoopClock()
        store = MemoryStore(clock)
        observer = StoreObserver(store, Blind(), clock, Rules())
        following = asyncio.create_task(observer.run())
        node = Node(name="n", address="n", roles=(Role.HYPERVISOR,))
        await store.commit([], [NODES.put("n", node), ALIVE.put("n", Presence(node="n", started=1.0))])

        async def look(pause: float) -> tuple[float | None, float | None]:
            await asyncio.sleep(pause)
            seen = (await observer.observe()).nodes["n"]
            return seen.present, seen.absent

        assert await look(0) == (0.0, None)
        assert await look(2) == (2.0, None)
        await store.commit([], [Delete(ALIVE.key("n"))])
        assert await look(1) == (None, 0.0)
        assert await look(3) == (None, 3.0)
        assert await look(3) == (None, 6.0)
        assert await look(5) == (None, 0.0), "nothing was seen for longer than `blind`"
        store.set_available(False)
        await asyncio.sleep(1)
        assert not (await observer.observe()).quorum
        store.set_available(True)
        assert await look(1) == (None, 0.0)
        await stop(following)

    run(play())


def test_a_ticket_of_an_earlier_order_opens_no_gate() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        first = await store.commit([], [Put("run/d", b"{}")])
        second = await store.commit([], [Put("run/d", b"{}")])
        with pytest.raises(Refused, match="out of date"):
            await orders.claim(store, Ticket(domain="d", node="n", revision=first.revision), "boot1")
        ticket = Ticket(domain="d", node="n", revision=second.revision)
        await store.commit([], [Put("fence/n", b"{}")])
        with pytest.raises(Refused):
            await orders.claim(store, ticket, "boot1")
        await store.commit([], [Delete("fence/n")])
        owner = await orders.claim(store, ticket, "boot1")
        assert (owner.node, owner.boot) == ("n", "boot1")
        assert await orders.claim(store, ticket, "boot1") == owner

    run(play())


def test_a_policy_for_an_unknown_domain_is_refused() -> None:
    async def play() -> None:
        with pytest.raises(Refused, match="no domain 'moon'"):
            await orders.set_policy(MemoryStore(LoopClock()), "moon", Policy.RESTART)

    run(play())


def test_events_are_written_while_the_guard_holds_and_the_oldest_are_dropped() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        held = await store.commit([], [Put("leader", b"{}")])
        journal = Journal(store, keep=100)
        for number in range(230):
            journal.add(Event(at=number, level=Level.INFO, what="x", subject="node/n", text=str(number)))
            await journal.flush(Unchanged("leader", held.revision))
        kept = await last(store, 1000)
        assert kept[-1].text == "229"
        assert 100 <= len(kept) <= 201
        assert [each.text for each in await last(store, 2)] == ["228", "229"]
        journal.add(Event(at=1000, level=Level.INFO, what="x", subject="node/n", text="late"))
        await journal.flush(Unchanged("leader", held.revision + 1))
        assert (await last(store, 1))[0].text == "229"
        assert EVENTS.prefix == "event/"

    run(play())
