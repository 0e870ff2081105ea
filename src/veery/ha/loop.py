"""The loop of the brain: observe, decide, act. Every voter observes, so that a new leader knows how long each node has
been silent. Only the leader acts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from veery.cluster.store import Store
from veery.errors import Failed, OutcomeUnknown, Unavailable, VeeryError
from veery.ha.act import Actor, Overtaken
from veery.ha.base import NodeControl, Observer
from veery.ha.decide import decide
from veery.ha.journal import Journal
from veery.ha.leader import Leadership, NotLeader
from veery.ha.record_age import RecordAges
from veery.host.clock import Clock
from veery.host.log import decision
from veery.host.shortage import is_shortage
from veery.host.tasks import stop
from veery.model.ha import (
    Action,
    ClusterView,
    Event,
    Fence,
    FenceState,
    GiveUpRound,
    Level,
    Move,
    Note,
    Rules,
    Start,
    Steady,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """The latest action or note about one subject, its reason and its outcome. `since`: epoch."""

    action: Action
    since: float
    outcome: str = ""


@dataclass(slots=True)
class _Work:
    action: Action
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Rest:
    until: float  # own clock
    said: str


class Brain:
    """The brain of one node. The daemon builds it, owns the task of `run`, and answers `veery why` from it."""

    def __init__(
        self,
        node: str,
        *,
        store: Store,
        observer: Observer,
        control: NodeControl,
        clock: Clock,
        rules: Rules,
        told: Callable[[Event], None] | None = None,
        election_delay: float = 0.0,
    ) -> None:
        """`told` receives every event as it happens, on the leader only. `election_delay`: as for Leadership."""
        rules.check()
        self._node, self._observer, self._clock, self._rules, self._told = node, observer, clock, rules, told
        self.leadership = Leadership(store, node, ttl=rules.leader_ttl, clock=clock, election_delay=election_delay)
        self._actor = Actor(store, control, self.leadership, clock, rules)
        self._journal = Journal(store)
        self._record_ages = RecordAges(clock)
        self._work: dict[str, _Work] = {}
        self._rests: dict[str, _Rest] = {}
        self._found: dict[str, Finding] = {}
        self._noted: dict[str, Note] = {}  # the last note published about each subject, while it holds
        self._fresh: dict[str, tuple[str, float]] = {}  # the state of each subject, and since when (own clock)
        self._wake = asyncio.Event()
        self._view: ClusterView | None = None

    async def run(self) -> None:
        """Run until cancelled. Cancelling leaves actions unfinished as they are; the next leader can continue them."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.leadership.run(), name="leadership")
                group.create_task(self._observer.run(), name="observer")
                group.create_task(self._guard(), name="brain-guard")
                group.create_task(self._cycles(), name="brain-cycles")
        finally:
            await stop(*(each.task for each in self._work.values()))

    def idle(self) -> bool:
        """Return True if no action is under way."""
        return not self._work

    def found(self, subject: str) -> Finding | None:
        """Return the latest finding about `subject` ("node/x", "domain/x", "cluster"), while this node leads."""
        return self._found.get(subject)

    def view_now(self) -> ClusterView:
        """Return the last observation. Raises Unavailable before the first one."""
        if self._view is None:
            raise Unavailable("the brain has not observed the cluster yet", hint="try again in a second or two")
        return self._view

    async def _cycles(self) -> None:
        while True:
            self._wake.clear()
            begun = self._clock.now()
            view = await self._observer.observe()
            self._view = view = self._own(view)
            if self.leadership.held():
                self._carry_out(decide(view, self._clock.epoch(), self._rules))
                await self._flush()
            else:
                self._found.clear()
                self._noted.clear()
                self._fresh.clear()
            await self._pause(max(0.0, self._rules.cycle - (self._clock.now() - begun)))

    async def _pause(self, seconds: float) -> None:
        """Wait until the next cycle is due or an action has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _guard(self) -> None:
        """Cancel the actions under way before another node could lead."""
        while True:
            left = self.leadership.remaining()
            if left <= 0 and self._work:
                log.warning(decision("brain.stop", node=self._node, reason="this node is no longer the leader"))
                await stop(*(each.task for each in self._work.values()))
            await self._clock.sleep(min(left, self._rules.cycle) if left > 0 else self._rules.cycle)

    def _own(self, view: ClusterView) -> ClusterView:
        """Return `view` with what only this leader knows: its actions under way, and those that failed recently."""
        now = self._clock.now()
        self._rests = {subject: rest for subject, rest in self._rests.items() if rest.until > now}
        actions = [each.action for each in self._work.values()]
        return dataclasses.replace(
            view,
            ages=self._record_ages.of(view),
            acting=frozenset(self._work),
            resting={subject: rest.said for subject, rest in self._rests.items()},
            starting={each.name: each.node for each in actions if isinstance(each, Start)},
            moving={each.name: (each.source, each.target) for each in actions if isinstance(each, Move)},
        )

    # ---- acting
    def _carry_out(self, actions: tuple[Action, ...]) -> None:
        spoken = set()
        for action in actions:
            spoken.add(action.subject)
            if isinstance(action, Note):
                self._note(action)
            elif action.subject not in self._work:
                self._begin(action)
        for subject in [each for each in self._found if each not in spoken and each not in self._work]:
            del self._found[subject]
            self._fresh.pop(subject, None)
            was = self._noted.pop(subject, None)
            if was is not None and was.level is not Level.INFO:
                self._tell(Level.INFO, "over", subject, f"no longer: {was.reason}")

    def _begin(self, action: Action) -> None:
        self._found[action.subject] = Finding(action, self._clock.epoch())
        level = Level.INFO if isinstance(action, Move | Steady) else Level.WARNING
        if not _quiet(action):
            self._tell(level, _verb(action), action.subject, action.reason)
        task = asyncio.create_task(self._do(action), name=f"{_verb(action)} {action.subject}")
        self._work[action.subject] = _Work(action, task)

    async def _do(self, action: Action) -> None:
        verb, outcome = _verb(action), ""
        try:
            outcome = await self._actor.do(action)
            self._rests.pop(action.subject, None)
            if not _quiet(action) or isinstance(action, Fence):
                self._tell(Level.INFO, f"{verb}.done", action.subject, outcome)
        except (Overtaken, NotLeader) as error:
            outcome = error.message
            log.info(decision(f"{verb}.overtaken", subject=action.subject, reason=error.message))
        except VeeryError as error:
            outcome = error.message
            self._rests[action.subject] = _Rest(self._clock.now() + self._rules.retry, error.message)
            if not _quiet(action):
                self._tell(Level.WARNING, f"{verb}.{error.kind}", action.subject, error.message)
        except (OSError, MemoryError) as error:
            if not is_shortage(error):
                raise
            outcome = f"this node is short of a resource: {error or type(error).__name__}"
            self._rests[action.subject] = _Rest(self._clock.now() + self._rules.retry, outcome)
            log.error(decision(f"{verb}.shortage", subject=action.subject, reason=outcome))
        finally:
            self._work.pop(action.subject, None)
            found = self._found.get(action.subject)
            if found is not None and found.action is action:
                self._found[action.subject] = dataclasses.replace(found, outcome=outcome)
            self._wake.set()

    # ---- reporting
    def _note(self, note: Note) -> None:
        """Publish `note` once its state is new and has held for a cycle. A new wording of the same state is not
        published."""
        old = self._found.get(note.subject)
        same = old is not None and isinstance(old.action, Note) and old.action.state == note.state
        self._found[note.subject] = Finding(note, old.since if old and same else self._clock.epoch())
        state, since = self._fresh.get(note.subject, ("", 0.0))
        if state != note.state:
            self._fresh[note.subject] = (note.state, self._clock.now())
            return
        told = self._noted.get(note.subject)
        if self._clock.now() - since < self._rules.cycle / 2 or (told is not None and told.state == note.state):
            return
        self._noted[note.subject] = note
        self._tell(note.level, note.state, note.subject, note.reason)

    def _tell(self, level: Level, what: str, subject: str, text: str) -> None:
        event = Event(at=self._clock.epoch(), level=level, what=what, subject=subject, text=text, by=self._node)
        number = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ALARM: logging.ERROR}[level]
        log.log(number, decision(f"ha.{what}", subject=subject, reason=text))
        self._journal.add(event)
        if self._told is not None:
            self._told(event)

    async def _flush(self) -> None:
        try:
            await self._journal.flush(self.leadership.guard())
        except (Failed, OutcomeUnknown) as error:
            log.debug("events are not written yet: %s", error)


def _quiet(action: Action) -> bool:
    """Return True for bookkeeping, and for a fence from its second round on: the note of the failed fence reports that
    once."""
    if isinstance(action, Fence) and action.record is not None:
        return action.record.round > 1 or action.record.state is FenceState.FAILED
    return isinstance(action, GiveUpRound | Steady)


def _verb(action: Action) -> str:
    """Return the name of an action in logs and events."""
    return {"GiveUpRound": "fence-failed"}.get(type(action).__name__, type(action).__name__.lower())
