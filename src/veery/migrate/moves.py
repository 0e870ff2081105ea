"""The moves of this node: those under way, and the reports of those that ended."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from veery.config.settings import MoveLimits
from veery.errors import Failed, NotFound, OutcomeUnknown, Refused, VeeryError
from veery.host import kept, tasks
from veery.host.files import write_atomic
from veery.migrate import policy
from veery.migrate.bandwidth import Paths
from veery.migrate.base import MoveContext
from veery.migrate.journal import Side
from veery.migrate.phases import CANCELLABLE
from veery.migrate.scheduler import CopyScheduler, Places
from veery.migrate.sender import Order, Sender
from veery.migrate.settle import Settler
from veery.model.codec import encode
from veery.model.domain import DomainReading
from veery.model.move import MoveProgress, MoveReport, MoveSettings, MoveState, Phase, Tuning
from veery.model.node import Node

log = logging.getLogger(__name__)

REPORTS_KEPT = 100  # reports of ended moves
BEAT_INTERVAL_S = 15.0  # a listener hears the move's progress again after this time, even without news
DEFAULT_LIMITS = MoveLimits()
CAUTION_DEADLINE_S = 2.0
WITHDRAW_DEADLINE_S = 5.0
"""How long destroying a domain waits for its move to end; the domain's QEMU may not answer."""
Caution = Callable[[], Awaitable[str]]


@dataclass(slots=True, eq=False)
class Running:
    """A move under way: its sender, its task, its last progress and its listeners."""

    move: str
    domain: str
    sender: Sender
    caution: Caution | None = None
    arrived: Callable[[], Awaitable[None]] | None = None
    told: str = ""
    task: asyncio.Task[MoveReport] | None = None
    queued: bool = True
    cancelled: bool = False
    last: MoveProgress | None = None
    listeners: list[asyncio.Queue[MoveProgress | None]] = field(default_factory=list)

    def publish(self, progress: MoveProgress) -> None:
        """Send `progress` to every listener. A slow listener misses readings, never the end."""
        self.last = progress
        for queue in self.listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(progress)


