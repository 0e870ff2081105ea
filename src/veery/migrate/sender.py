"""The source's side of a move: one coroutine with the same steps as the table of phases.

Before COMMIT everything is undone from one stack; COMMIT empties it. When the answer to COMMIT was lost, the settler
asks the store until it answers; meanwhile both copies are paused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from veery.cluster import levels
from veery.cluster import owner as owners
from veery.cluster.store import StoreUnavailable
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host import tasks
from veery.host.contexts import current
from veery.hypervisor.base import Lost, PostCopier
from veery.migrate import compression, conntrack, disks, postcopy, target_wait, versions, vitals, wire
from veery.migrate.bandwidth import Paths
from veery.migrate.base import MoveContext
from veery.migrate.diskcopy import DiskCopy
from veery.migrate.journal import Line, Side
from veery.migrate.phases import Steps
from veery.migrate.policy import find
from veery.migrate.scheduler import CopyScheduler, Turn
from veery.migrate.settle import Settler
from veery.migrate.steering import CopySteering
from veery.model.cluster import LEVEL, DomainRecord, Owner, Reservation
from veery.model.domain import DomainReading, DomainSpec, DomainState
from veery.model.move import CopyResult, MoveProgress, MoveReport, MoveSettings, MoveState, Phase, Tuning
from veery.model.node import Node
from veery.model.units import patience
from veery.model.volume import CarriedDisk

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECT_DEADLINE_S = 5.0
PREPARE_DEADLINE_S = 60.0
LOADED_DEADLINE_S = 60.0
FINISH_DEADLINE_S = 15.0
ANSWER_FRESH_S = 0.1  # for so long the store's last answer is proof enough that it answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to move where: `reading` is the domain's current state here, `target` the target node's record."""

    move: str
    reading: DomainReading
    target: Node
    settings: MoveSettings


