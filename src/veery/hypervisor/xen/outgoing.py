"""The source's side of one move: `xl migrate` with veery's relay as its transport. relay.py says which process stops
when.

    FOLDER/xl      pid and start time of xl migrate
    FOLDER/log     the errors of xl and the relay

If anything ends before xl is stopped, xl itself lets the domain run on; if xl was killed, libxl.py does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.host.process import Process
from veery.hypervisor.xen import session
from veery.hypervisor.xen.parse import Reason, Row, complaint
from veery.hypervisor.xen.relay_link import RelayLink
from veery.model.move import CopyResult, MoveProgress, MoveSettings, Phase, Tuning

log = logging.getLogger(__name__)

RELAY = (sys.executable, "-m", "veery.hypervisor.xen.relay")
BEGIN_DEADLINE_S = 30.0  # from xl's start to the relay's
LOAD_STALL_S = 120.0  # without a byte while the target's xl works: each hotplug script may take 40 s
RESUME_DEADLINE_S = 60.0  # for xl to let the domain run on
SETTLE_S = 5.0  # a guest may still obey a killed xl's order to suspend for so long
LOOK_INTERVAL_S = 0.25
_TELLING = 2 << 20  # bytes; the speed means nothing before them, while xl prepares

Report = Callable[[MoveProgress], None]


class Tool(Protocol):
    """The operations of xl that this module and incoming.py use."""

    @property
    def program(self) -> str:
        """xl's name or path."""
        ...

    async def rows(self) -> tuple[Row, ...]:
        """Return every domain, Domain-0 too."""
        ...

    async def resume(self, domid: int) -> None:
        """Let a suspended domain run on where it is. Raises Failed."""
        ...

    async def calm(self, domid: int) -> None:
        """Stop tracking the pages that the domain writes. Raises Failed."""
        ...

    async def rename(self, domid: int, name: str) -> None:
        """Give the domain another name."""
        ...

    async def unpause(self, domid: int) -> None:
        """Start the domain's processors again."""
        ...


