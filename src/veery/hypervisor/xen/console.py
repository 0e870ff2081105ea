"""A domain's console: veeryd reads xenconsoled's terminal all the time and writes a log, from which all consoles read.

xenconsoled(8) gives what the guest prints to the first reader of the terminal. So the node is the only reader, and `xl
console` besides it would get only a part. What the guest prints while veeryd is down waits in xenconsoled, up to a MiB
(libxl, LIBXL_XENCONSOLE_LIMIT)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import termios
import tty
from pathlib import Path

from veery.errors import Failed
from veery.hypervisor.qemu.console import ConsoleHub

TYPE_DEADLINE_S = 20.0
_CHUNK = 1 << 16


class XenHub(ConsoleHub):
    """A ConsoleHub whose log veeryd writes."""

    def __init__(self, name: str, log: Path) -> None:
        """Nothing is read before `attach`."""
        super().__init__(name, log, log)
        self._terminal = -1

    @property
    def attached(self) -> bool:
        """True if a terminal is being read."""
        return self._terminal >= 0

    def attach(self, terminal: Path) -> None:
        """Read `terminal` from now on. Raises Failed where it cannot be opened."""
        self.detach()
        try:
            handle = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(f"the console of {self.name}: {terminal}: {error.strerror}") from error
        with contextlib.suppress(termios.error):
            tty.setraw(handle, termios.TCSANOW)  # not TCSAFLUSH, which would drop what waits there
        self._terminal = handle
        asyncio.get_running_loop().add_reader(handle, self._ready)

    def detach(self) -> None:
        """Stop reading."""
        if self._terminal >= 0:
            asyncio.get_running_loop().remove_reader(self._terminal)
            os.close(self._terminal)
            self._terminal = -1

    def drain(self) -> None:
        """Read everything that is available now."""
        while self._terminal >= 0 and self._ready():
            pass

    async def type(self, data: bytes) -> None:
        """See ConsoleHub.type."""
        ends = asyncio.get_running_loop().time() + TYPE_DEADLINE_S
        left = memoryview(data)
        while left:
            if self.ended or asyncio.get_running_loop().time() > ends:
                raise Failed(f"the console of {self.name} accepts no input", hint="is the domain running? veery list")
            try:
                # no terminal yet: the domain was just found again, or has just restarted
                sent = os.write(self._terminal, left) if self._terminal >= 0 else 0
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise Failed(f"the console of {self.name}: {error.strerror}", hint="veery list") from error
            left = left[sent:]
            if not sent:
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """See ConsoleHub.close."""
        self.drain()
        self.detach()
        await super().close()

    def _ready(self) -> bool:
        """Read what the terminal has; return whether there was anything."""
        try:
            data = os.read(self._terminal, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            data = b""
            if error.errno != errno.EIO:  # EIO: xenconsoled has closed the other side
                raise
        if not data:
            self.detach()
            return False
        with contextlib.suppress(FileNotFoundError), self.log.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(data)
        return True
