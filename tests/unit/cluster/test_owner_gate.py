"""The owner gate: each gate by itself, and all of them together in whatever order, with answers lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import booleans, sampled_from

from veery.cluster import keys
from veery.cluster import owner as owners
from veery.cluster.keys import FENCES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put, StoreUnavailable
from veery.errors import OutcomeUnknown, Refused
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord, Owner, Presence, Reservation
from veery.model.domain import DomainSpec
from veery.model.ha import FenceRecord, FenceState, HaRecord, Policy

RECORD = DomainRecord(spec=DomainSpec(name="busybox"))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(RealClock())


async def test_a_claim_writes_owner_and_record_together(store: MemoryStore) -> None:
    owner = await owners.claim(store, "busybox", "test1", "boot-1", RECORD)
    assert owner == Owner(domain="busybox", node="test1", boot="boot-1", revision=owner.revision)
    assert await owners.read(store, "busybox") == owner
    entry = await store.get("domain/busybox")
    assert entry is not None
    assert entry.revision == owner.revision


async def test_a_claim_of_what_runs_names_the_owner(store: MemoryStore) -> None:
    owner = await owners.claim(store, "busybox", "test2", "boot-1", None)
    with pytest.raises(owners.OwnedElsewhere, match=r"^domain busybox runs on test2$") as refused:
        await owners.claim(store, "busybox", "test1", "boot-2", RECORD)
    assert refused.value.owner == owner
    assert refused.value.hint
    assert await keys.DOMAINS.get(store, "busybox") is None
    with pytest.raises(owners.OwnedElsewhere):
        await owners.claim(store, "busybox", "test2", "boot-2", None)


async def fenced(store: MemoryStore, state: FenceState = FenceState.FENCED) -> None:
    """test2 runs busybox, and its fence stands."""
    await owners.claim(store, "busybox", "test2", "boot-1", RECORD)
    policy = HaRecord(policy=Policy.RESTART)
    proof = FenceRecord(state=state, method="storage", proof="seen")
    await store.commit([], [keys.POLICIES.put("busybox", policy), FENCES.put("test2", proof)])


async def test_a_domain_of_a_node_that_is_proven_fenced_is_taken_by_hand(store: MemoryStore) -> None:
    await fenced(store)
    taken = await owners.reclaim(store, "busybox")
    assert taken is not None
    assert taken.node == "test2"
    run = await keys.RUNS.get(store, "busybox")
    assert run is not None
    assert run.node == "test2", "that node may have its disks"
    assert (await owners.claim(store, "busybox", "test1", "boot-2", RECORD)).node == "test1"
    assert await owners.reclaim(store, "busybox") is None


@pytest.mark.parametrize("state", [FenceState.FENCING, FenceState.FAILED, FenceState.ADMITTING])
async def test_nothing_is_taken_without_the_proof(store: MemoryStore, state: FenceState) -> None:
    await fenced(store, state)
    assert await owners.reclaim(store, "busybox") is None
    assert not await owners.end_of_fenced(store, "busybox")
    with pytest.raises(owners.OwnedElsewhere) as refused:
        await owners.claim(store, "busybox", "test1", "boot-2", RECORD)
    assert refused.value.hint.startswith("test2 does not answer: veery why test2; ")
    policy = await keys.POLICIES.get(store, "busybox")
    assert policy is not None
    assert policy.wanted


async def test_nothing_is_taken_from_a_node_that_is_back(store: MemoryStore) -> None:
    await fenced(store)
    await store.commit([], [keys.ALIVE.put("test2", Presence(node="test2", started=0.0))])
    assert await owners.reclaim(store, "busybox") is None
    with pytest.raises(owners.OwnedElsewhere) as refused:
        await owners.claim(store, "busybox", "test1", "boot-2", RECORD)
    assert refused.value.hint == "move it: veery --node test2 migrate busybox test1"


async def test_what_is_ended_on_a_fenced_node_is_not_wanted_when_it_is_free(store: MemoryStore) -> None:
    await fenced(store)
    assert await owners.end_of_fenced(store, "busybox")
    assert await owners.read(store, "busybox") is None
    policy = await keys.POLICIES.get(store, "busybox")
    assert policy is not None
    assert not policy.wanted


@pytest.mark.parametrize("done", [True, False])
async def test_a_claim_whose_answer_was_lost_is_asked_again(store: MemoryStore, done: bool) -> None:
    store.lose_next_answer(done=done)
    with pytest.raises(OutcomeUnknown):
        await owners.claim(store, "busybox", "test1", "boot-1", None)
    owner = await owners.claim(store, "busybox", "test1", "boot-1", None)
    assert await owners.read(store, "busybox") == owner


async def test_a_release_frees_the_domain_for_its_owner_only(store: MemoryStore) -> None:
    first = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    second = await owners.commit(store, first, promise)
    with pytest.raises(owners.OwnedElsewhere, match="belongs to test2"):
        await owners.release(store, first)
    await owners.reserve(store, "busybox", "move-2", "test2", "test1")
    await owners.release(store, second)
    assert await owners.read(store, "busybox") is None
    assert await owners.reservation(store, "busybox") is None
    await owners.release(store, second)


async def test_one_move_at_a_time(store: MemoryStore) -> None:
    await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    with pytest.raises(Refused, match="busybox is being moved to test2"):
        await owners.reserve(store, "busybox", "move-2", "test1", "test3")
    assert await owners.reserve(store, "busybox", "move-1", "test1", "test2") == promise


async def test_only_what_the_source_owns_can_be_reserved(store: MemoryStore) -> None:
    with pytest.raises(owners.OwnedElsewhere, match="busybox does not run, not on test1"):
        await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    await owners.claim(store, "busybox", "test3", "boot-1", None)
    with pytest.raises(owners.OwnedElsewhere, match="runs on test3, not on test1"):
        await owners.reserve(store, "busybox", "move-1", "test1", "test2")


async def test_commit_gives_the_same_run_to_the_target(store: MemoryStore) -> None:
    source = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    target = await owners.commit(store, source, promise)
    assert (target.node, target.boot) == ("test2", "boot-1")
    assert target.revision > source.revision
    assert await owners.read(store, "busybox") == target
    assert await owners.drop(store, promise) == target
    assert await owners.commit(store, source, promise) == target


async def test_after_a_drop_no_commit_succeeds(store: MemoryStore) -> None:
    source = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    assert await owners.drop(store, promise) == source
    with pytest.raises(owners.OwnedElsewhere, match="not given to test2: test1 owns it") as shut:
        await owners.commit(store, source, promise)
    assert shut.value.owner == source
    again = await owners.reserve(store, "busybox", "move-2", "test1", "test2")
    with pytest.raises(owners.OwnedElsewhere):
        await owners.commit(store, source, promise)
    assert await owners.drop(store, promise) == source
    assert await owners.reservation(store, "busybox") == again


@pytest.mark.parametrize("done", [True, False])
async def test_a_lost_commit_is_settled_by_either_side(store: MemoryStore, done: bool) -> None:
    source = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    store.lose_next_answer(done=done)
    with pytest.raises(OutcomeUnknown):
        await owners.commit(store, source, promise)
    settled = await owners.drop(store, promise)
    assert settled is not None
    assert settled.node == ("test2" if done else "test1")
    assert await owners.drop(store, promise) == settled


async def test_a_domain_that_ended_meanwhile_is_not_committed(store: MemoryStore) -> None:
    source = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    await owners.release(store, source)
    with pytest.raises(owners.OwnedElsewhere, match="it has no owner"):
        await owners.commit(store, source, promise)
    assert await owners.drop(store, promise) is None


async def test_an_owner_that_was_overruled_commits_nothing(store: MemoryStore) -> None:
    source = await owners.claim(store, "busybox", "test1", "boot-1", None)
    promise = await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    await store.commit([], [keys.OWNERS.put("busybox", Owner(domain="busybox", node="test3", boot="boot-2"))])
    with pytest.raises(owners.OwnedElsewhere, match="test3 owns it"):
        await owners.commit(store, source, promise)
    left = await owners.drop(store, promise)
    assert left is not None
    assert left.node == "test3"


async def test_commit_and_drop_at_once(store: MemoryStore) -> None:
    other = store.view()
    for number in range(30):
        name = f"d{number}"
        source = await owners.claim(store, name, "test1", "boot", None)
        promise = await owners.reserve(store, name, "move", "test1", "test2")
        dropped, committed = await asyncio.gather(
            owners.drop(other, promise), owners.commit(store, source, promise), return_exceptions=True
        )
        assert isinstance(dropped, Owner)
        assert isinstance(committed, owners.OwnedElsewhere) == (dropped.node == "test1")
        assert await owners.read(store, name) == dropped


async def test_rename_takes_owner_and_record_along(store: MemoryStore) -> None:
    owner = await owners.claim(store, "busybox", "test1", "boot-1", RECORD)
    renamed = await owners.rename(store, "busybox", "box")
    assert renamed is not None
    assert (renamed.domain, renamed.node, renamed.boot) == ("box", "test1", "boot-1")
    assert await owners.read(store, "box") == renamed
    record = await keys.DOMAINS.get(store, "box")
    assert record is not None
    assert record.spec.name == "box"
    assert await owners.read(store, "busybox") is None
    assert await keys.DOMAINS.get(store, "busybox") is None
    with pytest.raises(Refused, match="no domain 'busybox'"):
        await owners.rename(store, "busybox", "other")
    await owners.claim(store, "busybox", "test1", owner.boot, RECORD)
    with pytest.raises(Refused, match="the name busybox is taken"):
        await owners.rename(store, "box", "busybox")
    await owners.reserve(store, "box", "move-1", "test1", "test2")
    with pytest.raises(Refused, match="box is being moved"):
        await owners.rename(store, "box", "free")


async def test_a_domain_that_does_not_run_is_renamed_too(store: MemoryStore) -> None:
    await store.commit([], [keys.DOMAINS.put("busybox", RECORD)])
    assert await owners.rename(store, "busybox", "box") is None
    assert list(await keys.DOMAINS.all(store)) == ["box"]


NODES = ["test1", "test2", "test3"]


@dataclass
class Move:
    """One move as its two ends see it. `source`: running, paused, unsure (COMMIT's answer was lost), given, ended.
    `target`: half (a paused copy), runs, gone. `over`: the domain has ended, on whichever of the two it was."""

    number: int
    owner: Owner
    to: str
    promise: Reservation | None = None
    source: str = "running"
    target: str = "half"
    dropped: bool = False
    over: bool = False


def drive(call: Coroutine[Any, Any, Any]) -> Any:
    """What `call` gives; the store in memory only ever lets others run, so no event loop is needed."""
    while True:
        try:
            call.send(None)
        except StopIteration as end:
            return end.value


class Gate(RuleBasedStateMachine):
    """Two ends and a starter act in any order, each by what the gate tells it and nothing else; answers get lost
    and the store goes away. Wherever this leads, no two copies run."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(RealClock())
        self.runs: dict[str, str] = {}  # node -> the boot that runs there
        self.claiming: tuple[str, str] | None = None
        self.releasing: Owner | None = None
        self.move: Move | None = None
        self.count = 0

    def teardown(self) -> None:
        """Both ends settle: the domain is on one of them, or has ended."""
        self.store.set_available(True)
        self.store._lose = None
        move = self.move
        if move and move.promise:
            if move.source != "given":
                self.source_backs_out()
            if move.target == "half":
                self.target_backs_out()
            assert self.move is None
            moved = [node for node, boot in self.runs.items() if boot == move.owner.boot]
            assert len(moved) == (0 if move.over else 1)
        self.check()

    def ask(self, call: Coroutine[Any, Any, Any]) -> tuple[str, Any]:
        """How `call` ended: done, refused, absent (surely not done), unsure."""
        try:
            return "done", drive(call)
        except StoreUnavailable:
            return "absent", None
        except Refused as error:
            return "refused", error
        except OutcomeUnknown:
            return "unsure", None

    def now(self) -> Owner | None:
        """The truth, behind the back of every fault."""
        return drive(owners.read(self.store.view(), "d"))

    @rule(done=booleans())
    def lose_an_answer(self, done: bool) -> None:
        self.store.lose_next_answer(done=done)

    @rule(there=booleans())
    def store_comes_and_goes(self, there: bool) -> None:
        self.store.set_available(there)

    @rule(node=sampled_from(NODES))
    def somebody_starts_it(self, node: str) -> None:
        if self.claiming is None:
            self.count += 1
            self.claiming = (node, f"boot-{self.count}")
        how, told = self.ask(owners.claim(self.store, "d", *self.claiming, None))
        if how == "done":
            self.runs[self.claiming[0]] = self.claiming[1]
        if how == "refused":
            assert told.owner == self.now()
        if how in ("done", "refused"):
            self.claiming = None

    @precondition(lambda self: self.runs and self.releasing is None)
    @rule()
    def it_ends(self) -> None:
        how, owner = self.ask(owners.read(self.store, "d"))
        if how == "done" and owner and self.runs.pop(owner.node, None):
            self.releasing = owner
            if self.move and self.move.owner.boot == owner.boot:
                self.move.over = True
            if self.move and self.move.owner.node == owner.node and self.move.source == "running":
                self.move.source = "ended"

    @precondition(lambda self: self.releasing is not None)
    @rule()
    def its_end_is_told(self) -> None:
        assert self.releasing is not None
        how, _ = self.ask(owners.release(self.store, self.releasing))
        if how in ("done", "refused"):
            assert self.now() != self.releasing
            self.releasing = None

    @precondition(lambda self: self.runs and self.move is None)
    @rule(node=sampled_from(NODES))
    def a_move_begins(self, node: str) -> None:
        how, owner = self.ask(owners.read(self.store, "d"))
        if how == "done" and owner and owner.node != node and self.runs.get(owner.node) == owner.boot:
            self.count += 1
            self.move = Move(self.count, owner, node)
            self.the_target_promises()

    @precondition(lambda self: self.move and self.move.promise is None)
    @rule()
    def the_target_promises(self) -> None:
        move = self.move
        assert move is not None
        how, told = self.ask(owners.reserve(self.store, "d", f"m{move.number}", move.owner.node, move.to))
        if how == "done":
            move.promise = told
        elif how == "refused":
            self.move = None

    @precondition(lambda self: self.move and self.move.promise)
    @rule(node=sampled_from(NODES))
    def a_second_move_is_refused(self, node: str) -> None:
        move = self.move
        assert move is not None
        before = drive(owners.reservation(self.store.view(), "d"))
        if before == move.promise:
            how, _ = self.ask(owners.reserve(self.store, "d", "other", move.owner.node, node))
            assert how != "done"
            assert drive(owners.reservation(self.store.view(), "d")) == before

    @precondition(lambda self: self.move and self.move.promise and self.move.source == "running")
    @rule()
    def the_source_pauses(self) -> None:
        move = self.move
        assert move is not None
        assert self.runs.pop(move.owner.node) == move.owner.boot
        move.source = "paused"

    @precondition(lambda self: self.move and self.move.source == "paused")
    @rule()
    def the_source_commits(self) -> None:
        move = self.move
        assert move is not None
        assert move.promise is not None
        how, told = self.ask(owners.commit(self.store, move.owner, move.promise))
        if how == "done":
            assert not move.dropped
            assert told.node == move.to
            move.source = "given"
        elif how == "refused":
            self._source_obeys(told.owner)
        elif how == "unsure":
            move.source = "unsure"

    @precondition(lambda self: self.move and self.move.promise and self.move.source != "given")
    @rule()
    def source_backs_out(self) -> None:
        move = self.move
        assert move is not None
        assert move.promise is not None
        how, told = self.ask(owners.drop(self.store, move.promise))
        if how == "done":
            move.dropped = move.dropped or told is None or told.node != move.to
            if move.source in ("paused", "unsure"):
                self._source_obeys(told)

    @precondition(lambda self: self.move and self.move.promise and self.move.target == "half")
    @rule()
    def target_backs_out(self) -> None:
        move = self.move
        assert move is not None
        assert move.promise is not None
        how, told = self.ask(owners.drop(self.store, move.promise))
        if how == "done":
            if told and (told.node, told.boot) == (move.to, move.owner.boot):
                self.runs[move.to] = move.owner.boot
                move.target = "runs"
            else:
                move.dropped, move.target = True, "gone"
        self._forget()

    @precondition(lambda self: self.move and self.move.source == "given" and self.move.target == "half")
    @rule()
    def target_is_told_to_go_on(self) -> None:
        move = self.move
        assert move is not None
        how, told = self.ask(owners.read(self.store, "d"))
        if how == "done" and told and (told.node, told.boot) == (move.to, move.owner.boot):
            self.runs[move.to] = move.owner.boot
            move.target = "runs"
        self._forget()

    def _source_obeys(self, owner: Owner | None) -> None:
        move = self.move
        assert move is not None
        if owner == move.owner:
            self.runs[owner.node] = owner.boot
            move.source = "running"
        else:
            move.source = "given"
        self._forget()

    def _forget(self) -> None:
        """A move is over when both ends know."""
        move = self.move
        if move and move.target != "half" and move.source in ("running", "given", "ended"):
            self.move = None

    @invariant()
    def check(self) -> None:
        owner = self.now()
        assert len(self.runs) <= 1, f"two copies run: {self.runs}"
        for node, boot in self.runs.items():
            assert owner is not None
            assert (owner.node, owner.boot) == (node, boot)


TestGate = Gate.TestCase
TestGate.settings = settings(max_examples=120, stateful_step_count=50, deadline=None, database=None)


def test_a_domain_may_end_at_its_target_before_the_source_knows_that_it_went() -> None:
    gate = Gate()
    gate.somebody_starts_it(node="test1")
    gate.a_move_begins(node="test2")
    gate.the_source_pauses()
    gate.lose_an_answer(done=True)
    gate.the_source_commits()
    gate.target_backs_out()
    assert gate.runs == {"test2": "boot-1"}
    gate.it_ends()
    gate.its_end_is_told()
    gate.teardown()
    assert (gate.runs, gate.move, gate.now()) == ({}, None, None)


async def test_a_fenced_node_claims_nothing(store: MemoryStore) -> None:
    """Neither for a user: what it would start, the guard would stop."""
    fence = FENCES.put("test1", FenceRecord(state=FenceState.FENCING))
    for put in (fence, Put(FENCES.key("test1"), b"not to be read")):
        await store.commit([], [put])
        with pytest.raises(Refused, match="test1 is fenced: it starts nothing"):
            await owners.claim(store, "busybox", "test1", "boot-1", RECORD)
        assert await owners.read(store, "busybox") is None
    assert (await owners.claim(store, "other", "test2", "boot-1", None)).node == "test2"
    await store.commit([], [Delete(FENCES.key("test1"))])
    assert (await owners.claim(store, "busybox", "test1", "boot-1", RECORD)).node == "test1"


async def test_nothing_is_moved_to_a_fenced_node(store: MemoryStore) -> None:
    await owners.claim(store, "busybox", "test1", "boot-1", RECORD)
    await store.commit([], [FENCES.put("test2", FenceRecord(state=FenceState.FENCED))])
    with pytest.raises(Refused, match="test2 is fenced"):
        await owners.reserve(store, "busybox", "move-1", "test1", "test2")
    assert await owners.reservation(store, "busybox") is None
    await store.commit([], [Delete(FENCES.key("test2"))])
    assert (await owners.reserve(store, "busybox", "move-1", "test1", "test2")).target == "test2"