class Moves:
    """Starts, follows, cancels and remembers moves out of this node."""

    def __init__(
        self, context: MoveContext, settler: Settler, folder: Path, limits: MoveLimits = DEFAULT_LIMITS
    ) -> None:
        """Keep reports of ended moves in `folder`; moves beyond `limits` wait. `paths` is what earlier copies showed of
        the paths to other nodes."""
        self._context, self._settler, self._folder = context, settler, folder
        self._places, self._turns = (
            Places(limits.out, limits.link),
            CopyScheduler(context.clock, copies_at_once(limits.copies)),
        )
        self.paths = Paths()
        self._running: dict[str, Running] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the tasks of all moves, without end. When cancelled, undo every move or bring it to its end."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def busy(self, domain: str, *, arriving: bool = False) -> str:
        """Return a text that says which move holds `domain`; "" when none does. With `arriving`, a move whose domain
        already runs here while the rest of its memory follows does not count."""
        if running := self._of(domain):
            return f"{domain} is being moved ({running.sender.phase.value}, move {running.move})"
        line = self._settler.busy(domain)
        if line is not None and arriving and line.post_copy and line.side is Side.TARGET:
            return ""
        return f"move {line.move} of {domain} is being settled" if line else ""

    def idle(self) -> bool:
        """Return whether no move is under way here, neither out nor in."""
        try:
            return not self._running and not self._context.journal.open()
        except (Failed, OSError):  # the journal cannot be read for now
            return False

    def advice(self, domain: str) -> str:
        """Return what a user can do about the move that holds `domain`."""
        running = self._of(domain)
        if running is None:
            return f"the move settles by itself (veery doctor shows what it waits for); or: veery destroy {domain}"
        if running.sender.phase in CANCELLABLE:
            return f"wait for its end (veery moves), or stop it: veery move cancel {running.move}"
        return "wait for its end: veery moves"

    def _of(self, domain: str) -> Running | None:
        return next((each for each in self._running.values() if each.domain == domain), None)

    async def withdraw(self, domain: str) -> None:
        """Cancel the move of `domain` where it can still be undone, and wait for its end, at most WITHDRAW_DEADLINE_S.
        The caller is about to destroy the domain, whatever the move's outcome."""
        running = self._of(domain)
        if running is None or running.task is None:
            return
        if running.sender.phase in CANCELLABLE:
            running.cancelled = True
            running.task.cancel()
        await asyncio.wait({running.task}, timeout=WITHDRAW_DEADLINE_S)

    def remains(self, domain: str) -> str:
        """Return the node that needs this node's copy of `domain` for the rest of its memory (post-copy), or ""."""
        line = self._settler.busy(domain) or next(
            (line for line in self._context.journal.open() if line.domain == domain), None
        )
        return line.target if line is not None and line.post_copy and line.side is Side.SOURCE else ""

    def start(
        self,
        reading: DomainReading,
        target: Node,
        settings: MoveSettings,
        caution: Caution | None = None,
        arrived: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        """Begin to move a domain of this node, or queue the move; return the move's id. `caution` finds the warning
        that is published before the copy. `arrived` is called once the domain runs on the target, not when the move
        fails; it raises nothing but VeeryError. Raises Refused when the domain is already moving, or its policy is
        unknown."""
        policy.check(settings)
        busy = self.busy(reading.name)
        if busy:
            raise Refused(busy, hint=self.advice(reading.name))
        if self._tasks is None:
            raise Refused("this node is not ready yet", hint="try again in a second")
        move = secrets.token_hex(4)
        order = Order(move=move, reading=reading, target=target, settings=settings)
        running = Running(move, reading.name, None, caution, arrived)  # type: ignore[arg-type]
        running.sender = Sender(
            self._context, self._settler, order, running.publish, turns=self._turns, paths=self.paths
        )
        self._running[move] = running
        running.task = self._tasks.create_task(self._run(running), name=f"move {move}")
        return move

    async def follow(self, move: str) -> AsyncIterator[MoveProgress]:
        """Yield each progress of a move until its end; then ask `outcome`."""
        running = self._running.get(move)
        if running is None:
            return
        queue: asyncio.Queue[MoveProgress | None] = asyncio.Queue(64)
        running.listeners.append(queue)
        try:
            if running.last is not None:
                yield running.last
            while True:
                try:
                    async with asyncio.timeout(BEAT_INTERVAL_S):
                        progress = await queue.get()
                except TimeoutError:  # without this, the listener would take the daemon for gone
                    progress = replace(running.last or MoveProgress(phase=Phase.BEGIN), note="")
                if progress is None:
                    return
                yield progress
        finally:
            running.listeners.remove(queue)

    async def outcome(self, move: str) -> MoveReport:
        """Return the report of a move once it has ended. Raises Refused for an unknown one."""
        running = self._running.get(move)
        if running is not None and running.task is not None:
            await asyncio.wait({running.task})
        return self.report(move)

    async def cancel(self, move: str) -> MoveReport:
        """Stop a move; returns when the domain runs on here. Raises Refused after COMMIT."""
        running = self._running.get(move)
        if running is None:
            raise Refused(f"no move {move} is under way", hint="veery moves lists them")
        if running.sender.phase not in CANCELLABLE:
            raise Refused(f"move {move} is past COMMIT", hint="move the domain back when it has arrived")
        running.cancelled = True
        assert running.task is not None
        running.task.cancel()
        await asyncio.wait({running.task})
        return self.report(move)

    async def change(self, move: str, tuning: Tuning) -> None:
        """Change the bandwidth or the downtime of a copy under way. Raises Refused where nothing is copied."""
        running = self._running.get(move)
        if running is None:
            raise Refused(f"no move {move} is under way", hint="veery moves lists them")
        await running.sender.change(tuning)

    def report(self, move: str) -> MoveReport:
        """Return the report of a move, under way or ended. Raises Refused for an unknown one."""
        if running := self._running.get(move):
            return _current(running)
        path = self._folder / f"{move}.json"
        if not move.isalnum() or not path.exists():
            raise NotFound(f"no move {move} here", hint="veery moves lists them")
        report = kept.take(path, MoveReport)
        if report is None:
            raise Refused(f"the report of move {move} cannot be read", hint="veery doctor names the file")
        return report

    def list(self) -> tuple[MoveReport, ...]:
        """Return the moves queued, under way and ended, the newest last; without their samples and story."""
        ended = [kept.take(path, MoveReport) for path in self._folder.glob("*.json")]
        reports = [one for one in ended if one is not None] + [_current(running) for running in self._running.values()]
        return tuple(
            replace(report, samples=(), story=()) for report in sorted(reports, key=lambda report: report.started)
        )

    # ---- inside

    async def _run(self, running: Running) -> MoveReport:
        sender = running.sender
        try:
            report = await self._move_in_turn(running)
        except asyncio.CancelledError:
            report = sender.report(MoveState.CANCELLED, reason="cancelled")
        except OutcomeUnknown as error:
            report = sender.report(MoveState.UNKNOWN, reason=error.message, hint=error.hint)
        except VeeryError as error:
            report = sender.report(MoveState.FAILED, reason=error.message, hint=error.hint)
        except Exception as error:  # a bug in one move must not end the others
            log.exception("move=%s failed unexpectedly", running.move)
            report = sender.report(MoveState.FAILED, reason=f"{type(error).__name__}: {error}")
        finally:
            del self._running[running.move]
        report = replace(report, caution=running.told)
        self._keep(report)
        if running.arrived is not None and report.state is MoveState.DONE:
            try:
                await running.arrived()
            except VeeryError as error:
                log.warning("move=%s domain=%s after its arrival: %s", running.move, running.domain, error.message)
        log.info(
            "move=%s domain=%s %s -> %s state=%s total_ms=%.0f downtime_ms=%.0f reason=%r",
            report.id, report.domain, report.source, report.target, report.state, report.total_ms,
            report.downtime_ms, report.reason,
        )  # fmt: skip
        for queue in running.listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        return report

    async def _move_in_turn(self, running: Running) -> MoveReport:
        """Wait in the queue, then move."""
        target = running.sender.target
        if not self._places.free(target):
            note = f"waits for other moves of {self._context.node} to end"
            running.publish(MoveProgress(phase=Phase.BEGIN, note=note))
        await self._places.take(target)
        try:
            running.queued = False
            telling = asyncio.create_task(_publish_caution(running), name=f"{running.move} tells")
            running.sender.telling = telling  # the copy begins only after the warning is published
            try:
                return await running.sender.run()
            finally:
                await tasks.stop(telling)
        finally:
            self._places.leave(target)

    def _keep(self, report: MoveReport) -> None:
        try:
            write_atomic(self._folder / f"{report.id}.json", encode(report))
            paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in paths[:-REPORTS_KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.error("move=%s its report could not be written: %s", report.id, error)


def copies_at_once(wanted: int) -> int:
    """Return how many copies run at a time out of this node: `wanted`, or where that is 0 what its processors carry. A
    copy through TLS takes one processor. Two copies fill most paths; more make each switch-over wait for the others'
    pages."""
    return wanted or max(1, min(2, (os.cpu_count() or 1) // 4))


async def _publish_caution(running: Running) -> None:
    """Publish the warning before the copy, so that the move can still be cancelled. A failure to find the warning does
    not stop the move."""
    if running.caution is None:
        return
    try:
        async with asyncio.timeout(CAUTION_DEADLINE_S):
            running.told = await running.caution()
    except (VeeryError, TimeoutError) as error:
        log.warning(
            "move=%s domain=%s way back not checked: %s",
            running.move,
            running.domain,
            str(error) or "no answer in time",
        )
    if running.told:
        running.publish(MoveProgress(phase=running.sender.phase, note=running.told))


def _current(running: Running) -> MoveReport:
    return running.sender.report(MoveState.QUEUED if running.queued else MoveState.RUNNING)


def ended_badly(report: MoveReport) -> VeeryError | None:
    """Return the error of a move that ended without success; None when the domain has arrived."""
    if report.state is MoveState.DONE:
        return None
    runs = f"; {report.domain} runs on {report.runs_on}" if report.runs_on else ""
    kind = OutcomeUnknown if report.state is MoveState.UNKNOWN else Failed
    return kind(f"{report.domain} was not moved to {report.target}: {report.reason}{runs}", hint=report.hint)
