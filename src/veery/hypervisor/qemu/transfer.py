"""One migration of one QEMU, in either direction: set up, followed to its end, cancelled.

It uses the domain's second monitor, which it has for itself, so that no other command delays it. QEMU's side:
docs/devel/migration, QAPI's migration.json; its behaviour when things break was tested."""

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

POLL_INTERVAL_S = 0.1
POLL_HELD_INTERVAL_S = 0.02
"""Between two readings of a copy that waits for an order: these readings decide when the domain stops."""
QUERY_DEADLINE_S = 2.0
CANCEL_DEADLINE_S = 5.0
GENTLER = "try when it is quieter, with more bandwidth, or --policy balanced"
PLAIN = CopyOptions()
OVER = frozenset({"completed", "failed", "cancelled"})

Info = Mapping[str, Any]


async def _never() -> bool:
    return False


class Transfer:
    """One migration of one QEMU, through a monitor of its own: `open` it, `close` it."""

    def __init__(self, domain: Domain, clock: Clock) -> None:
        """`domain` may be on either side."""
        self.domain, self._clock = domain, clock
        self._news = asyncio.Event()
        self.status = ""
        self.device_since = 0.0  # when the domain was seen stopped for the switch-over
        self.stopped_at = 0.0  # when veeryd stopped the domain
        self.leaving = False  # post-copy: the domain runs at the target before everything was sent
        self.poll = POLL_INTERVAL_S
        self.monitor = Monitor(domain.record.spec.name, domain.home.monitors[1], self._event)

    async def open(self) -> None:
        """Connect. Raises Failed, OutcomeUnknown."""
        await self.monitor.connect()

    async def close(self) -> None:
        """Disconnect; the migration does not notice."""
        await self.monitor.close()

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "MIGRATION":
            self.status = str(data["status"])
            if self.status == "device":
                self.device_since = self._clock.now()
            self._news.set()

    async def set_up(self, *, return_path: bool, means: CopyOptions = PLAIN, **parameters: Any) -> None:
        """Set capabilities and `parameters` (underscores for dashes). A file cannot answer: it has no return path.

        switchover-ack holds a copy. The source waits for a message that the target sends only if it has the capability
        too (a veery target has not), or until the domain is paused (migration.c, migration_can_switchover)."""
        await self.monitor.execute_all(*orders(return_path=return_path, means=means, **parameters))

    async def query(self) -> Info:
        """Return the answer to query-migrate. Raises OutcomeUnknown when QEMU does not answer."""
        info: Info = await self.monitor.execute("query-migrate", deadline=QUERY_DEADLINE_S)
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

        Returns the last reading, with status "completed", or the one at which `enough` returned true. Raises Failed
        when the migration failed, was cancelled, stalled for `stall` seconds, took longer than `timeout` (0: no limit),
        kept the domain paused for more than `guard` ms (0: no limit), or QEMU ended."""
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
                    if "load of migration failed" in reason:  # only QEMU's log has the reason
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
            if guard and (paused_since := self._paused_since()):
                left = paused_since + guard / 1000 - now
                if left <= 0:
                    raise Failed(f"{name}: the switch-over took more than {guard:g} ms", hint=GENTLER)
                pause = min(pause, left)
            await self.change(pause)

    def _paused_since(self) -> float:
        """Return since when the domain is paused for its switch-over, 0.0: it is not. Where veeryd stopped it, since
        then, because the rest may be stuck on its way; where its disks are mirrored, since the mirrors ended."""
        if self.stopped_at and self.domain.mirrors is None:
            return self.stopped_at
        return self.device_since

    async def stop(self) -> None:
        """Stop the domain, so that no more memory is written. Raises Failed, OutcomeUnknown."""
        if not self.stopped_at:
            begun = self._clock.now()
            await self.domain.stop()
            self.stopped_at = begun

    async def leave(self) -> None:
        """Stop the domain, so that it runs at the target before everything was sent. Raises Failed, OutcomeUnknown.

        veeryd stops it and not QEMU: then QEMU never starts it here by itself, whatever happens to the copy
        (migration.c, migration_iteration_finish, vm_old_state)."""
        self.leaving = True
        await self.stop()
        with contextlib.suppress(CommandError):  # the copy has almost ended and needs no post-copy any more
            await self.monitor.execute("migrate-start-postcopy")

    async def cancel(self, stream: socket.socket | None) -> None:
        """Stop a copy that is under way, so that the domain runs on as it did before.

        Shutting `stream` down frees a QEMU that waits for the network. Never raises."""
        try:
            with contextlib.suppress(Failed):
                await self.query()
            if self.status and self.status not in OVER:
                await self.monitor.execute("migrate_cancel", deadline=self.domain.patience(QUERY_DEADLINE_S))
            # QEMU holds its lock for the bitmap of a large memory and does not answer meanwhile.
            if not await self._over(self.domain.patience(CANCEL_DEADLINE_S)) and stream is not None:
                shut(stream)
                await self._over(CANCEL_DEADLINE_S)
        except VeeryError as error:
            log.warning("domain=%s copy could not be cancelled cleanly: %s", self.domain.record.spec.name, error)
            if stream is not None:
                shut(stream)

    async def _over(self, seconds: float) -> bool:
        end = self._clock.now() + seconds
        while self._clock.now() < end:
            await self.query()
            if not self.status or self.status in OVER:
                return True
            await self.change(POLL_INTERVAL_S)
        return False


def orders(
    *, return_path: bool, means: CopyOptions = PLAIN, late_activate: bool = False, **parameters: Any
) -> tuple[Command, ...]:
    """Return the commands of `Transfer.set_up`; with `late_activate` a target opens its disks when it starts the
    domain."""
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
    """Return the answer to query-migrate as a progress of COPY."""
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
    """Shut a connection down, whichever other process has it open."""
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
