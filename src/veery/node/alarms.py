"""Alarms that reach people: events of the cluster are sent by a command, by mail and to a webhook."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from veery.errors import VeeryError
from veery.host.clock import Clock
from veery.host.log import quoted
from veery.model.alarm import AlarmMessage, AlarmWay
from veery.model.ha import Event, Level

log = logging.getLogger(__name__)

QUEUE_MAX = 100  # messages that wait for one method; if there are more, the oldest are dropped
PAUSES_S = (0.0, 5.0, 30.0, 120.0)  # before each try to send one message
STORE_LOST_S = 60.0  # how long the store has not answered before an alarm is sent
LOOK_S = 5.0
OVER = "over"  # the event that ends an earlier one about the same subject
_ORDER = (Level.INFO, Level.WARNING, Level.ALARM)


class Way(Protocol):
    """One method of sending alarms."""

    name: str

    async def send(self, message: AlarmMessage) -> None:
        """Send the message, within a deadline. Raises Failed, OutcomeUnknown, Refused."""


def wanted(event: Event, least: Level, called: frozenset[str]) -> bool:
    """Return True if `event` is sent: its level is at least `least`, or it ends an alarm about a subject in
    `called`."""
    if event.what == OVER:
        return event.subject in called
    return _ORDER.index(event.level) >= _ORDER.index(least)


@dataclasses.dataclass(slots=True)
class _Lane:
    """The messages that wait for one method, and the result of the last one."""

    way: Way
    state: AlarmWay
    waiting: deque[AlarmMessage] = dataclasses.field(default_factory=deque)
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Alarms:
    """Sends the alarms of this node. `hear` receives the brain's events, on the leader. The daemon owns the task of
    `run`."""

    def __init__(
        self,
        ways: Sequence[Way],
        *,
        least: Level,
        node: str,
        cluster: str,
        clock: Clock,
        lost: Callable[[], float | None],
    ) -> None:
        """`least`: the lowest level that is sent. `lost`: seconds since this node lost the store; negative or None
        while it has not."""
        self._lanes = tuple(_Lane(way, AlarmWay(name=way.name)) for way in ways)
        self._least, self._node, self._cluster, self._clock, self._lost = least, node, cluster, clock, lost
        self._called: frozenset[str] = frozenset()

    def ways(self) -> tuple[AlarmWay, ...]:
        """Return the methods that the settings name, with the result of the last message."""
        return tuple(lane.state for lane in self._lanes)

    def hear(self, event: Event) -> None:
        """Queue `event` if its level is high enough. Returns at once."""
        if not self._lanes or not wanted(event, self._least, self._called):
            return
        over = event.what == OVER
        self._called = self._called - {event.subject} if over else self._called | {event.subject}
        message = self._message(event)
        for lane in self._lanes:
            if len(lane.waiting) >= QUEUE_MAX:
                lane.waiting.popleft()
                lane.state = dataclasses.replace(lane.state, dropped=lane.state.dropped + 1)
            lane.waiting.append(message)
            lane.wake.set()

    async def test(self, by: str) -> tuple[AlarmWay, ...]:
        """Send one test message by each method; return the results."""
        event = Event(
            at=self._clock.epoch(),
            level=Level.INFO,
            what="test",
            subject=f"node/{self._node}",
            text=f"this is a test, ordered by {by}: nothing is wrong",
            by=self._node,
        )
        message = self._message(event)
        return tuple(await asyncio.gather(*(self._try(lane, message) for lane in self._lanes)))

    async def run(self) -> None:
        """Run until cancelled. Messages that still wait then are lost."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._serve(lane), name=f"alarms by {lane.way.name}")
            group.create_task(self._watch_store(), name="alarms of the store")

    async def _serve(self, lane: _Lane) -> None:
        while True:
            lane.wake.clear()
            while lane.waiting:
                message = lane.waiting.popleft()
                for pause in PAUSES_S:
                    await self._clock.sleep(pause)
                    state = await self._try(lane, message)
                    if not state.error:
                        break
                else:
                    log.error(
                        "the alarm could not be sent by %s: %s; its text: %s",
                        lane.way.name,
                        lane.state.error,
                        message.text,
                    )
            await lane.wake.wait()

    async def _try(self, lane: _Lane, message: AlarmMessage) -> AlarmWay:
        error = ""
        try:
            await lane.way.send(message)
        except VeeryError as problem:
            error = problem.message
        lane.state = dataclasses.replace(lane.state, at=self._clock.epoch(), error=error)
        return lane.state

    async def _watch_store(self) -> None:
        """Send an alarm when this node has lost the store: no brain leads without it, so each node sends its own."""
        subject, told = f"node/{self._node}", False
        begun = self._clock.now()
        while self._lanes:
            since = self._lost()
            seconds = self._clock.now() - begun if since is None else since
            if seconds > STORE_LOST_S and not told:
                told = True
                lost = f"{self._node} has not reached the store for {seconds:.0f} s"
                text = f"{lost}: its domains run on, but the cluster decides nothing"
                self.hear(self._event(Level.ALARM, "store-lost", subject, text))
            elif seconds <= 0 and told:
                told = False
                self.hear(self._event(Level.INFO, OVER, subject, f"{self._node} reaches the store again"))
            await self._clock.sleep(LOOK_S)

    def _event(self, level: Level, what: str, subject: str, text: str) -> Event:
        return Event(at=self._clock.epoch(), level=level, what=what, subject=subject, text=text, by=self._node)

    def _message(self, event: Event) -> AlarmMessage:
        """Build the message. Texts may contain words of strangers, so control characters are quoted: they must not
        reach an environment, a header or a body."""
        return AlarmMessage(
            cluster=self._cluster,
            node=event.by or self._node,
            at=event.at,
            level=event.level.value,
            what=event.what,
            subject=quoted(event.subject),
            text=quoted(event.text),
        )


def as_json(message: AlarmMessage) -> bytes:
    """Return `message` as JSON, for the command's standard input and the webhook's body."""
    return json.dumps(dataclasses.asdict(message), ensure_ascii=False).encode()
