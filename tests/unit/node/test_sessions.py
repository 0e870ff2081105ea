"""Sessions under another node's name: found, closed, told once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from veery.cluster import keys
from veery.cluster.memory import MemoryStore
from veery.cluster.store import StoreUnavailable
from veery.errors import Failed
from veery.host.clock import RealClock
from veery.model.health import Level
from veery.model.node import Node, Role
from veery.node.sessions import CLOSE_LOOK_S, QUIET_S, TOLD_S, SessionWatch
from veery.storage.sessions import Stranger, alone, homes, strangers
from veery.storage.tgtoutput import Connection, Session, Target

ONE = Node(name="one", address="10.0.0.1", roles=(Role.HYPERVISOR,), initiator="iqn.x:node:one")
TWO = Node(
    name="two",
    address="fd00::2",
    relocation_address="10.0.1.2",
    roles=(Role.HYPERVISOR,),
    initiator="iqn.x:node:two",
)
KNOWN = homes([ONE, TWO, Node(name="bare", address="10.0.0.9", roles=(Role.VOTER,))])


def target(*sessions: tuple[str, str]) -> Target:
    return Target(
        tid=3,
        iqn="iqn.x:web",
        state="ready",
        sessions=tuple(
            Session(sid=number, initiator=name, connections=(Connection(cid=0, address=address),))
            for number, (name, address) in enumerate(sessions, 1)
        ),
    )


def judged(name: str, address: str) -> list[tuple[str, str]]:
    return [(each.claims, each.node) for each in strangers([target((name, address))], KNOWN)]


def test_a_session_is_judged_by_the_address_it_comes_from() -> None:
    assert judged(ONE.initiator, "10.0.0.1") == []
    assert judged(TWO.initiator, "FD00:0::2") == []
    assert judged(TWO.initiator, "10.0.1.2") == []
    assert judged(TWO.initiator, "10.0.0.1") == [("two", "one")]
    assert judged(ONE.initiator, "fd00::2") == [("one", "two")]
    assert judged(ONE.initiator, "10.0.1.2") == [("one", "two")]
    assert judged(ONE.initiator, "10.9.9.9") == [("one", "")]
    assert judged(ONE.initiator, "") == []  # closed already, its last I/O under way
    assert judged("iqn.x:nobody", "10.0.0.1") == []  # the reconciliation's


def test_an_address_that_two_nodes_have_tells_nothing() -> None:
    same = homes([ONE, replace(TWO, address=ONE.address)])
    assert strangers([target((ONE.initiator, "10.0.0.1"), (TWO.initiator, "10.0.0.1"))], same) == ()
    assert alone(same, ONE.initiator) == frozenset()
    assert alone(same, TWO.initiator) == {"10.0.1.2"}
    assert alone(KNOWN, ONE.initiator) == {"10.0.0.1"}
    assert alone(KNOWN, "iqn.x:nobody") == frozenset()


class Ahead(RealClock):
    """A clock that can be put forward."""

    ahead = 1000.0

    def now(self) -> float:
        return self.ahead


class Served:
    """What a tgtd shows; `expelled` are the sessions that were closed."""

    def __init__(self) -> None:
        self.shown: tuple[Target, ...] = ()
        self.expelled: list[int] = []
        self.hangs = False

    async def targets(self) -> tuple[Target, ...]:
        if self.hangs:
            raise Failed("tgtd does not answer")
        return self.shown

    async def expel(self, strangers: Iterable[Stranger]) -> None:
        gone = [each.sid for each in strangers]
        self.expelled += gone
        left = [each for each in self.shown[0].sessions if each.sid not in gone]
        self.shown = (replace(self.shown[0], sessions=tuple(left)),)


async def test_another_nodes_name_is_closed_each_time_and_told_once() -> None:
    store, served, clock = MemoryStore(RealClock()), Served(), Ahead()
    await store.commit([], [keys.NODES.put("one", ONE), keys.NODES.put("two", TWO)])
    watch = SessionWatch("stor", store, served, clock)
    served.shown = (target((ONE.initiator, ONE.address), (TWO.initiator, TWO.address)),)
    assert await watch.look() == ()
    assert watch.finding().level is Level.OK
    for _ in range(3):
        served.shown = (
            target((ONE.initiator, ONE.address), (ONE.initiator, TWO.address), (TWO.initiator, "10.9.9.9")),
        )
        await watch.look()
        clock.ahead += CLOSE_LOOK_S
    assert served.expelled == [2, 2, 2]
    (event,) = (await keys.EVENTS.all(store)).values()
    assert (event.what, event.subject) == ("foreign-session", "two")
    assert "two logged in to iqn.x:web on stor as one" in event.text
    assert (watch.finding().level, watch.finding().told) == (Level.BAD, "two logged in as one")
    clock.ahead += QUIET_S
    served.shown = (target((ONE.initiator, TWO.address)),)
    await watch.look()
    assert len(await keys.EVENTS.all(store)) == 2
    clock.ahead += TOLD_S
    served.shown = (target((ONE.initiator, "10.9.9.9")),)
    await watch.look()
    assert served.expelled == [2, 2, 2, 1]  # what comes from no node's address stays, and is told
    assert watch.finding().level is Level.WARN
    assert "10.9.9.9, which is not a node's address" in watch.finding().told


class Away(MemoryStore):
    """A store that can be away."""

    away = False

    async def scan(self, prefix: str):  # type: ignore[no-untyped-def]
        if self.away:
            raise StoreUnavailable("no quorum")
        return await super().scan(prefix)


async def test_the_watch_goes_on_without_the_store() -> None:
    store, served = Away(RealClock()), Served()
    await store.commit([], [keys.NODES.put("one", ONE), keys.NODES.put("two", TWO)])
    watch = SessionWatch("stor", store, served, RealClock())
    served.shown = (target((ONE.initiator, ONE.address)),)
    await watch.look()
    store.away = True
    served.shown = (target((ONE.initiator, ONE.address), (ONE.initiator, TWO.address)),)
    assert [each.node for each in await watch.look()] == ["two"]
    assert served.expelled == [2]
