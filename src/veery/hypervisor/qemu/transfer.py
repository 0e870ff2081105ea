"""One migration of one QEMU, whichever way it goes: set up, followed to its end, cancelled.

It is driven through the domain's second monitor, which belongs to it, so that no other command stands in its way.
QEMU's side of it: docs/devel/migration, QAPI's migration.json; what it does when things break was tried."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from veery.errors import Failed, OutcomeUnknown, VeeryError
from veery.host.clock import Clock
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import Command, CommandError, Monitor
from veery.model.move import CopyOptions, MoveProgress, Phase

log = logging.getLogger(__name__)

POLL = 0.1
POLL_HELD = 0.02
"""Seconds between two readings of a copy that waits for our word: what it reads decides when the domain stops."""
QUERY_DEADLINE = 2.0
CANCEL_DEADLINE = 5.0
GENTLER = "try when it is quieter, with more bandwidth, or --policy balanced"
PLAIN = CopyOptions()
OVER = frozenset({"completed", "failed", "cancelled"})

Info = Mapping[str, Any]


async def _never() -> bool:
    return False


class Transfer:
    """One migration of one QEMU, seen through a monitor of its own: `open` it, `close` it."""

    def __init__(self, domain: Domain, clock: Clock) -> None:
        """For `domain`, which side it is on does not matter."""
        self.domain, self._clock = domain, clock
        self._news = asyncio.Event()
        self.status = ""
        self.device_since = 0.0  # when the domain was seen stopped for the switch-over
        self.stopped_at = 0.0  # when we stopped the domain ourselves
        self.leaving = False  # the domain goes on at the target before all is sent
        self.poll = POLL
        self.monitor = Monitor(domain.record.spec.name, domain.home.monitors[1], self._event)

    async def open(self) -> None:
        """Connect. Raises Failed, OutcomeUnknown."""
        await self.monitor.connect()

    async def close(self) -> None:
        """Hang up; the migration does not notice."""
        await self.monitor.close()

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "MIGRATION":
            self.status = str(data["status"])
            if self.status == "device":
                self.device_since = self._clock.now()
            self._news.set()

    async def set_up(self, *, return_path: bool, means: CopyOptions = PLAIN, **parameters: Any) -> None:
        """Capabilities and `parameters` (underscores for dashes). A file cannot answer: no return path there.

        switchover-ack holds a copy: the source waits for a word of the target, which gives it only where it has the
        capability too (ours has not), or until the domain stands still (migration.c, migration_can_switchover)."""
        await self.monitor.execute_all(*orders(return_path=return_path, means=means, **parameters))

    async def query(self) -> Info:
        """query-migrate. Raises OutcomeUnknown when QEMU is silent."""
        info: Info = await self.monitor.execute("query-migrate", deadline=QUERY_DEADLINE)
        self.status = str(info.get("status", ""))
        return info

    async def change(self, seconds: float) -> None:
        """Return on the next change of status, on the end of the process, or after `seconds`."""
        gone = asyncio.create_task(self.domain.gone.wait())
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({gone, news}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            news.cancel()
        self._news.clear()

    async def follow(
        self,
        *,
        stall: float,
        pulse: Callable[[Info], object],
        timeout: float = 0.0,
        guard: float = 0.0,
        enough: Callable[[], Awaitable[bool]] = _never,
    ) -> Info:
        """Wait for the end. `pulse` makes of a reading a value that changes as long as bytes move.

        Returns the last reading, its status "completed", or that at which `enough` said so. Raises Failed when it
        failed, was cancelled, stood still for `stall` seconds, took longer than `timeout` (0: none), stood stopped
        for more than `guard` ms (0: any time), or QEMU ended."""
        name = self.domain.record.spec.name
        begun = moved = self._clock.now()
        last: object = None
        while True:
            if self.domain.gone.is_set():
                raise Failed(f"{name}: QEMU ended: {self.domain.home.words() or 'no message'}")
            silence = ""
            with contextlib.suppress(OutcomeUnknown):
                info = await self.query()
                if self.status == "completed" or await enough():
                    return info
                if self.status in OVER:
                    reason = info.get("error-desc") or f"the copy was {self.status}"
                    if "load of migration failed" in reason:  # why, stands in its log alone
                        reason = self.domain.home.words() or reason
                    raise Failed(f"{name}: {reason}")
                value = pulse(info)
                if value != last:
                    last, moved = value, self._clock.now()
                silence = "no byte moved"
            now = self._clock.now()
            if now - moved > stall:
                raise Failed(
                    f"{name}: {silence or 'QEMU did not answer'} for {stall:g} s", hint="is the path to the target up?"
                )
            if timeout and now - begun > timeout:
                raise Failed(
                    f"{name}: the copy did not end within {timeout:g} s", hint="give it more bandwidth, or pause it"
                )
            pause = self.poll
            if guard and (stands_since := self._stands_since()):
                left = stands_since + guard / 1000 - now
                if left <= 0:
                    raise Failed(f"{name}: the switch-over took more than {guard:g} ms", hint=GENTLER)
                pause = min(pause, left)
            await self.change(pause)

    def _stands_since(self) -> float:
        """Since when the domain stands for its switch-over, 0.0: it does not. Where we stopped it, since then: what
        remains may be stuck on its way; where its disks are mirrored, since these have ended."""
        if self.stopped_at and self.domain.mirrors is None:
            return self.stopped_at
        return self.device_since

    async def stop(self) -> None:
        """Stop the domain: what remains is now all there is to send. Raises Failed, OutcomeUnknown."""
        if not self.stopped_at:
            begun = self._clock.now()
            await self.domain.stop()
            self.stopped_at = begun

    async def leave(self) -> None:
        """Stop the domain, so that it goes on at the target before all is sent. Raises Failed, OutcomeUnknown.

        It is stopped by us and not by QEMU: whatever becomes of the copy, QEMU then never starts it here by itself
        (migration.c, migration_iteration_finish, vm_old_state)."""
        self.leaving = True
        await self.stop()
        with contextlib.suppress(CommandError):  # it was all but through, and needs no post-copy any more
            await self.monitor.execute("migrate-start-postcopy")

    async def cancel(self, stream: socket.socket | None) -> None:
        """Stop a copy that is under way, and see to it that the domain runs on, as far as it did before.

        A QEMU that waits for the network is freed by shutting `stream` down. Never raises."""
        try:
            with contextlib.suppress(Failed):
                await self.query()
            if self.status and self.status not in OVER:
                await self.monitor.execute("migrate_cancel", deadline=self.domain.patience(QUERY_DEADLINE))
            # QEMU holds its lock for the bitmap of a large memory, and answers nothing meanwhile.
            if not await self._over(self.domain.patience(CANCEL_DEADLINE)) and stream is not None:
                shut(stream)
                await self._over(CANCEL_DEADLINE)
        except VeeryError as error:
            log.warning("domain=%s copy not cancelled in order: %s", self.domain.record.spec.name, error)
            if stream is not None:
                shut(stream)

    async def _over(self, seconds: float) -> bool:
        end = self._clock.now() + seconds
        while self._clock.now() < end:
            await self.query()
            if not self.status or self.status in OVER:
                return True
            await self.change(POLL)
        return False


def orders(
    *, return_path: bool, means: CopyOptions = PLAIN, late_activate: bool = False, **parameters: Any
) -> tuple[Command, ...]:
    """The commands of `Transfer.set_up`; with `late_activate` a target opens its disks when it is let go."""
    wanted = {
        "events": True,
        "return-path": return_path,
        "switchover-ack": means.hold,
        "auto-converge": means.throttle,
        "xbzrle": means.delta,
        "postcopy-ram": means.post_copy,
        "late-block-activate": late_activate,
    }
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    values = {name.replace("_", "-"): value for name, value in parameters.items()}
    return ("migrate-set-capabilities", {"capabilities": capabilities}), ("migrate-set-parameters", values)


def reading(info: Info) -> MoveProgress:
    """What query-migrate told, as a progress of COPY."""
    ram = info.get("ram", {})
    return MoveProgress(
        phase=Phase.COPY,
        transferred=ram.get("transferred", 0),
        remaining=ram.get("remaining", 0),
        total=ram.get("total", 0),
        rate=ram.get("mbps", 0.0) * 1e6 / 8,
        dirty_rate=float(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096)),
        rounds=ram.get("dirty-sync-count", 0),
        stopped=info.get("status") == "device",
        throttle=info.get("cpu-throttle-percentage", 0),
    )


def shut(stream: socket.socket) -> None:
    """Break a connection, whoever else holds it."""
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
