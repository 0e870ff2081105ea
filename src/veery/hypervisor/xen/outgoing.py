"""A domain on its way out: `xl migrate` with our relay as its transport. See relay.py for who stops when.

    FOLDER/xl      pid and start time of xl migrate
    FOLDER/log     what it and the relay complained of

Whatever ends before xl stands still, the domain runs on by xl's own hand; where that hand was killed, by libxl.py."""

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
BEGIN = 30.0  # seconds from xl's start to the relay's
LOAD = 120.0  # seconds without a byte while the target's xl is what we wait for: hotplug scripts have 40 each
RESUME = 60.0  # seconds for xl to let the domain run on
SETTLE = 5.0  # seconds in which a guest may still follow the call to suspend of an xl that was killed
LOOK = 0.25
_TELLING = 2 << 20  # bytes from which on their pace tells something: before them xl makes ready

Report = Callable[[MoveProgress], None]


class Tool(Protocol):
    """What is asked of xl here, and in incoming.py."""

    @property
    def program(self) -> str:
        """xl's name or path."""
        ...

    async def rows(self) -> tuple[Row, ...]:
        """Every domain, Domain-0 too."""
        ...

    async def resume(self, domid: int) -> None:
        """Let a suspended domain run on where it stands. Raises Failed."""
        ...

    async def calm(self, domid: int) -> None:
        """Look no more for the pages that it writes to. Raises Failed."""
        ...

    async def rename(self, domid: int, name: str) -> None:
        """Give it another name."""
        ...

    async def unpause(self, domid: int) -> None:
        """Let its processors go on."""
        ...


class Outgoing:
    """One domain's way out, under `folder`; of an earlier life of ours too, but then only `resume` and `end` serve."""

    def __init__(self, folder: Path, uuid: str, xl: Tool, clock: Clock) -> None:
        """Nothing is done yet."""
        self._folder, self._uuid, self._xl, self._clock = folder, uuid, xl, clock
        self._door: RelayLink | None = None

    @property
    def begun(self) -> bool:
        """Whether something of it is left that `resume` or `end` has to clear away."""
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
        """See Driver.send, for the domain in `row`; `tls` is the folder of the certificates, None: in the clear."""
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
        """See Driver.tune: only the bandwidth can be changed, xl itself decides when it switches over."""
        if self._door is None:
            raise Refused("no copy of it is under way")
        if tuning.bandwidth is not None:
            await self._door.tell({"rate": tuning.bandwidth})
        if tuning.stop or tuning.post_copy or tuning.throttle:
            raise Failed("xl decides itself when it switches over")

    async def resume(self) -> None:
        """See Driver.resume. Idempotent; also where nothing was begun. Raises Failed, OutcomeUnknown."""
        if not self.begun:
            return
        process = session.noted(self._folder / "xl")
        self._hang_up()  # the relay ends, and with it xl's pipe: xl lets the domain run on
        killed = process is None or not process.alive()
        if process is not None:
            process.send(signal.SIGCONT)
            try:
                async with asyncio.timeout(RESUME):
                    await process.gone()
            except TimeoutError:
                killed = True
            killed = killed or "resuming at sender" not in self._said()
            await session.kill(process)
        await self._run_on(SETTLE if killed else 0.0)
        if killed:
            await self._calm()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def end(self) -> None:
        """The domain is not ours any more: xl must not touch it again, and then it may be destroyed. Idempotent."""
        if not self.begun:
            return
        process = session.noted(self._folder / "xl")
        if process is not None:
            await session.kill(process)  # before its pipe ends
        self._hang_up()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- inside

    async def _copy(
        self, row: Row, stream: socket.socket, settings: MoveSettings, report: Report, *, peer: str, tls: Path | None
    ) -> CopyResult:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        door = self._door = RelayLink(self._folder / "door")
        door.open()
        rune = "exec " + shlex.join([*RELAY, "send", str(door.path)])
        command = [self._xl.program, "migrate", "-s", "", str(row.domid), rune]
        process = Process.spawn(command, log_file=self._folder / "log")
        process.save(self._folder / "xl")
        ended = asyncio.create_task(process.gone(), name=f"{row.name}: xl migrate")
        try:
            await self._within(door.answer(), ended, BEGIN)
            order = {
                "tls": str(tls or ""),
                "peer": peer,
                "rate": settings.bandwidth,
                "xl": [process.pid, process.ticks],
            }
            await door.tell({"take": order}, stream.fileno())
            sent = await self._follow(door, ended, settings.stall, _Meter(row.memory << 20, report, self._clock))
        finally:
            await tasks.stop(ended)
        return CopyResult(downtime_ms=0.0, bytes=sent, rounds=0)  # xl tells neither

    async def _follow(self, door: RelayLink, ended: asyncio.Task[None], stall: float, meter: _Meter) -> int:
        """Until xl stands still, the domain loaded at the target: the bytes that were sent. Raises Failed."""
        limit = max(stall, BEGIN)  # until the relays have shaken hands
        hearing = asyncio.ensure_future(door.hear())
        try:
            while True:
                await asyncio.wait({hearing, ended}, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                if meter.still > limit:
                    raise Failed(f"no byte moved for {limit:g} s", hint="is the path to the target up?")
                if hearing.done():
                    news, hearing = hearing.result(), asyncio.ensure_future(door.hear())
                    if news is None or "end" in news:
                        raise Failed(f"the copy ended: {self._reason((news or {}).get('end', 'the relay is gone'))}")
                    meter.read(news["sent"])
                    limit = stall if news.get("blocked") else LOAD
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
        """See that the domain runs: until it does, and for `settle` seconds more."""
        ends = self._clock.now() + settle
        while True:
            row = next((row for row in await self._xl.rows() if row.uuid == self._uuid and not row.dying), None)
            if row is None:
                return
            if row.reason == Reason.SUSPEND:
                log.warning("domain=%s stands suspended, its xl is gone: letting it run on", row.name)
                await self._xl.resume(row.domid)
                ends = min(ends, self._clock.now())
                continue
            if self._clock.now() >= ends:
                return
            await self._clock.sleep(LOOK)

    async def _calm(self) -> None:
        """It runs; that it runs as fast as before is no condition of anything."""
        try:
            for row in await self._xl.rows():
                if row.uuid == self._uuid and not row.dying:
                    await self._xl.calm(row.domid)
        except VeeryError as error:
            log.warning("uuid=%s %s", self._uuid, error.message)

    def _hang_up(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return (self._folder / "log").read_text(errors="replace")
        return ""

    def _reason(self, other: str) -> str:
        """Why, in xl's words where it has said why."""
        said = complaint(self._said())
        return other if said in ("no reason given", "") or "Saving to" in said else f"{other} ({said})"


class _Meter:
    """Makes readings of what the relay counts."""

    def __init__(self, total: int, report: Report, clock: Clock) -> None:
        self._total, self._report, self._clock = total, report, clock
        self.sent, self._at, self._rate, self._grew = 0, clock.now(), 0.0, clock.now()

    @property
    def still(self) -> float:
        """Seconds since a byte was last seen to move."""
        return self._clock.now() - self._grew

    def read(self, sent: int) -> None:
        """`sent` bytes by now."""
        now = self._clock.now()
        if sent > self.sent:
            self._grew = now
        if now > self._at and sent > _TELLING:
            rate = (sent - self.sent) / (now - self._at)
            self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        self.sent, self._at = sent, now
        remaining = max(0, self._total - sent)
        told = MoveProgress(
            phase=Phase.COPY, transferred=sent, total=self._total, remaining=remaining, rate=self._rate, rounds=1
        )
        self._report(told)
