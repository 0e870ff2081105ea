"""Records of the moves that a verdict caused: the forecast, the end, and what prevents a move meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from veery.cluster import owner as owners
from veery.cluster.keys import DISARM, DISARMED, HEALTH_MOVES, OWNERS, RUNS
from veery.cluster.memory import MemoryStore
from veery.errors import Failed, OutcomeUnknown, VeeryError
from veery.ha import moverecord
from veery.ha.act import Actor, Overtaken
from veery.ha.base import NodeControl
from veery.ha.leader import Leadership
from veery.ha.simulation.clock import TrueClock, run
from veery.host.tasks import stop
from veery.model.cluster import Owner
from veery.model.ha import Disarmed, Move, Proof, Rules, Ticket
from veery.model.verdict import HealthMove, MoveOutcome, MovePromise, MoveResult

DONE = MoveOutcome(result=MoveResult.DONE, paused_ms=80.0, total_ms=2100.0)
PROMISE = MovePromise(gap_ms=120.0, total_ms=2000.0)


class Control:
    """Nodes that forecast and move as they are told."""

    def __init__(self) -> None:
        self.moved: list[str] = []
        self.fails: VeeryError | None = None
        self.mute: VeeryError | None = None
        self.foretold: Callable[[], Awaitable[None]] | None = None

    async def forecast(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MovePromise:
        if self.foretold is not None:
            await self.foretold()
        if self.mute is not None:
            raise self.mute
        return PROMISE

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MoveOutcome:
        self.moved.append(domain)
        if self.fails is not None:
            raise self.fails
        return DONE

    async def fence(self, node: str, method: str, absent: float) -> Proof:
        raise NotImplementedError

    async def admit(self, node: str, revision: int) -> None:
        raise NotImplementedError

    async def start(self, ticket: Ticket) -> None:
        raise NotImplementedError

    async def end(self, node: str, domain: str, boot: str) -> None:
        raise NotImplementedError


class Scene:
    """A leader with one order to move domain `a` out of a sick node."""

    def __init__(self) -> None:
        self.clock, self.control = TrueClock(), Control()
        self.store = MemoryStore(self.clock)
        self.leadership = Leadership(self.store, "a", ttl=6, clock=self.clock)
        control: NodeControl = self.control
        self.actor = Actor(self.store, control, self.leadership, self.clock, Rules())

    async def lead(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.leadership.run())
        async with asyncio.timeout(60):
            while not self.leadership.held():
                await asyncio.sleep(0.1)
        return task

    async def order(self, verdict: str = "smart sda: it fails", *, urgent: bool = False) -> str:
        owner = await owners.read(self.store, "a")
        if owner is None:
            await self.store.commit([], [OWNERS.put("a", Owner(domain="a", node="n1", boot="1"))])
            owner = await owners.read(self.store, "a")
        assert owner is not None
        run = await RUNS.get(self.store, "a")
        subject = "domain/a"
        move = Move(subject=subject, reason="-", source="n1", target="n2", owner=owner, verdict=verdict, urgent=urgent)
        return await self.actor.do(dataclasses.replace(move, run=run))


def played(work: Callable[[Scene], Awaitable[None]]) -> None:
    async def play() -> None:
        scene = Scene()
        task = await scene.lead()
        try:
            await work(scene)
        finally:
            await stop(task)

    run(play())


def test_a_move_keeps_its_forecast_and_its_end() -> None:
    async def work(scene: Scene) -> None:
        await scene.order()
        (record,) = await moverecord.records(scene.store)
        assert (record.domain, record.source, record.target) == ("a", "n1", "n2")
        assert (record.reason, record.promised, record.outcome) == ("smart sda: it fails", PROMISE, DONE)

    played(work)


def test_a_move_without_a_verdict_is_not_recorded() -> None:
    async def work(scene: Scene) -> None:
        await scene.order("")
        assert scene.control.moved == ["a"]
        assert await moverecord.records(scene.store) == ()

    played(work)


@pytest.mark.parametrize(
    ("error", "result"),
    [(Failed("no room"), MoveResult.FAILED), (OutcomeUnknown("no answer"), MoveResult.UNKNOWN)],
)
def test_a_move_that_fails_keeps_its_error(error: VeeryError, result: MoveResult) -> None:
    async def work(scene: Scene) -> None:
        scene.control.fails = error
        with pytest.raises(type(error)):
            await scene.order()
        (record,) = await moverecord.records(scene.store)
        assert (record.outcome.result, record.outcome.error) == (result, error.message)
        assert (record.outcome.total_ms, record.promised) == (None, PROMISE)
        told = await RUNS.get(scene.store, "a")
        assert told is not None
        assert told.unmoved == 1

    played(work)


def test_a_domain_moves_without_a_forecast() -> None:
    async def work(scene: Scene) -> None:
        scene.control.mute = Failed("the source does not answer")
        await scene.order()
        (record,) = await moverecord.records(scene.store)
        assert record.promised == MovePromise(why="the source does not answer")
        assert record.outcome == DONE

    played(work)


@pytest.mark.parametrize("urgent", [False, True])
def test_a_forecast_that_takes_too_long_is_not_waited_for(urgent: bool) -> None:
    async def work(scene: Scene) -> None:
        async def endless() -> None:
            await asyncio.sleep(1000)

        scene.control.foretold = endless
        begun = scene.clock.now()  # virtual: nothing else takes time
        await scene.order(urgent=urgent)
        limit_s = moverecord.QUICK_FORECAST_DEADLINE_S if urgent else moverecord.FORECAST_DEADLINE_S
        assert scene.clock.now() - begun == pytest.approx(limit_s, abs=0.5)
        (record,) = await moverecord.records(scene.store)
        assert record.promised.why == f"no forecast within {limit_s:g} s"

    played(work)


@pytest.mark.parametrize("disarmed", [True, False])
def test_a_change_during_the_forecast_prevents_the_move(disarmed: bool) -> None:
    async def work(scene: Scene) -> None:
        async def change() -> None:
            put = (
                DISARM.put(DISARMED, Disarmed(by="anna"))
                if disarmed
                else OWNERS.put("a", Owner(domain="a", node="n3", boot="2"))
            )
            await scene.store.commit([], [put])

        scene.control.foretold = change
        with pytest.raises(Overtaken):
            await scene.order()
        assert scene.control.moved == []
        assert await moverecord.records(scene.store) == ()
        told = await RUNS.get(scene.store, "a")
        assert told is not None
        assert told.unmoved == 0  # no move has failed

    played(work)


def test_a_move_whose_leader_ended_is_unknown() -> None:
    async def work(scene: Scene) -> None:
        order = scene.leadership.guard().revision
        pending = HealthMove(at=1.0, domain="a", source="n1", target="n2", reason="-", term=order)
        await scene.store.commit([], [HEALTH_MOVES.put(f"{1:020}", pending)])
        (record,) = await moverecord.records(scene.store)
        assert record.outcome.result is MoveResult.UNDERWAY
        await scene.store.commit([], [HEALTH_MOVES.put(f"{1:020}", dataclasses.replace(pending, term=order - 1))])
        (record,) = await moverecord.records(scene.store)
        assert record.outcome.result is MoveResult.UNKNOWN

    played(work)


def test_the_oldest_records_are_dropped() -> None:
    async def work(scene: Scene) -> None:
        for number in range(moverecord.KEPT + 10):
            old = HealthMove(at=1.0, domain=f"d{number}", source="n1", target="n2", reason="-")
            await scene.store.commit([], [HEALTH_MOVES.put(f"{number:020}", old)])
        await scene.order()
        found = await moverecord.records(scene.store)
        assert len(found) == moverecord.KEPT
        assert (found[-1].domain, found[-1].outcome) == ("a", DONE)

    played(work)
