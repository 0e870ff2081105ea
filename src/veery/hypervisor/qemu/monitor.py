"""One QMP connection: every command has a deadline, every event goes to one handler.

QMP: docs/interop/qmp-spec. A QEMU that is stopped or stuck answers nothing at all, and a QMP socket serves one client
at a time. So a domain has two sockets, and `Monitor` is one connection to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from veery.errors import Failed, OutcomeUnknown

EventHandler = Callable[[str, Mapping[str, Any]], None]
Command = tuple[str, Mapping[str, Any]]

ANSWER_DEADLINE_S = 5.0


class CommandError(Failed):
    """QEMU understood a command and refused it; the message is QEMU's own."""


class Monitor:
    """A connection to the QMP socket at `path`, of the domain called `name` in messages."""

    def __init__(self, name: str, path: Path, on_event: EventHandler) -> None:
        """`on_event(name, data)` is called in order, before the reply of a command that caused the event."""
        self.name, self._path, self._on_event = name, path, on_event
        self._client: QMPClient | None = None
        self._lock = asyncio.Lock()
        self._passing = asyncio.Lock()  # QEMU uses the descriptor that came last
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        """True if the connection to QEMU is open."""
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    async def connect(self, *, deadline: float = ANSWER_DEADLINE_S) -> None:
        """Connect and greet QEMU. Raises Failed when QEMU closes the connection, OutcomeUnknown when it does not answer
        in time."""
        async with self._lock:
            if self.connected:
                return
            await self._drop()
            client = QMPClient("veery")
            client.logger.setLevel(logging.CRITICAL + 1)  # errors are raised here, and logged once elsewhere
            client.events.event_filter = self._take
            try:
                async with asyncio.timeout(deadline):
                    await client.connect(str(self._path))
            except TimeoutError as error:
                raise self._silent("a greeting") from error
            except (QMPError, OSError) as error:
                raise Failed(f"{self.name}: QEMU closed its monitor") from error
            self._client = client
            self._up.set()

    def _take(self, event: Message) -> bool:
        """Handle each event as it is read; the listener's queue would keep it until asked."""
        data = event.get("data")
        self._on_event(str(event["event"]), data if isinstance(data, dict) else {})
        return False

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        deadline: float = ANSWER_DEADLINE_S,
        out_of_band: bool = False,
    ) -> Any:
        """Run `command` and return its value. Raises CommandError with QEMU's words, Failed when the connection is
        gone, OutcomeUnknown when there is no answer within `deadline` seconds. Waits for a connection that is just
        being made. `out_of_band`: QEMU obeys a few commands even while its main loop is blocked (QMP's exec-oob)."""
        try:
            async with asyncio.timeout(deadline):
                await self._up.wait()
                if self._client is None:
                    raise Failed(f"{self.name}: QEMU closed its monitor")
                return await self._client.execute(command, arguments, oob=out_of_band)
        except TimeoutError as error:
            raise self._silent(command) from error
        except ExecuteError as error:
            raise CommandError(f"{self.name}: {error}") from error
        except (ExecInterruptedError, StateError) as error:
            raise Failed(f"{self.name}: QEMU closed its monitor") from error

    async def execute_all(self, *commands: Command) -> None:
        """Run `commands` in order, all sent at once. Raises as `execute` does, for the first that failed; the later
        ones run all the same."""
        results = await asyncio.gather(*(self.execute(*command) for command in commands), return_exceptions=True)
        for each in results:
            if isinstance(each, BaseException):
                raise each

    async def pass_fd(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of `descriptor`, which this connection's next commands call `name` (QMP's getfd)."""
        async with self._passing:
            self._send(descriptor)
            await self.execute("getfd", {"fdname": name})

    async def add_fd(self, descriptor: int) -> int:
        """Give QEMU a copy of `descriptor`, to be opened as /dev/fdset/N; return N (QMP's add-fd)."""
        async with self._passing:
            self._send(descriptor)
            return int((await self.execute("add-fd"))["fdset-id"])

    def _send(self, descriptor: int) -> None:
        if self._client is None:
            raise Failed(f"{self.name}: no connection to QEMU")
        try:
            self._client.send_fd_scm(descriptor)
        except (OSError, QMPError) as error:
            raise Failed(f"{self.name}: QEMU accepts no descriptor: {error}") from error

    async def lost(self) -> None:
        """Return when the connection has ended."""
        while self.connected:
            assert self._client is not None
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Close the connection for good; a caller that waits for it gets an error."""
        async with self._lock:
            await self._drop()
            self._up.set()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        self._up.clear()
        if client is None or client.runstate is Runstate.IDLE:
            return
        # disconnect() raises the error that ended the connection again; a QEMU that reads nothing cannot be flushed
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(1):
                await client.disconnect()

    def _silent(self, what: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{self.name}: QEMU does not answer ({what})", hint="QEMU is stopped or stuck: see its process on this node"
        )