class Sender:
    """One move out of this node."""

    def __init__(
        self,
        context: MoveContext,
        settler: Settler,
        order: Order,
        publish: Callable[[MoveProgress], None],
        *,
        turns: CopyScheduler,
        paths: Paths,
    ) -> None:
        """`publish` is called with every phase and every reading of the copy. `turns` says when to switch over. `paths`
        holds what is known of the path to the target."""
        self._context, self._settler, self._order, self._publish = context, settler, order, publish
        self._turns, self._paths = turns, paths
        self._compression: compression.Compression | None = None
        self.telling: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        self._steering: CopySteering | None = None
        self._started = context.clock.epoch()
        self._steps: Steps | None = None
        self._copy: CopyResult | None = None
        self._record: DomainRecord | None = None  # what COMMIT writes where disks go along
        self._disk_copy = DiskCopy(
            context.driver,
            order.move,
            order.reading,
            order.target,
            settings=lambda: self._order.settings,
            publish=publish,
        )
        self._store_answered = float("-inf")
        self._store_check: asyncio.Task[None] | None = None
        self._tracking: conntrack.ConntrackTransfer | None = None
        self._paused_since = 0.0
        self._post_copy = find(order.settings.policy).post_copy and not _is_paused(order)
        self._ended = False  # the guest ended by itself before it could move
        self._disks = 0  # how many disks the domain has
        self._booted = 0.0  # when the guest booted, in seconds since the epoch

    @property
    def target(self) -> str:
        """The name of the target node."""
        return self._order.target.name

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return (self._steps and self._steps.phase) or Phase.BEGIN

    async def run(self) -> MoveReport:
        """Move the domain and return its report. Raises Refused (nothing changed), Failed (undone: the domain runs on
        here) or OutcomeUnknown (the store decides; the settler asks it). Cancelling the task before COMMIT undoes the
        move."""
        if self._order.settings.turns and not _is_paused(self._order):
            self._turn = self._turns.join(self._order.move)
        try:
            if self._turn is not None:
                await self._turn.prepare()
            return await self._run()
        except (Refused, Failed) as error:
            how = await vitals.end_of(self._context.driver, self._order.reading.uuid)
            if not how:
                raise
            self._ended = True
            raise Failed(
                f"{self._order.reading.name} {how} on {self._context.node} while it was moved",
                hint="on_poweroff, on_reboot, on_crash in its file say whether it starts again: veery list --cluster",
            ) from error
        finally:
            self._leave_queue()

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which takes long; raise Failed as soon as the guest has ended by itself."""
        return await vitals.while_alive(self._context.driver, self._context.clock, self._order.reading.uuid, work)

    def _leave_queue(self) -> None:
        if self._turn is not None:
            self._turn.close()

    async def change(self, tuning: Tuning) -> None:
        """Apply the user's changes to the copy under way. While disks are copied, the bandwidth applies at once; the
        memory then begins with both. Raises Refused where there is no copy."""
        if self.phase is not Phase.COPY:
            raise Refused(
                f"move {self._order.move} copies nothing now",
                hint=f"veery move show {self._order.move} shows its phase",
            )
        if self._compression is not None and tuning.bandwidth is not None:
            # the limit is for the compressed bytes on the path
            self._compression.rate = tuning.bandwidth
        if self._steering is None:
            await self._change_early(tuning)
            return
        if self._compression is not None:
            tuning = replace(tuning, bandwidth=None)
        await self._steering.change(tuning)

    async def _change_early(self, tuning: Tuning) -> None:
        """Apply changes before the memory is copied: to the disks on their way, and to what the memory begins with."""
        settings = self._order.settings
        if tuning.bandwidth is not None:
            settings = replace(settings, bandwidth=tuning.bandwidth)
        if tuning.downtime is not None:
            settings = replace(settings, downtime=tuning.downtime)
        self._order = replace(self._order, settings=settings)
        await self._disk_copy.change(tuning)

    async def _run(self) -> MoveReport:
        context, order = self._context, self._order
        owner = await self._own()
        # The target checks its level too, but an older one may fail at something else first, such as a disk's password.
        await levels.require(context.store, self.target, versions.TAKE_IN)
        spec, luggage = await context.driver.pack(order.reading.uuid)
        self._disks = len(spec.disks)
        self._tracking = conntrack.ConntrackTransfer(context.attacher, order.move, spec)
        paused = order.reading.held  # a domain that a disk error stopped runs at the target, where it tries again
        going = await disks.carried(
            context.driver,
            order.reading.uuid,
            order.settings,
            node=context.node,
            name=spec.name,
            target=order.target.name,
        )
        steps = self._begin(owner, spec.name, paused)
        async with contextlib.AsyncExitStack() as connection, contextlib.AsyncExitStack() as undo:
            connection.push_async_callback(self._stop_asking)
            undo.push_async_callback(self._settler.undone, steps.line)
            await steps.enter(Phase.BEGIN)
            channel = await wire.open_control(
                order.target.relocation_address or order.target.address,
                order.target.relocation_port,
                order.target.name,
                current(context.client_tls),
                CONNECT_DEADLINE_S,
            )
            connection.push_async_callback(channel.close)
            undo.callback(channel.part, f"{context.node} gave up the move of {spec.name}")

            await steps.enter(Phase.PREPARE)
            await channel.send(await self._offer(owner, spec, luggage, paused, going))
            ready = await self._while_alive(self._await_ready(channel))
            await self._check_versions(ready)
            steps.line = replace(
                steps.line, reservation_revision=ready.reservation, disks=disks.matched(going, ready.disks)
            )

            await self._while_alive(self._await_copy_place())
            await steps.enter(Phase.COPY)
            undo.push_async_callback(self._settler.run_on, steps.line)
            if steps.line.disks:
                self._record = await disks.record(context.store, steps.line)
                through = await connection.enter_async_context(self._disk_copy.path(ready.disk_token))
                await self._while_alive(self._disk_copy.send(channel, steps.line.disks, through))
            self._copy, loaded = await self._while_alive(self._send(channel, ready))

            await steps.enter(Phase.LOADED)
            await self._await_loaded(loaded)

            await steps.enter(Phase.COMMIT)
            await self._ask_store()
            report, cancelled = await tasks.through(self._hand_over(owner, channel, steps, undo))
            return report or await self._follow(steps, cancelled)

    # ---- steps

    def _begin(self, owner: Owner, name: str, paused: bool) -> Steps:
        """Return the steps of the move with the journal's line of it; nothing is written yet."""
        context, order = self._context, self._order
        line = Line(
            move=order.move,
            side=Side.SOURCE,
            domain=name,
            uuid=order.reading.uuid,
            boot=owner.boot,
            source=context.node,
            target=order.target.name,
            owner_revision=owner.revision,
            paused=paused,
            remove_source=order.settings.remove_source,
        )
        self._steps = Steps(line, context.journal, context.clock, context.hold, self._entered)
        return self._steps

    async def _offer(
        self, owner: Owner, spec: DomainSpec, luggage: msgspec.Raw, paused: bool, going: tuple[CarriedDisk, ...]
    ) -> wire.Offer:
        """Return the offer: what the source asks the target to take in."""
        context, order = self._context, self._order
        path = self._paths.slow(self.target)
        self._compression = await compression.chosen(context, order.reading.uuid, order.settings, path)
        return wire.Offer(
            move=order.move,
            source=context.node,
            domain=spec.name,
            boot=owner.boot,
            owner_revision=owner.revision,
            driver=context.driver.name,
            spec=spec,
            luggage=luggage,
            backlog=await context.driver.backlog(order.reading.uuid),
            tls=order.settings.tls,
            paused=paused,
            disks=going,
            disk_dir=order.settings.disk_dir,
            post_copy=self._post_copy,
            packed=self._compression is not None,
            level=LEVEL,
        )

    async def _own(self) -> Owner:
        name = self._order.reading.name
        owner = await owners.read(self._context.store, name)
        if owner is None or owner.node != self._context.node:
            raise Refused(
                f"{name} belongs to {owner.node if owner else 'no node'}, not to {self._context.node}",
                hint=f"veery list --cluster shows where {name} runs: start the move there",
            )
        return owner

    def _reply_timeout(self, least: float) -> float:
        """Return the seconds to wait for the target in a step that takes `least` with a small domain."""
        return patience(least, self._order.reading.memory, self._disks)

    async def _await_ready(self, channel: wire.Channel) -> wire.Ready:
        """Return the target's promise. While too many domains arrive there, the target sends Wait again and again."""
        while True:
            message = await channel.expect((wire.Ready, wire.Wait), self._reply_timeout(PREPARE_DEADLINE_S))
            if isinstance(message, wire.Ready):
                return message
            if self._turn is not None:
                self._turn.aside()
            note = f"{channel.peer} takes in other domains first"
            self._publish(MoveProgress(phase=Phase.PREPARE, note=note))

    async def _check_versions(self, ready: wire.Ready) -> None:
        """Check the target's level again, since its veeryd may have changed after the first check. Send the copy
        uncompressed where the target cannot unpack it. Raises as versions.require,
        StoreUnavailable."""
        level = await levels.read(self._context.store)
        versions.require(self.target, ready, level, post_copy=self._post_copy)
        if self._compression is not None and not versions.knows_streams(ready):
            log.warning(
                "move=%s %s cannot unpack a compressed stream: sent uncompressed", self._order.move, self.target
            )
            self._compression = None

    async def _await_copy_place(self) -> None:
        """Wait until the pre-move warning is published and there is a free place for one more copy."""
        if self.telling is not None:
            await asyncio.wait({self.telling})
        if self._turn is not None:
            await self._turn.copy()

    def _take_steering(self) -> CopySteering:
        """Return the object that steers the copy. A move that is alone, or cannot be held, takes its turn at once and
        lets the hypervisor switch over."""
        context, order, turn = self._context, self._order, self._turn
        held = turn is not None and not turn.alone and context.driver.holds
        if turn is not None and not held:
            turn.take()
        self._steering = CopySteering(
            context.driver,
            order.reading.uuid,
            self._copying(),
            clock=context.clock,
            publish=self._progress,
            turn=turn,
            held=held,
            post_copy=self._post_copy,
            memory=order.reading.memory,
        )
        return self._steering

    def _copying(self) -> MoveSettings:
        """Return the settings for the hypervisor. Where the nodes compress the stream, they also do bandwidth and
        TLS."""
        settings = self._order.settings
        return replace(settings, bandwidth=0, tls=False) if self._compression is not None else settings

    def _copy_stream(self, stream: socket.socket) -> contextlib.AbstractAsyncContextManager[socket.socket]:
        """Return the socket into which the hypervisor writes the copy."""
        if self._compression is None:
            return contextlib.nullcontext(stream)
        tls = current(self._context.client_tls) if self._order.settings.tls else None
        return compression.packing(stream, self._compression, peer=self.target, tls=tls)

    async def _send(self, channel: wire.Channel, ready: wire.Ready) -> tuple[CopyResult, asyncio.Task[wire.Loaded]]:
        """Copy the memory while listening to the target, which may give up first."""
        order, target = self._order, self._order.target
        stream: socket.socket = await wire.open_stream(
            target.relocation_address or target.address, target.relocation_port, ready.token, CONNECT_DEADLINE_S
        )
        begun = self._context.clock.now()
        way = contextlib.AsyncExitStack()
        near = await way.enter_async_context(self._copy_stream(stream))
        copy_steering = self._take_steering()
        # CopySteering keeps the time limit
        settings = replace(self._copying(), timeout=0.0, downtime=copy_steering.limit)
        listening = asyncio.create_task(channel.expect(wire.Loaded, None), name=f"{order.move} listens")
        means = replace(copy_steering.means, peer_version=ready.hypervisor)
        sending = asyncio.create_task(
            self._context.driver.send(
                order.reading.uuid, near, settings, copy_steering.hear, peer=target.name, means=means
            ),
            name=f"{order.move} sends",
        )
        steering = asyncio.create_task(copy_steering.run(), name=f"{order.move} steers")
        try:
            await asyncio.wait({listening, sending, steering}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and steering.done():
                await tasks.stop(sending)
                steering.result()
            if not sending.done() and listening.exception():
                await tasks.stop(sending)
                if not sending.cancelled():
                    await sending  # it failed by itself, and that may be why the target gave up
                listening.result()
            result = await sending
            if result.poised:
                await self._poise(result, channel)
            return result, asyncio.create_task(
                target_wait.within(listening, self._reply_timeout(LOADED_DEADLINE_S), target.name)
            )
        except VeeryError as error:
            raise error if steering.done() else await target_wait.said_by_target(listening, error) from error
        finally:
            self._paths.learn(
                target.name, stream, self._context.clock.now() - begun, packed=self._compression is not None
            )
            await tasks.stop(steering)
            await tasks.stop(sending)
            await way.aclose()
            stream.close()
            if not sending.done() or sending.cancelled() or sending.exception():
                await tasks.stop(listening)

    async def _poise(self, result: CopyResult, channel: wire.Channel) -> None:
        """Prepare post-copy: the domain is paused and the rest is to follow. From COMMIT on neither copy can run
        without the other."""
        assert self._steps is not None
        self._paused_since = self._context.clock.now() - result.downtime_ms / 1000
        self._steps.line = replace(self._steps.line, post_copy=True)
        self._ask_soon()
        await channel.send(wire.Poised())

    async def _await_loaded(self, loaded: asyncio.Task[wire.Loaded]) -> None:
        """Wait until the target has everything and the store has answered."""
        try:
            await loaded
            self._booted = (await vitals.require(self._context.driver, self._order.reading.uuid)).started
            await self._ask_soon()
        finally:
            await tasks.stop(loaded)

    async def _ask_store(self) -> None:
        """Make sure that the store answers at all, before a step that cannot be undone."""
        now = self._context.clock.now()
        if now - self._store_answered > ANSWER_FRESH_S:
            await self._own()
            self._store_answered = self._context.clock.now()

    def _ask_soon(self) -> asyncio.Task[None]:
        """Begin to ask the store and to read the domain's connections, if that has not begun yet: the domain is
        paused."""
        if self._tracking is not None:
            self._tracking.begin()
        if self._store_check is None:
            self._store_check = asyncio.create_task(self._ask_store(), name=f"{self._order.move} asks the store")
        return self._store_check

    async def _stop_asking(self) -> None:
        if self._store_check is not None:
            await tasks.stop(self._store_check)
        if self._tracking is not None:
            await self._tracking.stop()

    async def _hand_over(
        self, owner: Owner, channel: wire.Channel, steps: Steps, undo: contextlib.AsyncExitStack
    ) -> MoveReport | None:
        """Do COMMIT and what follows it; never cut short. Returns None when the domain runs there and the rest of its
        memory follows."""
        await self._commit(owner, channel, steps.line, undo)
        undo.pop_all()
        return await self._after_commit(channel, steps)

    async def _commit(self, owner: Owner, channel: wire.Channel, line: Line, undo: contextlib.AsyncExitStack) -> Owner:
        context = self._context
        try:
            promise = Reservation(
                domain=line.domain,
                move=line.move,
                source=line.source,
                target=line.target,
                revision=line.reservation_revision,
            )
            return await owners.commit(context.store, owner, promise, self._record, started=self._booted)
        except StoreUnavailable:
            raise  # COMMIT certainly did not happen: undo
        except owners.OwnedElsewhere as error:  # the target has given up and says why
            listening = asyncio.create_task(channel.expect(wire.Running, 1.0), name=f"{line.move} listens")
            try:
                raise await target_wait.said_by_target(listening, error) from error
            finally:
                await tasks.stop(listening)
        except OutcomeUnknown:
            log.warning("move=%s COMMIT unanswered: asking the store who owns %s", line.move, line.domain)
            try:
                settled = await self._settler.ask(line, deadline=30.0)
            except OutcomeUnknown:
                undo.pop_all()
                self._settler.later(line)
                raise OutcomeUnknown(
                    f"the store did not say whether {line.domain} moved; it stays paused until the store answers",
                    hint="bring etcd back (veery node list); the move settles by itself",
                ) from None
            if settled is not None and settled.node == line.target:
                return settled
            raise Failed(f"{line.domain} was not handed over: the store did not take the COMMIT") from None

    async def _after_commit(self, channel: wire.Channel, steps: Steps) -> MoveReport | None:
        """Finish the move: the domain belongs to the target. Nothing is undone any more; what fails here is settled
        later."""
        line = steps.line
        reason = ""
        try:
            await steps.enter(Phase.FINISH)
            if line.post_copy:
                assert isinstance(self._context.driver, PostCopier)
                await self._context.driver.release(line.uuid)
            await channel.send(wire.Finish(await self._tracking.read() if self._tracking else (), self._booted))
            await channel.expect(wire.Running, self._reply_timeout(FINISH_DEADLINE_S))
        except VeeryError as error:
            reason = f"{line.target} owns it but has not confirmed yet that it runs: {error.message}"
            log.error("move=%s domain=%s %s", line.move, line.domain, reason)
            self._settler.later(line)
            return self.report(MoveState.DONE, reason=reason, hint=f"veery --node {line.target} list")
        self._leave_queue()
        if not line.post_copy:
            return await self._confirm(steps)
        if self._copy is not None:
            paused_ms = round((self._context.clock.now() - self._paused_since) * 1000, 1)
            self._copy = replace(self._copy, downtime_ms=paused_ms)
        return None

    async def _follow(self, steps: Steps, cancelled: asyncio.CancelledError | None) -> MoveReport:
        """Post-copy: send the rest of the memory, however long that takes. When veeryd stops meanwhile, or the move was
        `cancelled`, the journal keeps the rest."""
        try:
            if cancelled is not None:
                raise cancelled
            await steps.enter(Phase.CONFIRM)
            await postcopy.send_rest(self._context, steps.line, self._publish, self._order.target)
        except Lost as error:
            reason = f"this instance was lost in post-copy: {error.message}; {self.target} does what its on_crash says"
            log.error("move=%s domain=%s %s", steps.line.move, steps.line.domain, reason)
            with contextlib.suppress(Refused):  # its QEMU is gone
                await self._settler.leave(steps.line)
            steps.close()
            return self.report(MoveState.LOST, reason=reason, hint=f"veery --node {self.target} list")
        except VeeryError as error:  # the journal's disk is full
            self._settler.later(steps.line)
            return self.report(MoveState.DONE, reason=f"the rest of its memory is still on its way: {error.message}")
        except asyncio.CancelledError:
            return self.report(MoveState.DONE, reason="veeryd stopped while the rest of its memory was on its way")
        return await self._confirm(steps)

    async def _confirm(self, steps: Steps) -> MoveReport:
        """Remove the source's copy."""
        line = steps.line
        try:
            if steps.phase is not Phase.CONFIRM:
                await steps.enter(Phase.CONFIRM)
            await self._settler.leave(line)
        except VeeryError as error:
            reason = f"its copy on {line.source} is paused and not yet removed: {error.message}"
            log.error("move=%s domain=%s %s", line.move, line.domain, reason)
            self._settler.later(line)
            return self.report(MoveState.DONE, reason=reason)
        report = self.report(MoveState.DONE)
        steps.close()
        return replace(report, phases=dict(steps.times), total_ms=round(steps.elapsed_ms(), 1))

    # ---- reports

    def report(self, state: MoveState, *, reason: str = "", hint: str = "") -> MoveReport:
        """Return the report of the move as it is now."""
        order, steps, copy = self._order, self._steps, self._copy
        moved = state in {MoveState.DONE, MoveState.LOST}
        return MoveReport(
            id=order.move,
            domain=order.reading.name,
            source=self._context.node,
            target=order.target.name,
            state=state,
            phase=self.phase,
            started=self._started,
            total_ms=round(steps.elapsed_ms(), 1) if steps else 0.0,
            downtime_ms=copy.downtime_ms if copy else 0.0,
            bytes=copy.bytes if copy else 0,
            rounds=copy.rounds if copy else 0,
            dirty_rate=copy.dirty_rate if copy else 0.0,
            phases=dict(steps.times) if steps else {},
            reason=reason,
            hint=hint,
            policy=order.settings.policy,
            samples=tuple(self._steering.samples) if self._steering else (),
            story=tuple(self._steering.story) if self._steering else (),
            runs_on=order.target.name if moved else self._runs_here(state),
            disk_bytes=self._disk_copy.size,
            packed=self._compression.packed if self._compression else 0,
            cipher=self._compression.cipher if self._compression else copy.cipher if copy else "",
            kept=disks.kept(steps.line) if state is MoveState.DONE and steps else (),
        )

    def _runs_here(self, state: MoveState) -> str:
        return "" if state is MoveState.UNKNOWN or self._ended else self._context.node

    def _entered(self, phase: Phase) -> None:
        self._publish(MoveProgress(phase=phase))

    def _progress(self, progress: MoveProgress) -> None:
        if self._disk_copy.size:
            progress = replace(progress, step="memory", disk_total=self._disk_copy.size)
        if progress.stopped:  # from here on every millisecond adds to the gap
            self._ask_soon()
        self._publish(progress)


def _is_paused(order: Order) -> bool:
    """Return whether the domain is paused for the whole copy; such a move needs no switch-over turn."""
    return order.reading.state is DomainState.PAUSED or not order.settings.live
