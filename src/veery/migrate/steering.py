"""Steering of one copy: take each reading, ask the policy, tell the driver. Holds the copy until its turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.hypervisor.base import Driver
from veery.migrate import converge
from veery.migrate.converge import Change, Course, GiveUp, Round
from veery.migrate.policy import find, taken_back_after
from veery.migrate.scheduler import LINGER_S, SOON_S, Turn
from veery.model.move import CopyOptions, MoveProgress, MoveSettings, Phase, Remark, Sample, Tuning
from veery.model.units import format_size

log = logging.getLogger(__name__)

TICK_S = 0.1
SAMPLES = 240
"""Readings that a report keeps; when there are more, every second one of the older half is dropped."""
STORY = 100
CRAWL = 64 << 10
"""Bytes/s of a copy that waits for its turn: it keeps its place and leaves the machine to the others."""
EXCESS = 2.0
"""Times its bound after which even a copy that must finish is given up: the domain is not the cause then."""


def changed(tuning: Tuning) -> str:
    """Return the remark about a user's changes."""
    changes = []
    if tuning.bandwidth is not None:
        changes.append(f"bandwidth {format_size(tuning.bandwidth)}/s" if tuning.bandwidth else "bandwidth unlimited")
    if tuning.downtime is not None:
        changes.append(f"limit {tuning.downtime} ms")
    return ", ".join(changes) + ": set by the user"


