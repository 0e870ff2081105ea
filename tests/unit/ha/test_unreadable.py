"""A record that cannot be read: it is told by name, what it is about is left alone, everything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from veery.cluster import keys
from veery.cluster.keys import (
    ALIVE,
    DISARMED,
    DOMAINS,
    EVENTS,
    FENCES,
    GROUPS,
    HISTORIES,
    INTENTS,
    MEANS,
    NODES,
    OWNERS,
    POLICIES,
    RESERVATIONS,
    RUNS,
    Kind,
    Unreadable,
)
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put, Store
from veery.errors import Failed
from veery.ha import drainplan
from veery.ha.decide import decide
from veery.ha.journal import last
from veery.ha.observer import StoreObserver
from veery.ha.simulation.clock import run
from veery.ha.states import NodeState, judge
from veery.ha.why import why
from veery.host.tasks import stop
from veery.model.cluster import DomainRecord, Owner, Presence
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.ha import (
    Action,
    ClusterView,
    Event,
    FenceMethods,
    FenceRecord,
    FenceState,
    Group,
    HaRecord,
    Level,
    NodeReading,
    Note,
    Policy,
    Rules,
    RunningCopy,
    Start,
    StorageHeartbeat,
    StorageHeartbeats,
)
from veery.model.node import Node, Role

RULES = Rules()
GARBAGE = (b"", b"\xff\x00", b'{"made": "by a newer veery"', b"[1]", b'"a word"')
OF_A_NODE: tuple[Kind[Any], ...] = (NODES, ALIVE, MEANS, FENCES, INTENTS, HISTORIES)
OF_A_DOMAIN: tuple[Kind[Any], ...] = (DOMAINS, OWNERS, RUNS, POLICIES, RESERVATIONS)
LATER = 40.0  # seconds after which every node that is there is in use, and one that is lost is lost


class LoopClock:
    """The clock of the virtual event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        return 1000.0 + self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Told:
    """Probes: every node answers, unless it is one of `silent`; `copies` by node."""

    def __init__(self, *silent: str, copies: Mapping[str, tuple[RunningCopy, ...]] | None = None) -> None:
        self.silent, self.copies = silent, copies or {}

    async def signs(self) -> StorageHeartbeats:
        ages = {name: StorageHeartbeat(age=100.0 if name in self.silent else 0.1) for name in ("n1", "n2", "n3")}
        return StorageHeartbeats(witnesses=1, ages=ages)

    async def readings(self) -> Mapping[str, NodeReading]:
        names = [name for name in ("n1", "n2", "n3") if name not in self.silent]
        return {name: NodeReading(started=1.0, room=4096, copies=self.copies.get(name, ())) for name in names}


async def furnish(store: Store, *silent: str) -> None:
    """Three hypervisors and a storage node; d1 on n1 in group g; d2 on n2; d3 waits to be started."""
    puts: list[Put | Delete] = []
    for name in ("n1", "n2", "n3", "stor"):
        role = Role.STORAGE if name == "stor" else Role.HYPERVISOR
        puts.append(NODES.put(name, Node(name=name, address=name, roles=(role,))))
        puts.append(MEANS.put(name, FenceMethods(methods=("storage",))))
        if name not in silent:
            puts.append(ALIVE.put(name, Presence(node=name, started=1.0)))
    puts.append(GROUPS.put("g", Group(nodes=("n1", "n2", "n3"))))
    for name, node in {"d1": "n1", "d2": "n2", "d3": ""}.items():
        spec = DomainSpec(name=name, memory=64, disks=(DiskSpec(vdev="xvda", volume=name),))
        puts.append(DOMAINS.put(name, DomainRecord(spec=spec)))
        puts.append(POLICIES.put(name, HaRecord(policy=Policy.RESTART, group="g" if name == "d1" else "")))
        if node:
            puts.append(OWNERS.put(name, Owner(domain=name, node=node, boot=f"{name}-1")))
    await store.commit([], puts)


async def look(store: Store, probes: Told, *broken: tuple[str, bytes], lead: float = LATER) -> ClusterView:
    """The view, `lead` seconds after the records named in `broken` became unreadable."""
    observer = StoreObserver(store, probes, LoopClock(), RULES)
    following = asyncio.create_task(observer.run())
    try:
        await observer.observe()
        await store.commit([], [Put(key, value) for key, value in broken])
        for _ in range(int(lead)):
            await asyncio.sleep(1)
            view = await observer.observe()
        assert view.quorum
        return view
    finally:
        await stop(following)


def judged(view: ClusterView) -> tuple[list[Action], list[Note]]:
    """What is to be done, and what is said."""
    found = decide(view, 2000.0, RULES)
    return [each for each in found if not isinstance(each, Note)], [each for each in found if isinstance(each, Note)]


@pytest.mark.parametrize("kind", OF_A_NODE, ids=lambda kind: kind.prefix)
@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_a_node_with_a_record_that_cannot_be_read_is_left_alone(kind: Kind[Any], value: bytes) -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store, "n1")
        view = await look(store, Told("n1"), (kind.key("n1"), value))
        assert judge(view, 2000.0, RULES)["n1"] is NodeState.UNREADABLE
        actions, notes = judged(view)
        assert [(type(each), each.subject) for each in actions] == [(Start, "domain/d3")], "the rest goes on"
        (said,) = [note for note in notes if note.subject == "node/n1"]
        assert said.level is Level.ALARM
        assert f"{kind.prefix}n1 cannot be read" in said.reason
        assert any(f"{kind.prefix}n1 cannot be read" in line for line in why(view, "n1", 2000.0, RULES))
        plan = drainplan.plan(view, "n1", 2000.0, RULES)
        assert any(f"{kind.prefix}n1" in blocker for blocker in plan.blockers)

    run(play())


