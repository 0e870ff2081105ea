"""A watchdog: what ends this machine unless it is fed. Linux, Documentation/watchdog/watchdog-api.rst.

Opening the device arms it. Every write is a feed. Closed without a "V" written just before ("magic close"), it stays
armed: a daemon that dies, or forgets, has its machine ended. The driver may round the timeout: it is read back."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

from veery.errors import Failed, Refused

# linux/watchdog.h, by _IOR/_IOWR of asm-generic/ioctl.h: direction << 30 | size << 16 | 'W' << 8 | number
SETTIMEOUT = 3 << 30 | 4 << 16 | ord("W") << 8 | 6
GETTIMEOUT = 2 << 30 | 4 << 16 | ord("W") << 8 | 7
MAGIC_CLOSE = b"V"
FEED = b"\0"


class Watchdog(Protocol):
    """An armed one. `timeout`: seconds after the last feed at which it fires, as itself says."""

    timeout: int

    def feed(self) -> None:
        """Not yet. Raises Failed when it does not take that."""
        ...

    def disarm(self) -> None:
        """In good order: it fires no more. Raises Failed when it will all the same (the driver's nowayout)."""
        ...

    def abandon(self) -> None:
        """Let go of it, armed: it fires unless somebody opens and feeds it in time."""
        ...


class KernelWatchdog:
    """/dev/watchdog, or softdog's. As `Watchdog`."""

    def __init__(self, path: Path, timeout: int) -> None:
        """Arms it. Raises Refused for what is no watchdog, is in use, or fires later than in `timeout` seconds."""
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            busy = error.errno == errno.EBUSY
            raise Refused(
                f"{path}: {'another program feeds it' if busy else error.strerror}",
                hint="stop that one (systemd's RuntimeWatchdogSec, sbd, watchdog-mux)"
                if busy
                else "modprobe softdog makes one where the machine has none",
            ) from error
        try:
            self.timeout = self._set(path, timeout)
        except BaseException:
            with contextlib.suppress(Failed):
                self.disarm()
            raise

    def _set(self, path: Path, timeout: int) -> int:
        value = array.array("i", [timeout])
        try:
            try:
                fcntl.ioctl(self._handle, SETTIMEOUT, value, True)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                fcntl.ioctl(self._handle, GETTIMEOUT, value, True)  # one whose time is fixed, or not as long
        except OSError as error:
            raise Refused(
                f"{path} is no watchdog: {error.strerror}", hint="name /dev/watchdog, or leave watchdog.device empty"
            ) from error
        if not 0 < value[0] <= timeout:
            raise Refused(f"{path} fires after {value[0]} s, not {timeout}", hint="set watchdog.timeout to what it can")
        return int(value[0])

    def feed(self) -> None:
        """As Watchdog.feed."""
        self._write(FEED)

    def disarm(self) -> None:
        """As Watchdog.disarm."""
        try:
            self._write(MAGIC_CLOSE)
        finally:
            os.close(self._handle)

    def abandon(self) -> None:
        """As Watchdog.abandon."""
        os.close(self._handle)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._handle, data)
        except OSError as error:
            raise Failed(f"the watchdog takes nothing: {error.strerror}") from error


class SocketWatchdog:
    """A program that ends this machine, at a unix socket: "timeout SECONDS" and a newline arm it, it answers with the
    seconds that it took; then the kernel's own protocol. As `Watchdog`."""

    def __init__(self, path: Path, timeout: int) -> None:
        """As KernelWatchdog."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(2.0)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(f"timeout {timeout}\n".encode())
            told = self._socket.recv(16).decode()
            self.timeout = int(told)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise Refused(f"no watchdog answers at {path}: {error}", hint="is its program running?") from error

    def feed(self) -> None:
        """As Watchdog.feed."""
        self._send(FEED)

    def disarm(self) -> None:
        """As Watchdog.disarm."""
        try:
            self._send(MAGIC_CLOSE)
        finally:
            self._socket.close()

    def abandon(self) -> None:
        """As Watchdog.abandon."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Failed(f"the watchdog takes nothing: {error.strerror}") from error


def arm(device: str, timeout: int) -> Watchdog:
    """The watchdog at `device`, armed. Raises Refused."""
    path = Path(device)
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.stat().st_mode):
            return SocketWatchdog(path, timeout)
    return KernelWatchdog(path, timeout)
