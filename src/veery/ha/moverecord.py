"""Records of the moves that a verdict caused: the forecast before each move, and its end.

The leader writes a record before it orders the move, and again at the end. The records of an ended leader stay as they
were. `records` reports their result as unknown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

from veery.cluster.keys import DISARMED, HEALTH_MOVES, LEADER, LEADERS, OWNERS, Unreadable
from veery.cluster.store import Delete, Store, Unchanged
from veery.errors import OutcomeUnknown, VeeryError
from veery.ha.base import NodeControl
from veery.ha.leader import Leadership
from veery.host.clock import Clock
from veery.model.ha import Move
from veery.model.verdict import HealthMove, MoveOutcome, MovePromise, MoveResult

log = logging.getLogger(__name__)

KEPT = 200  # records in the store
DROP_MAX = 50  # records dropped in one transaction
FORECAST_DEADLINE_S = 10.0
QUICK_FORECAST_DEADLINE_S = 2.0  # for a node that may die at any moment
WRITE_DEADLINE_S = 5.0  # the record of a move must not delay the next one
TEXT_MAX = 500  # characters of a reason or an error


class MoveRecords:
    """Writes the records, as the leader."""

    def __init__(self, store: Store, control: NodeControl, leadership: Leadership, clock: Clock) -> None:
        """The caller shares all of these with others."""
        self._store, self._control, self._leadership, self._clock = store, control, leadership, clock
        self._last = 0

    async def begin(self, action: Move) -> tuple[str, HealthMove, bool]:
        """Ask for a forecast and write the record. Return its number, the record, and whether the move may begin: False
        if the cluster was disarmed, or the domain got another owner, while the forecast was made.

        A failed forecast or write does not prevent the move. Raises NotLeader."""
        promised = await self._promise(action)
        guard = self._leadership.guard()
        record = HealthMove(
            at=self._clock.epoch(),
            domain=action.name,
            source=action.source,
            target=action.target,
            reason=action.verdict[:TEXT_MAX],
            urgent=action.urgent,
            promised=promised,
            term=guard.revision,
        )
        self._last = max(self._last + 1, int(record.at * 1_000_000))
        number = f"{self._last:020}"
        conditions = [guard, Unchanged(DISARMED, 0), Unchanged(OWNERS.key(action.name), action.owner.revision)]
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                done = await self._store.commit(conditions, [HEALTH_MOVES.put(number, record)])
        except (VeeryError, TimeoutError) as error:
            log.warning("domain=%s the record of its move is not written: %s", action.name, error)
            return number, record, True
        return number, record, done.held

    async def end(self, number: str, record: HealthMove, outcome: MoveOutcome) -> None:
        """Write the end of a move, and drop the oldest records above KEPT. A failed write is only logged."""
        ended = dataclasses.replace(record, outcome=outcome)
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await self._store.commit(
                    [self._leadership.guard()], [HEALTH_MOVES.put(number, ended), *await self._old()]
                )
        except (VeeryError, TimeoutError) as error:
            log.warning("domain=%s the end of its move is not recorded: %s", record.domain, error)

    async def _promise(self, action: Move) -> MovePromise:
        deadline_s = QUICK_FORECAST_DEADLINE_S if action.urgent else FORECAST_DEADLINE_S
        try:
            async with asyncio.timeout(deadline_s):
                return await self._control.forecast(action.name, action.source, action.target, urgent=action.urgent)
        except VeeryError as error:
            return MovePromise(why=error.message[:TEXT_MAX])
        except TimeoutError:
            return MovePromise(why=f"no forecast within {deadline_s:g} s")

    async def _old(self) -> list[Delete]:
        entries = (await self._store.scan(HEALTH_MOVES.prefix)).entries
        return [Delete(entry.key) for entry in entries[: max(0, len(entries) - KEPT)][:DROP_MAX]]


def failure(error: VeeryError) -> MoveOutcome:
    """Return the outcome of a move that ended with `error`."""
    result = MoveResult.UNKNOWN if isinstance(error, OutcomeUnknown) else MoveResult.FAILED
    return MoveOutcome(result=result, error=error.message[:TEXT_MAX])


async def records(store: Store) -> tuple[HealthMove, ...]:
    """Return the records, the oldest first. A move whose leader has ended since is unknown. Raises StoreUnavailable,
    Unreadable."""
    leader = await LEADERS.get(store, LEADER)
    found = []
    for entry in (await store.scan(HEALTH_MOVES.prefix)).entries:
        with contextlib.suppress(Unreadable):  # written by a newer veery
            each = HEALTH_MOVES.value(entry)
            if each.outcome.result is MoveResult.UNDERWAY and (leader is None or leader.revision != each.term):
                why = "the leader ended before the move did"
                each = dataclasses.replace(each, outcome=MoveOutcome(result=MoveResult.UNKNOWN, error=why))
            found.append(each)
    return tuple(found)
