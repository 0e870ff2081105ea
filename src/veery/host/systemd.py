"""Notifications to systemd: sd_notify(3) and sd_watchdog_enabled(3), without their library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from veery.errors import VeeryError
from veery.host.run import run

QUERY_TIMEOUT_S = 2.0
STATE = ("systemctl", "is-system-running")


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `lines` ("READY=1", "STATUS=...", "WATCHDOG=1", "STOPPING=1") to systemd.

    Return False and do nothing if systemd did not start this process or does not listen."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds between two WATCHDOG=1, half of systemd's limit; 0 if its watchdog is off for this process."""
    try:
        if int(environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return 0.0
        return int(environ.get("WATCHDOG_USEC", "0")) / 2e6
    except ValueError:
        return 0.0


async def going_down(*, argv: Sequence[str] = STATE) -> bool:
    """Return whether systemd is shutting the machine down: systemctl(1) prints "stopping". False if it is unknown."""
    try:
        result = await run(argv, deadline=QUERY_TIMEOUT_S, check=False)
    except (VeeryError, OSError):
        return False
    return result.out.strip() == "stopping"