@pytest.mark.parametrize("kind", [*OF_A_DOMAIN, GROUPS], ids=lambda kind: kind.prefix)
@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_a_domain_with_a_record_that_cannot_be_read_is_left_alone(kind: Kind[Any], value: bytes) -> None:
    """Its node is proven fenced: d1 would start elsewhere, were it not for that record."""

    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store, "n1")
        proof = FenceRecord(state=FenceState.FENCED, method="storage", proof="seen")
        await store.commit([], [FENCES.put("n1", proof)])
        assert "domain/d1" in {each.subject for each in judged(await look(store, Told("n1")))[0]}
        name = "g" if kind is GROUPS else "d1"
        view = await look(store, Told("n1"), (kind.key(name), value))
        actions, notes = judged(view)
        assert [(type(each), each.subject) for each in actions] == [(Start, "domain/d3")], "the rest goes on"
        (said,) = [note for note in notes if note.subject == "domain/d1"]
        assert said.level is Level.ALARM
        assert f"{kind.prefix}{name} cannot be read" in said.reason
        assert any(f"{kind.prefix}{name} cannot be read" in line for line in why(view, "d1", 2000.0, RULES))

    run(play())


def test_while_it_cannot_be_read_who_disarmed_the_cluster_it_is_disarmed() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store)
        view = await look(store, Told(), (DISARMED, b"\x00"))
        actions, notes = judged(view)
        assert actions == []
        assert [note.subject for note in notes] == ["cluster"]
        assert "disarmed cannot be read" in notes[0].reason

    run(play())


def test_a_copy_whose_owner_cannot_be_read_is_not_taken_for_an_old_one() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store)
        await store.commit([], [FENCES.put("n1", FenceRecord(state=FenceState.FENCED, method="storage"))])
        probes = Told(copies={"n1": (RunningCopy(domain="d1", boot="d1-1"),)})
        view = await look(store, probes, (OWNERS.key("d1"), b"?"))
        actions, notes = judged(view)
        assert {each.subject for each in actions} == {"domain/d3"}, "neither is it ended, nor the node let in"
        assert any(note.subject == "node/n1" and "not admitted" in note.reason for note in notes)

    run(play())


def test_a_node_that_was_never_known_proves_nothing_by_its_silence() -> None:
    """It may serve storage: then not all storage nodes tell of heartbeats, and no watchdog is taken for fired."""

    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store, "n1")
        await store.commit(
            [], [MEANS.put("n1", FenceMethods(methods=("watchdog",), watchdog=5.0)), Put("node/x", b"?")]
        )
        actions, _ = judged(await look(store, Told("n1")))
        assert {each.subject for each in actions} == {"domain/d3"}
        await store.commit([], [Delete("node/x")])
        actions, _ = judged(await look(store, Told("n1")))
        assert {each.subject for each in actions} == {"domain/d3", "node/n1"}

    run(play())


def test_a_record_that_is_mended_is_believed_again() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store)
        observer = StoreObserver(store, Told(), LoopClock(), RULES)
        following = asyncio.create_task(observer.run())
        for value, bad in ((b"?", True), (None, False)):
            put = Put(POLICIES.key("d2"), value) if value else POLICIES.put("d2", HaRecord(priority=7))
            await store.commit([], [put])
            view = await observer.observe()
            assert bool(view.domains["d2"].unreadable) is bad
        assert view.domains["d2"].ha.priority == 7
        await stop(following)

    run(play())


def test_every_record_that_cannot_be_read_is_found_by_name() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store)
        assert await keys.unreadable(store) == []
        names = {kind.key("bad") for kind in keys.KINDS} | {keys.LEADER, keys.DISARMED}
        await store.commit([], [Put(name, b"?") for name in names])
        found = await keys.unreadable(store)
        assert {error.key for error in found} == names
        assert all(error.message.startswith(f"{error.key} cannot be read: ") for error in found)
        assert all("\n" not in error.message for error in found)

    run(play())


def test_events_that_cannot_be_read_are_passed_over() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        event = Event(at=1.0, level=Level.INFO, what="x", subject="node/n", text="told")
        await store.commit([], [EVENTS.put("1", event), Put(EVENTS.key("2"), b"?"), EVENTS.put("3", event)])
        assert await last(store, 10) == (event, event)

    run(play())


def test_who_needs_all_records_is_told_which_is_wrong() -> None:
    async def play() -> None:
        store = MemoryStore(LoopClock())
        await furnish(store)
        await store.commit([], [Put(NODES.key("n2"), b"?")])
        with pytest.raises(Unreadable, match="node/n2 cannot be read") as raised:
            await NODES.all(store)
        assert isinstance(raised.value, Failed)
        assert raised.value.hint
        assert list(await NODES.readable(store)) == ["n1", "n3", "stor"]
        assert (await keys.node_at(store, "n1")).name == "n1"
        with pytest.raises(Unreadable, match="node/n2"):
            await keys.node_at(store, "n2")

    run(play())
