"""A domain's console: any number of readers and writers on QEMU's single serial port.

QEMU appends all that the guest prints to a log file, with or without readers. Readers read that file, each at its own
place, and inotify(7) wakes them. So nothing is lost or shown twice, whichever reader comes, goes or is slow, and a
restart of veeryd has no effect. The port's socket serves only for typing, and is held only for a while after input: a
guest must never wait for veeryd to read its output."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from pathlib import Path

from veery.errors import Failed

KEEP = 256 << 10
"""Bytes of earlier output that a console shows and a move takes along."""
TRIM = 1 << 20
"""The log frees disk space when it holds more than this."""
TYPE_DEADLINE_S = 5.0
LINGER_S = 2.0
_IN_MODIFY = 0x2
_PUNCH_HOLE = 0x3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fallocate(2)


class ConsoleHub:
    """The console of one domain: `log` is what the guest printed, `port` the socket to type into."""

    def __init__(self, name: str, log: Path, port: Path) -> None:
        """`name` is the domain's, for messages."""
        self.name, self.log, self._port = name, log, port
        self._open: set[QemuConsole] = set()
        self._watch: _Watch | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._drain: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._trimmed = 0
        self.ended = False

    def open(self) -> QemuConsole:
        """Open one more console, from the backlog on."""
        console = QemuConsole(self)
        if self._watch is None:
            self._watch = _Watch(self.log, self._wake)
        self._open.add(console)
        return console

    def backlog(self) -> bytes:
        """Return the last KEEP bytes."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - KEEP))
                return file.read()
        except FileNotFoundError:
            return b""

    def trim(self) -> None:
        """Free the space of output that is no longer shown. The file keeps its length, with a hole at its beginning, so
        that neither QEMU, which appends, nor a reader loses its place."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb+") as file:
            past = (os.fstat(file.fileno()).st_size - KEEP) & ~4095
            if past - self._trimmed < TRIM - KEEP:
                return
            if ctypes.CDLL(None).fallocate(file.fileno(), _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(past)):
                # a filesystem without holes: drop old output rather than fill the disk
                file.truncate(0)
                past = 0
            self._trimmed = past

    def end(self) -> None:
        """Mark the domain as gone: readers get what is left, then b""."""
        self.ended = True
        self._wake()

    async def close(self) -> None:
        """Close the port and wake all readers for good."""
        self.end()
        for console in tuple(self._open):
            await console.close()
        await self._hang_up()

    async def type(self, data: bytes) -> None:
        """Type `data`. Raises Failed when QEMU does not take it."""
        try:
            async with self._lock, asyncio.timeout(TYPE_DEADLINE_S):
                if self._writer is None or self._writer.is_closing():
                    await self._hang_up()
                    reader, self._writer = await asyncio.open_unix_connection(str(self._port))
                    self._drain = asyncio.create_task(_discard(reader), name=f"console of {self.name}")
                self._writer.write(data)
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise Failed(
                f"the console of {self.name} accepts no input", hint="is the domain running? veery list"
            ) from error

    async def leave(self, console: QemuConsole) -> None:
        """Remove one console."""
        self._open.discard(console)
        if not self._open:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            await self._hang_up()

    async def _hang_up(self) -> None:
        writer, self._writer = self._writer, None
        drain, self._drain = self._drain, None
        if writer is not None:
            await _taken(writer)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()
        if drain is not None:
            drain.cancel()
            await asyncio.wait({drain})

    def _wake(self) -> None:
        for console in self._open:
            console.changed.set()


class QemuConsole:
    """One reader and writer of a console, as base.Console says."""

    def __init__(self, hub: ConsoleHub) -> None:
        """Begin at the backlog of `hub`."""
        self._hub = hub
        self._file = hub.log.open("rb", buffering=0)
        self._place = 0
        self._closed = False
        self.changed = asyncio.Event()

    async def read(self) -> bytes:
        """See base.Console.read."""
        while not self._closed:
            self.changed.clear()
            size = os.fstat(self._file.fileno()).st_size
            if size < self._place:  # the log was cut to nothing
                self._place = 0
            self._place = max(self._place, size - KEEP)
            data = os.pread(self._file.fileno(), KEEP, self._place)
            if data:
                self._place += len(data)
                return data
            if self._hub.ended:
                break
            await self.changed.wait()
        return b""

    async def write(self, data: bytes) -> None:
        """See base.Console.write."""
        await self._hub.type(data)

    async def close(self) -> None:
        """See base.Console.close."""
        if self._closed:
            return
        self._closed = True
        self.changed.set()
        self._file.close()
        await self._hub.leave(self)


async def _discard(reader: asyncio.StreamReader) -> None:
    """Read and drop what the guest prints, which is already in the log, so that the guest need not wait."""
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Wait until QEMU has read what was typed, because it drops the rest when the connection closes. A serial port
    takes sixteen bytes at a time, and a paused guest takes none, so the wait has an end."""
    handle = writer.get_extra_info("socket").fileno()
    end = asyncio.get_running_loop().time() + LINGER_S
    with contextlib.suppress(OSError):
        while asyncio.get_running_loop().time() < end:
            (left,) = struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))
            if not left or writer.is_closing():
                return
            await asyncio.sleep(0.01)


class _Watch:
    """Calls back whenever a file has grown (inotify(7))."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._handle < 0:
            raise Failed(f"no inotify: {os.strerror(ctypes.get_errno())}", hint="see fs.inotify.max_user_instances")
        if libc.inotify_add_watch(self._handle, os.fsencode(path), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            os.close(self._handle)
            raise Failed(f"cannot watch {path}: {os.strerror(number)}")
        self._changed = changed
        asyncio.get_running_loop().add_reader(self._handle, self._ready)

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._handle, 64 * struct.calcsize("iIII"))
        self._changed()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
