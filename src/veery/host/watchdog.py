"""Watchdogs: devices that reset this machine unless they are fed. Linux, Documentation/watchdog/watchdog-api.rst.

Opening the device arms it. Every write feeds it. Closed without a "V" written just before ("magic close"), it stays
armed: if the daemon dies, the machine is reset. The driver may round the timeout, so it is read back."""

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
    """An armed watchdog. `timeout`: seconds from the last feed until it fires, as it reports."""

    timeout: int

    def feed(self) -> None:
        """Feed the watchdog. Raises Failed if the write fails."""
        ...

    def disarm(self) -> None:
        """Disarm and close the watchdog. Raises Failed if the write fails."""
        ...

    def abandon(self) -> None:
        """Close it while it is armed: it fires unless a program opens and feeds it in time."""
        ...


class KernelWatchdog:
    """A `Watchdog` on /dev/watchdog, also softdog's."""

    def __init__(self, path: Path, timeout: int) -> None:
        """Arm it. Raises Refused if it is no watchdog, is in use, or fires later than after `timeout` seconds."""
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            busy = error.errno == errno.EBUSY
            raise Refused(
                f"{path}: {'another program feeds it' if busy else error.strerror}",
                hint="stop that program (systemd's RuntimeWatchdogSec, sbd, watchdog-mux)"
                if busy
                else "if the machine has none, modprobe softdog makes one",
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
                fcntl.ioctl(self._handle, GETTIMEOUT, value, True)  # its timeout is fixed, or has a lower limit
        except OSError as error:
            raise Refused(
                f"{path} is no watchdog: {error.strerror}", hint="name /dev/watchdog, or leave watchdog.device empty"
            ) from error
        if not 0 < value[0] <= timeout:
            raise Refused(
                f"{path} fires after {value[0]} s, not {timeout}",
                hint=f"set watchdog.timeout to {value[0]} or more, or use another device",
            )
        return int(value[0])

    def feed(self) -> None:
        """Implement Watchdog.feed."""
        self._write(FEED)

    def disarm(self) -> None:
        """Implement Watchdog.disarm."""
        try:
            self._write(MAGIC_CLOSE)
        finally:
            os.close(self._handle)

    def abandon(self) -> None:
        """Implement Watchdog.abandon."""
        os.close(self._handle)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._handle, data)
        except OSError as error:
            raise Failed(f"cannot write to the watchdog: {error.strerror}") from error


class SocketWatchdog:
    """A `Watchdog` on the unix socket of a program that resets this machine. "timeout SECONDS" and a newline arm it,
    and it answers with its timeout in seconds; then it uses the kernel's protocol."""

    def __init__(self, path: Path, timeout: int) -> None:
        """Arm it. Raises Refused if no watchdog answers."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(2.0)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(f"timeout {timeout}\n".encode())
            answer = self._socket.recv(16).decode()
            self.timeout = int(answer)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise Refused(f"no watchdog answers at {path}: {error}", hint="is its program running?") from error

    def feed(self) -> None:
        """Implement Watchdog.feed."""
        self._send(FEED)

    def disarm(self) -> None:
        """Implement Watchdog.disarm."""
        try:
            self._send(MAGIC_CLOSE)
        finally:
            self._socket.close()

    def abandon(self) -> None:
        """Implement Watchdog.abandon."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Failed(f"cannot write to the watchdog: {error.strerror}") from error


def arm(device: str, timeout: int) -> Watchdog:
    """Arm the watchdog at `device` and return it. Raises Refused."""
    path = Path(device)
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.stat().st_mode):
            return SocketWatchdog(path, timeout)
    return KernelWatchdog(path, timeout)