class CopySteering:
    """One copy. `run` is its task and never returns: it is cancelled when the copy has ended."""

    def __init__(
        self,
        driver: Driver,
        uuid: str,
        settings: MoveSettings,
        *,
        clock: Clock,
        publish: Callable[[MoveProgress], None],
        turn: Turn | None = None,
        held: bool = False,
        post_copy: bool = False,
        memory: int = 0,
    ) -> None:
        """`turn` is the move's place in the queue, None where it has none. With `held` the copy must wait there until
        it may switch over. `post_copy`: both ends are ready for it. `memory` is the domain's, in MiB. Raises Refused
        for an unknown policy."""
        self._driver, self._uuid, self._settings, self._clock = driver, uuid, settings, clock
        self._publish, self._place = publish, turn
        self._turn = turn if held else None
        self._post_copy, self._memory = post_copy, memory
        self.policy = find(settings.policy)
        self.samples: list[Sample] = []
        self.story: list[Remark] = []
        self._first, self._bandwidth = settings.downtime, settings.bandwidth
        self._course = Course(downtime=settings.downtime, stopped=not settings.live)
        self._rounds: tuple[Round, ...] = ()
        self._sample = Sample(
            at=0.0, rounds=0, transferred=0, remaining=0, rate=0.0, dirty_rate=0.0, throttle=0, downtime=0
        )
        self._total = 0
        self._began = clock.now()
        self._news = asyncio.Event()
        self._crawling = False
        self._released: float | None = None
        self._last: MoveProgress | None = None
        self._round = 0
        self._quiet = held  # held before its turn: QEMU does not scan for freshly written pages
        self._passed: float | None = None  # when all of the memory had been sent once
        if turn is not None and held:
            turn.granted = self._news.set

    @property
    def limit(self) -> int:
        """The limit on the downtime (ms) to begin with. At 0 QEMU does not scan for freshly written pages. Otherwise it
        would scan without pause once nothing is left to send, under the lock that its monitor and its guest need
        (migration_iteration_run): a held copy does so in its turn."""
        return 0 if self._turn is not None else self._settings.downtime

    @property
    def means(self) -> CopyOptions:
        """The options that the copy may use."""
        live = self._settings.live
        return CopyOptions(
            hold=self._turn is not None,
            throttle=bool(self.policy.throttle) and live,
            delta=self.policy.delta and self._settings.bandwidth > 0 and live,
            guard=taken_back_after(self.policy, self._settings.downtime, self._memory) if live else 0.0,
            post_copy=self._post_copy,
        )

    def hear(self, progress: MoveProgress) -> None:
        """Take a reading of the copy from the driver."""
        sample = Sample(
            at=round(self._now(), 3),
            rounds=progress.rounds,
            transferred=progress.transferred,
            remaining=progress.remaining,
            rate=progress.rate,
            dirty_rate=progress.dirty_rate,
            throttle=progress.throttle,
            downtime=self._course.downtime,
        )
        self._sample, self._total = sample, progress.total or self._total
        if not self._crawling and progress.total:
            self._rounds = converge.fold(self._rounds, sample)
        number, note = self._rounds[-1].number if self._rounds else 0, ""
        if number > self._round >= 1 and not self._crawling:
            note = f"round {number}: {format_size(progress.remaining)} were written meanwhile"
        self._round = max(self._round, number)
        self._keep(sample)
        self._last = replace(progress, downtime=self._course.downtime)
        self._publish(replace(self._last, note=note))
        self._news.set()

    async def change(self, tuning: Tuning) -> None:
        """Apply the user's changes: bandwidth, downtime. Raises Refused where there is no copy to change."""
        if not self._quiet:
            await self._driver.tune(self._uuid, tuning)
        elif not self._crawling and tuning.bandwidth is not None:
            await self._driver.tune(self._uuid, Tuning(bandwidth=tuning.bandwidth))
        if tuning.bandwidth is not None:
            self._bandwidth = tuning.bandwidth
        if tuning.downtime is not None:
            self._first = tuning.downtime
            self._course = replace(self._course, downtime=tuning.downtime)
        self._course = replace(self._course, since=self._now())
        self._rounds = self._rounds[-1:] if self._rounds else ()
        self._rounds = tuple(replace(each, rate=0.0) for each in self._rounds)
        self._remark(changed(tuning))

    async def run(self) -> NoReturn:
        """Steer the copy. Raises Failed when the policy gives it up."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            self._news.clear()
            if self._place is not None:
                self._report_to_scheduler(self._place)
            if self._turn is not None:
                await self._await_turn(self._turn)
            await self._judge()

    # ---- inside

    def _now(self) -> float:
        return self._clock.now() - self._began

    async def _judge(self) -> None:
        now, rate = self._now(), converge.speed(self._rounds)
        end = converge.bound(self.policy, self._settings.timeout, self._total, rate)
        if end and now >= EXCESS * end:
            raise Failed(f"the copy did not end within {EXCESS * end:g} s", hint="is the path to the target up?")
        waits = self._post_copy and self._turn is not None and self._released is None
        rounds = () if self._crawling or waits else self._rounds
        action = converge.decide(self.policy, self._course, rounds, self._sample, first=self._first, end=end, now=now)
        match action:
            case GiveUp():
                self._remark(action.why)
                raise Failed(action.why, hint=action.hint)
            case Change():
                await self._set(action.course, action.why)

    async def _set(self, course: Course, why: str) -> None:
        before, self._course = self._course, course
        tuning = Tuning(
            downtime=course.downtime if course.downtime != before.downtime else None,
            throttle=course.throttle if course.throttle != before.throttle else None,
            stop=course.stopped,
            post_copy=course.post_copy,
        )
        self._remark(why)
        if course.stopped and self._quiet:
            await self._crawl(False)
        await self._tune(tuning)

    def _report_to_scheduler(self, place: Turn) -> None:
        """Tell the scheduler when this copy will end soon, or takes too long, so that the other moves can plan for
        it."""
        sample = self._sample
        if sample.rate > 0 and sample.remaining / sample.rate < SOON_S:
            place.near()
        if self._passed is None and (sample.rounds > 1 or self._crawling):
            self._passed = self._now()
        if self._passed is not None and self._now() - self._passed > LINGER_S:
            place.linger()

    async def _await_turn(self, turn: Turn) -> None:
        if self._course.stopped:
            return
        if turn.ready_since is None:
            if not self._sample.rounds or self._sample.remaining:
                return
            turn.ready()
            if not turn.mine:
                await self._crawl(True)
                self._remark("all memory was sent once; waits for its turn to switch over")
        if not turn.mine:
            return
        if self._released is None:
            self._remark("its turn to switch over")
            await self._crawl(False)
            self._released = self._now()
            self._course = replace(self._course, since=self._released)
        elif self._sample.at > self._released and converge.ready(self._rounds, self._sample, self._course):
            await self._set(replace(self._course, stopped=True, since=self._now()), "switches over")

    async def _crawl(self, slow: bool) -> None:
        self._crawling = self._quiet = slow
        bandwidth, downtime = (CRAWL, 0) if slow else (self._bandwidth, self._course.downtime)
        await self._tune(Tuning(bandwidth=bandwidth, downtime=downtime))

    async def _tune(self, tuning: Tuning) -> None:
        """Change the copy. A copy that has just ended cannot be changed any more, and need not be."""
        try:
            await self._driver.tune(self._uuid, tuning)
        except Refused:
            pass
        except VeeryError as error:
            log.warning("uuid=%s copy not changed: %s", self._uuid, error.message)

    def _remark(self, text: str) -> None:
        if len(self.story) < STORY:
            self.story.append(Remark(at=round(self._now(), 3), text=text))
        log.info("uuid=%s at=%.2f %s", self._uuid, self._now(), text)
        self._publish(replace(self._last or MoveProgress(phase=Phase.COPY), note=text))

    def _keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) > SAMPLES:
            half = len(self.samples) // 2
            self.samples = self.samples[:half:2] + self.samples[half:]
