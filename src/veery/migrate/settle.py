"""Settling of unfinished moves: read the owner, obey it. The same code runs after a crash, after a lost answer, and
after an undo that could not reach the store.

`drop` in veery.cluster.owner makes the answer final: once it has removed the reservation, no COMMIT of that move can
succeed any more, not even one that is still on its way."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from veery.cluster import owner as owners
from veery.cluster.keys import Unreadable
from veery.cluster.store import StoreUnavailable
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.hypervisor.base import Lost
from veery.migrate import disks, postcopy
from veery.migrate.base import MoveContext
from veery.migrate.journal import Line, Side
from veery.model.cluster import Owner
from veery.model.domain import DomainState

log = logging.getLogger(__name__)

STUCK_AFTER_S = 30.0
"""A move that is not settled after this time is reported: its obstacle does not go away by itself."""
RETRY_INTERVAL_S = 0.5  # between two tries while the store or the peer does not answer


class Settler:
    """Ends moves that did not end by themselves. `run` is its task; `later` may be called at any time."""

    def __init__(self, context: MoveContext) -> None:
        """Nothing happens before `run`."""
        self._context = context
        self._waiting: asyncio.Queue[Line] = asyncio.Queue()
        self._open: dict[str, Line] = {}
        self._guessed: set[str] = set()  # lines made for a journal file that could not be read
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def busy(self, domain: str) -> Line | None:
        """Return the move of `domain` that is still being settled, or None."""
        return next((line for line in self._open.values() if line.domain == domain), None)

    def troubles(self, after: float = STUCK_AFTER_S) -> tuple[str, ...]:
        """Return the moves that have not been settled for more than `after` seconds, each with what it waits for. A
        post-copy whose memory is still arriving is not listed."""
        return tuple(self.unsettled(after).values())

    def unsettled(self, after: float = STUCK_AFTER_S) -> dict[str, str]:
        """Return what `troubles` does, by domain."""
        now, found = self._context.clock.now(), {}
        for key, line in self._open.items():
            if now - self._since[key] > after and (why := self._why.get(key)):
                found[line.domain] = f"move {line.move} of {line.domain} is not settled: {why}"
        return found

    def later(self, line: Line) -> None:
        """Settle `line` in the background, however long it takes."""
        self._open[_key(line)] = line
        self._since.setdefault(_key(line), self._context.clock.now())
        self._waiting.put_nowait(line)

    async def run(self) -> None:
        """Settle what an earlier run of veeryd left in the journal, then every line that `later` adds."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                line = await self._waiting.get()
                tasks.create_task(self._settle(line), name=f"settle {line.move}")

    def recall(self) -> None:
        """Queue the moves in the journal. Call once, before `run`, after the driver has found its domains."""
        for line in self._context.journal.open():
            log.info("move=%s domain=%s side=%s found open in %s", line.move, line.domain, line.side, line.phase)
            self.later(line)

    async def recall_illegible(self) -> None:
        """Queue the domains of moves whose journal file could not be read. Call once, after `recall`. Such a move may
        be in doubt, and its domain is not known. So every domain here that it can have left half moved is settled by
        its owner key, and takes no orders until then."""
        lost = self._context.journal.illegible
        if not lost:
            return
        for reading in await self._context.driver.list():
            side = Side.TARGET if reading.state is DomainState.INCOMING else Side.SOURCE
            moves = sorted({each.move for each in lost if each.side is side})
            if not moves or self.busy(reading.name):
                continue
            line = Line(
                move=",".join(moves),
                side=side,
                domain=reading.name,
                uuid=reading.uuid,
                boot="",
                source="",
                target="",
                owner_revision=0,
            )
            self._guessed.add(_key(line))
            self.later(line)

    async def ask(self, line: Line, *, deadline: float) -> Owner | None:
        """Return who owns the domain, certain and final. Raises OutcomeUnknown after `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        return await self._drop(line)
                    except (StoreUnavailable, OutcomeUnknown, Unreadable) as error:
                        self._waits(line, f"the store does not say who owns {line.domain}: {error.message}")
                        await self._context.clock.sleep(RETRY_INTERVAL_S)
        except TimeoutError as error:
            raise OutcomeUnknown(f"the store does not say who owns {line.domain}") from error

    async def run_on(self, line: Line) -> None:
        """First step of an undo at the source: let the domain run on. If the driver cannot, the settler tries later
        until it can, and the driver's error is raised. Raises Refused where the domain no longer exists."""
        try:
            await self._context.driver.resume(line.uuid)
        except (Failed, OutcomeUnknown):
            self.later(line)
            raise

    async def undone(self, line: Line) -> None:
        """Last step of an undo at the source: no COMMIT was sent and the domain runs on, so drop the promise. Where the
        store does not answer, or the domain does not run on yet, the settler does it later."""
        if _key(line) in self._open:
            return
        try:
            async with asyncio.timeout(5):
                await self._drop(line)
        except (VeeryError, TimeoutError):
            self.later(line)
            return
        self._context.journal.strike(line)

    async def leave(self, line: Line) -> None:
        """Do the source's CONFIRM: remove its paused copy, put its local disks aside. Raises Failed.

        The domain's taps go at the same time: the copy will not use them again, and the kernel takes some 20 ms to
        remove one."""
        driver, attacher = self._context.driver, self._context.attacher
        _, attachments = await driver.spec(line.uuid)
        for error in await asyncio.gather(
            driver.destroy(line.uuid), attacher.detach(attachments), return_exceptions=True
        ):
            if error is not None:
                raise error
        await self.clear_disks(line)

    async def clear_disks(self, line: Line) -> None:
        """Clear up the files of the disks that went along: the domain does not belong to this node (any more). Raises
        Failed, StoreUnavailable."""
        await disks.settle(self._context.store, line, self._context.node)

    # ---- inside

    async def _drop(self, line: Line) -> Owner | None:
        store = self._context.store
        promise = await owners.reservation(store, line.domain)
        if promise is not None and promise.move == line.move:
            return await owners.drop(store, promise)
        return await owners.read(store, line.domain)  # no COMMIT of this move can succeed any more

    async def _settle(self, line: Line) -> None:
        key = _key(line)
        try:
            while True:
                try:
                    await (self._settle_guessed if _key(line) in self._guessed else self._settle_once)(line)
                    return
                except (StoreUnavailable, OutcomeUnknown, Failed) as error:
                    self._waits(line, error.message)
                except Exception as error:
                    log.exception("move=%s domain=%s not settled yet", line.move, line.domain)
                    self._waits(line, f"{type(error).__name__}: {error}")
                await self._context.clock.sleep(RETRY_INTERVAL_S)
        finally:
            for table in (self._open, self._since, self._why):
                table.pop(key, None)
            self._guessed.discard(key)

    def _waits(self, line: Line, why: str) -> None:
        """Remember what settling `line` waits for, and log it when it is new."""
        key = _key(line)
        if self._why.get(key) == why:
            return
        if key in self._open:
            self._why[key] = why
        log.warning("move=%s domain=%s not settled yet: %s", line.move, line.domain, why)

    async def _settle_guessed(self, line: Line) -> None:
        """Settle a domain that may have been half moved by a move whose journal file could not be read. Drop the move's
        promise first: then no COMMIT of it can succeed, and the owner key decides. A copy whose owner is another node
        is left as it is: the caretaker destroys it."""
        store, driver = self._context.store, self._context.driver
        promise = await owners.reservation(store, line.domain)
        if promise is not None and promise.move in line.move.split(","):
            await owners.drop(store, promise)
        owner = await owners.read(store, line.domain)
        if owner is None or owner.node != self._context.node:
            return
        with contextlib.suppress(Refused):  # the domain has ended meanwhile
            if line.side is Side.SOURCE:
                await driver.resume(line.uuid)
            else:
                await driver.finish(line.uuid, started=owner.started)
        log.warning("domain=%s belongs to this node and runs on; journal of %s unreadable", line.domain, line.move)

    async def _settle_once(self, line: Line) -> None:
        owner = await self.ask(line, deadline=3600)
        here = owner is not None and owner.node == self._context.node and owner.boot == line.boot
        try:
            if owner is not None and here:
                await self._keep(line, owner)
            else:
                await self._send_rest(line)
                await self.leave(line)
        except Refused:  # this node no longer has the domain: nothing is left to settle
            log.info("move=%s domain=%s is not here", line.move, line.domain)
            if not here:
                await self.clear_disks(line)
        self._context.journal.strike(line)
        log.info(
            "move=%s domain=%s settled: %s", line.move, line.domain, f"owner is {owner.node}" if owner else "no owner"
        )

    async def _send_rest(self, line: Line) -> None:
        """Send the rest of the memory first, in post-copy: the source's copy may still hold a part of the domain."""
        if not line.post_copy or line.side is not Side.SOURCE:
            return
        try:
            await postcopy.send_rest(self._context, line, lambda progress: None)
        except Lost as error:
            log.error(
                "move=%s domain=%s this instance was lost in post-copy: %s", line.move, line.domain, error.message
            )

    async def _keep(self, line: Line, owner: Owner) -> None:
        """Let the domain run here: this node is the owner. A reboot during the copy is known from the owner key alone
        if the daemon that heard of it was killed."""
        if line.side is Side.SOURCE:
            await self._context.driver.resume(line.uuid)
        elif line.post_copy:
            await postcopy.await_rest(self._context, line, owner.started)
        else:
            await self._context.driver.finish(line.uuid, paused=line.paused, started=owner.started)


def _key(line: Line) -> str:
    return f"{line.move}.{line.side.value}.{line.domain}"
