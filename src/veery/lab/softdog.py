"""`python -m veery.lab.softdog SOCKET NAMESPACE`: a watchdog for a node of a lab, like softdog for a machine.

It is armed through a unix socket (host/watchdog.py). If it is not fed in time, it kills every process in the node's
network namespace. It runs outside that namespace, so that a frozen node does not freeze its watchdog. It prints its
events (armed, disarmed, fired), and ends after it has fired."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from veery.host.watchdog import MAGIC_CLOSE
from veery.lab import members


def watch(path: Path, namespace: Path) -> None:
    """Serve one client after the other; return once the watchdog has fired."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fires = 0.0  # monotonic; 0: not armed
        while True:
            listener.settimeout(max(fires - time.monotonic(), 0.001) if fires else None)
            try:
                feeder, _ = listener.accept()
            except TimeoutError:
                break
            with feeder:
                fires, fed = _serve(feeder, fires)
            if not fed:
                break
    path.unlink(missing_ok=True)
    print("fired", flush=True)
    asyncio.run(members.kill(lambda: members.members([namespace])))


def _serve(feeder: socket.socket, fires: float) -> tuple[float, bool]:
    """Serve one connection; return when the watchdog fires (0: disarmed), and whether that is still ahead."""
    timeout, last = 0, b""
    while True:
        feeder.settimeout(max(fires - time.monotonic(), 0.001) if fires else None)
        try:
            data = feeder.recv(64)
        except TimeoutError:
            return fires, False
        except ConnectionError:
            data = b""
        if not data:  # closed: it disarms only after a "V"
            if last == MAGIC_CLOSE:
                print("disarmed", flush=True)
                return 0.0, True
            return fires, not fires or time.monotonic() < fires
        if data.startswith(b"timeout "):
            timeout = int(data.split()[1])
            print("armed", flush=True)
            with suppress(OSError):
                feeder.sendall(str(timeout).encode())
        last = data[-1:]
        if timeout:
            fires = time.monotonic() + timeout


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
