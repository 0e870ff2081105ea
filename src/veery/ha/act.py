"""Carries out each action of a decision. Every write is guarded by the leader's key and by the records that the
decision read.

An action can be repeated: it skips what is done and does the rest. A guard that no longer holds is not an error. The
cluster has changed, and the next observation shows how."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from veery.cluster.keys import ALIVE, FENCES, HISTORIES, INTENTS, OWNERS, POLICIES, RESERVATIONS, RUNS
from veery.cluster.store import Committed, Delete, Put, Store, Unchanged
from veery.errors import Failed, OutcomeUnknown, VeeryError
from veery.ha.base import NodeControl
from veery.ha.leader import Leadership, NotLeader
from veery.ha.moverecord import MoveRecords, failure
from veery.ha.orders import fenced_at
from veery.host.clock import Clock
from veery.model import newer
from veery.model.ha import (
    Action,
    Admit,
    Clear,
    Drop,
    End,
    Fence,
    FenceRecord,
    FenceState,
    GiveUpRound,
    Move,
    Release,
    Rules,
    RunRecord,
    Start,
    Steady,
    Ticket,
)

T = TypeVar("T")


class Overtaken(Failed):
    """The records that the action was decided on have changed. Nothing was done; observe again."""


class Actor:
    """Carries actions out through `NodeControl`, and keeps their records in the store."""

    def __init__(self, store: Store, control: NodeControl, leadership: Leadership, clock: Clock, rules: Rules) -> None:
        """The caller shares all of these with others."""
        self._store, self._control, self._leadership, self._clock, self._rules = (
            store,
            control,
            leadership,
            clock,
            rules,
        )
        self._records = MoveRecords(store, control, leadership, clock)

    async def do(self, action: Action) -> str:
        """Carry out `action` and return its outcome as a sentence.

        Raises Overtaken, NotLeader, Refused, Failed, OutcomeUnknown."""
        self._leadership.guard()
        match action:
            case Fence():
                return await self._fence(action)
            case GiveUpRound():
                return await self._give_up(action)
            case Admit():
                return await self._admit(action)
            case Release():
                return await self._release(action)
            case Start():
                return await self._start(action)
            case Move():
                return await self._move(action)
            case End():
                return await self._end(action)
            case Drop():
                await self._commit(
                    [Unchanged(RESERVATIONS.key(action.name), action.promise.revision)],
                    [Delete(RESERVATIONS.key(action.name))],
                )
                return "the promise is taken away"
            case Steady():
                run = dataclasses.replace(action.run, tries=0, failed=(), error="")
                await self._put_run(action.name, run, action.run.revision)
                return "tries forgotten"
            case Clear():
                await self._commit(
                    [Unchanged(INTENTS.key(action.name), action.intent.revision)], [Delete(INTENTS.key(action.name))]
                )
                return "in use again"
        raise Failed(f"no code carries out the action {type(action).__name__}")

    # ---- fences
    async def _fence(self, action: Fence) -> str:
        name, old = action.name, action.record
        same_round = old is not None and (
            old.state is FenceState.FENCING
            or (old.state is FenceState.FAILED and action.method not in {method for method, _ in old.tried})
        )
        if old is not None and same_round:
            begun = dataclasses.replace(old, state=FenceState.FENCING, method=action.method, at=self._clock.epoch())
        else:
            number = old.round + 1 if old is not None and old.state is FenceState.FAILED else 1
            fresh = FenceRecord(state=FenceState.FENCING, method=action.method, round=number, at=self._clock.epoch())
            begun = newer.kept(fresh, old)
        begun = await self._put_fence(name, begun, old, absent=True)
        try:
            proof = await self._within(
                self._rules.fence_deadline, self._control.fence(name, action.method, action.absent), "no answer in time"
            )
        except VeeryError as error:
            tried = (*begun.tried, (action.method, error.message))
            failed = dataclasses.replace(begun, tried=tried, at=self._clock.epoch())
            await self._put_fence(name, failed, begun)
            raise
        done = dataclasses.replace(begun, state=FenceState.FENCED, proof=proof.seen, at=self._clock.epoch())
        history = await HISTORIES.get(self._store, name)
        await self._put_fence(name, done, begun, also=[HISTORIES.put(name, fenced_at(history, self._clock.epoch()))])
        return f"fenced: {proof.seen}"

    async def _give_up(self, action: GiveUpRound) -> str:
        record = dataclasses.replace(action.record, state=FenceState.FAILED, at=self._clock.epoch())
        await self._put_fence(action.name, record, action.record)
        return "its domains wait"

    async def _admit(self, action: Admit) -> str:
        record = action.record
        if record.state is not FenceState.ADMITTING:
            admitting = dataclasses.replace(record, state=FenceState.ADMITTING, at=self._clock.epoch())
            record = await self._put_fence(action.name, admitting, record)
        await self._within(
            self._rules.fence_deadline, self._control.admit(action.name, record.revision), "no answer in time"
        )
        key = FENCES.key(action.name)
        await self._commit([Unchanged(key, record.revision)], [Delete(key)])
        return "in use again"

    async def _put_fence(
        self,
        node: str,
        record: FenceRecord,
        old: FenceRecord | None,
        *,
        absent: bool = False,
        also: Sequence[Put] = (),
    ) -> FenceRecord:
        """Replace `old` by `record`; with `absent`, only while the node's lease is missing."""
        conditions = [Unchanged(FENCES.key(node), old.revision if old else 0)]
        if absent:
            conditions.append(Unchanged(ALIVE.key(node), 0))
        done = await self._commit(conditions, [FENCES.put(node, record), *also])
        return dataclasses.replace(record, revision=done.revision)

    # ---- domains
    async def _release(self, action: Release) -> str:
        name, owner = action.name, action.owner
        old = action.run or RunRecord()
        run = dataclasses.replace(old, home=old.home or owner.node, tries=action.tries)
        await self._commit(
            [
                Unchanged(OWNERS.key(name), owner.revision),
                Unchanged(FENCES.key(owner.node), action.fence.revision),
                Unchanged(ALIVE.key(owner.node), 0),
                Unchanged(RUNS.key(name), old.revision),
            ],
            [Delete(OWNERS.key(name)), Delete(RESERVATIONS.key(name)), RUNS.put(name, run)],
        )
        return f"taken from {owner.node}"

    async def _end(self, action: End) -> str:
        order = self._control.end(action.node, action.name, action.boot)
        await self._within(self._rules.start_deadline, order, "no answer")
        run = action.run
        if run is not None and run.tries != action.tries:
            await self._put_run(action.name, dataclasses.replace(run, tries=action.tries), run.revision)
        return f"ended on {action.node}"

    async def _start(self, action: Start) -> str:
        name, old = action.name, action.run or RunRecord()
        run = dataclasses.replace(
            old, node=action.node, at=self._clock.epoch(), tries=old.tries + 1, error="", unmoved=0
        )
        done = await self._commit(
            [
                Unchanged(OWNERS.key(name), 0),
                Unchanged(RESERVATIONS.key(name), 0),
                Unchanged(FENCES.key(action.node), 0),
                Unchanged(POLICIES.key(name), action.ha.revision),
                Unchanged(RUNS.key(name), old.revision),
            ],
            [RUNS.put(name, run)],
        )
        ticket = Ticket(domain=name, node=action.node, revision=done.revision)
        try:
            await self._within(self._rules.start_deadline, self._control.start(ticket), "did not start in time")
        except VeeryError as error:
            failed = (*(each for each in run.failed if each != action.node), action.node)  # the latest is last
            await self._put_run(name, dataclasses.replace(run, failed=failed, error=error.message), done.revision)
            raise
        return f"runs on {action.node}"

    async def _move(self, action: Move) -> str:
        name, old = action.name, action.run or RunRecord()
        run = dataclasses.replace(old, home=old.home or action.source)
        revision = old.revision
        if run.home != old.home:
            revision = await self._put_run(
                name, run, old.revision, also=[Unchanged(OWNERS.key(name), action.owner.revision)]
            )
        try:
            await self._ordered(action)
        except (Overtaken, NotLeader):
            raise
        except VeeryError as error:
            failed = (*(each for each in run.failed if each != action.target), action.target)  # the latest is last
            run = dataclasses.replace(
                run, failed=failed, error=error.message, at=self._clock.epoch(), unmoved=run.unmoved + 1
            )
            await self._put_run(name, run, revision)
            raise
        if action.target == run.home:
            await self._put_run(name, dataclasses.replace(run, home="", failed=(), unmoved=0), revision)
        elif run.unmoved:
            await self._put_run(name, dataclasses.replace(run, unmoved=0), revision)
        return f"runs on {action.target}"

    async def _ordered(self, action: Move) -> None:
        """Order the move and wait for its end. A move that a verdict caused gets a record. Raises as a move does, and
        Overtaken."""
        order = partial(self._control.move, action.name, action.source, action.target, urgent=action.urgent)
        late = "did not end in time"
        if not action.verdict:
            await self._within(self._rules.move_deadline, order(), late)
            return
        number, record, stands = await self._records.begin(action)
        if not stands:
            raise Overtaken("the cluster has changed since the move was decided", hint="the next cycle decides again")
        try:
            outcome = await self._within(self._rules.move_deadline, order(), late)
        except VeeryError as error:
            await self._records.end(number, record, failure(error))
            raise
        await self._records.end(number, record, outcome)

    async def _put_run(self, domain: str, run: RunRecord, revision: int, *, also: Sequence[Unchanged] = ()) -> int:
        done = await self._commit([Unchanged(RUNS.key(domain), revision), *also], [RUNS.put(domain, run)])
        return done.revision

    # ---- guards
    async def _commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """Write as the leader. Raises Overtaken, NotLeader, StoreUnavailable, OutcomeUnknown."""
        done = await self._store.commit([self._leadership.guard(), *conditions], operations)
        if not done.held:
            raise Overtaken("the records behind this decision have changed", hint="the next cycle decides again")
        return done

    async def _within(self, deadline: float, work: Coroutine[Any, Any, T], late: str) -> T:
        """Return the result of `work`. Raises OutcomeUnknown if it takes longer than `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                return await work
        except TimeoutError:
            raise OutcomeUnknown(late) from None