class Outgoing:
    """One domain's way out, under `folder`. It may be one of an earlier run of veeryd; then only `resume` and `end` are
    of use."""

    def __init__(self, folder: Path, uuid: str, xl: Tool, clock: Clock) -> None:
        """Nothing happens yet."""
        self._folder, self._uuid, self._xl, self._clock = folder, uuid, xl, clock
        self._link: RelayLink | None = None

    @property
    def begun(self) -> bool:
        """True if something of the move is left that `resume` or `end` must clear away."""
        return self._folder.exists()

    async def send(
        self,
        row: Row,
        stream: socket.socket,
        settings: MoveSettings,
        report: Report,
        *,
        peer: str,
        tls: Path | None,
    ) -> CopyResult:
        """See Driver.send, for the domain in `row`. `tls` is the folder of the certificates, None for a plain
        stream."""
        try:
            return await self._copy(row, stream, settings, report, peer=peer, tls=tls)
        except BaseException as error:
            try:
                await tasks.through(self.resume())
            except VeeryError as left:
                if isinstance(error, Failed):
                    raise Failed(f"{error.message}; {left}") from error
            raise

    async def tune(self, tuning: Tuning) -> None:
        """See Driver.tune. Only the bandwidth can be changed, because xl itself decides when it switches over."""
        if self._link is None:
            raise Refused("no copy of this domain is under way")
        if tuning.bandwidth is not None:
            await self._link.tell({"rate": tuning.bandwidth})
        if tuning.stop or tuning.post_copy or tuning.throttle:
            raise Failed("xl itself decides when it switches over")

    async def resume(self) -> None:
        """See Driver.resume. Idempotent; also where nothing was begun. Raises Failed, OutcomeUnknown."""
        if not self.begun:
            return
        process = session.noted(self._folder / "xl")
        self._hang_up()  # ends the relay and with it xl's pipe: xl then lets the domain run on
        killed = process is None or not process.alive()
        if process is not None:
            process.send(signal.SIGCONT)
            try:
                async with asyncio.timeout(RESUME_DEADLINE_S):
                    await process.gone()
            except TimeoutError:
                killed = True
            killed = killed or "resuming at sender" not in self._said()
            await session.kill(process)
        await self._run_on(SETTLE_S if killed else 0.0)
        if killed:
            await self._calm()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def end(self) -> None:
        """Keep xl from touching the domain again, so that it can be destroyed: it does not belong to this node any
        more. Idempotent."""
        if not self.begun:
            return
        process = session.noted(self._folder / "xl")
        if process is not None:
            await session.kill(process)  # before its pipe ends and it acts
        self._hang_up()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- inside

    async def _copy(
        self, row: Row, stream: socket.socket, settings: MoveSettings, report: Report, *, peer: str, tls: Path | None
    ) -> CopyResult:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        link = self._link = RelayLink(self._folder / "door")
        link.open()
        rune = "exec " + shlex.join([*RELAY, "send", str(link.path)])
        command = [self._xl.program, "migrate", "-s", "", str(row.domid), rune]
        process = Process.spawn(command, log_file=self._folder / "log")
        process.save(self._folder / "xl")
        ended = asyncio.create_task(process.gone(), name=f"{row.name}: xl migrate")
        try:
            await self._within(link.answer(), ended, BEGIN_DEADLINE_S)
            order = {
                "tls": str(tls or ""),
                "peer": peer,
                "rate": settings.bandwidth,
                "xl": [process.pid, process.ticks],
            }
            await link.tell({"take": order}, stream.fileno())
            sent = await self._follow(link, ended, settings.stall, _Meter(row.memory << 20, report, self._clock))
        finally:
            await tasks.stop(ended)
        return CopyResult(downtime_ms=0.0, bytes=sent, rounds=0)  # xl reports neither

    async def _follow(self, link: RelayLink, ended: asyncio.Task[None], stall: float, meter: _Meter) -> int:
        """Follow the copy until xl is stopped and the domain is loaded at the target. Returns the bytes that were sent.
        Raises Failed."""
        limit = max(stall, BEGIN_DEADLINE_S)  # until the relays are connected
        hearing = asyncio.ensure_future(link.hear())
        try:
            while True:
                await asyncio.wait({hearing, ended}, timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
                if meter.still > limit:
                    raise Failed(f"no byte moved for {limit:g} s", hint="is the path to the target up?")
                if hearing.done():
                    news, hearing = hearing.result(), asyncio.ensure_future(link.hear())
                    if news is None or "end" in news:
                        raise Failed(f"the copy ended: {self._reason((news or {}).get('end', 'the relay is gone'))}")
                    meter.read(news["sent"])
                    limit = stall if news.get("blocked") else LOAD_STALL_S
                    if "ready" in news:
                        return meter.sent
                elif ended.done():
                    raise Failed(f"the copy ended: {self._reason('xl ended')}")
        finally:
            await tasks.stop(hearing)

    async def _within(self, work: Coroutine[Any, Any, None], ended: asyncio.Task[None], seconds: float) -> None:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Failed(f"xl migrate did not begin: {self._reason('no message')}")
            task.result()
        finally:
            await tasks.stop(task)

    async def _run_on(self, settle: float) -> None:
        """Wait until the domain runs, and for `settle` seconds more; resume it where it is suspended."""
        ends = self._clock.now() + settle
        while True:
            row = next((row for row in await self._xl.rows() if row.uuid == self._uuid and not row.dying), None)
            if row is None:
                return
            if row.reason == Reason.SUSPEND:
                log.warning("domain=%s is suspended and its xl is gone: resuming it", row.name)
                await self._xl.resume(row.domid)
                ends = min(ends, self._clock.now())
                continue
            if self._clock.now() >= ends:
                return
            await self._clock.sleep(LOOK_INTERVAL_S)

    async def _calm(self) -> None:
        """End log-dirty mode. A failure only makes the domain slower, so it is logged."""
        try:
            for row in await self._xl.rows():
                if row.uuid == self._uuid and not row.dying:
                    await self._xl.calm(row.domid)
        except VeeryError as error:
            log.warning("uuid=%s %s", self._uuid, error.message)

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return (self._folder / "log").read_text(errors="replace")
        return ""

    def _reason(self, other: str) -> str:
        """Return the reason, in xl's words where xl gave one."""
        said = complaint(self._said())
        return other if said in ("no reason given", "") or "Saving to" in said else f"{other} ({said})"


class _Meter:
    """Makes readings of the relay's byte counts."""

    def __init__(self, total: int, report: Report, clock: Clock) -> None:
        self._total, self._report, self._clock = total, report, clock
        self.sent, self._at, self._rate, self._grew = 0, clock.now(), 0.0, clock.now()

    @property
    def still(self) -> float:
        """Seconds since a byte was last seen to move."""
        return self._clock.now() - self._grew

    def read(self, sent: int) -> None:
        """Take the count: `sent` bytes by now."""
        now = self._clock.now()
        if sent > self.sent:
            self._grew = now
        if now > self._at and sent > _TELLING:
            rate = (sent - self.sent) / (now - self._at)
            self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        self.sent, self._at = sent, now
        remaining = max(0, self._total - sent)
        reading = MoveProgress(
            phase=Phase.COPY, transferred=sent, total=self._total, remaining=remaining, rate=self._rate, rounds=1
        )
        self._report(reading)
