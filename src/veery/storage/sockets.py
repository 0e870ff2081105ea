"""TCP connections of another process in this network namespace: read from /proc, closed through pidfd_getfd(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PIDFD_GETFD = 438  # the same number on every architecture (Linux 5.6)
_OPEN_STATES = {"01", "08"}  # ESTABLISHED; CLOSE_WAIT: the peer is gone, bytes may still be unread


@dataclass(frozen=True, slots=True)
class Peer:
    """One TCP connection: the peer's address, and the inode of the local socket."""

    address: str
    inode: str


def connections(port: int, root: Path = Path("/proc/self/net")) -> tuple[Peer, ...]:
    """Return the TCP connections to local `port` (proc(5), /proc/net/tcp)."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            lines = (root / name).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6
            continue
        for line in lines:
            fields = line.split()
            local, remote, state = fields[1:4]
            if state in _OPEN_STATES and int(local.rpartition(":")[2], 16) == port:
                found.append(Peer(_address(family, remote.rpartition(":")[0]), fields[9]))
    return tuple(found)


def by_address(peers: Collection[Peer]) -> Counter[str]:
    """Return the number of connections of each address."""
    return Counter(peer.address for peer in peers)


def _address(family: int, digits: str) -> str:
    """Parse an address of /proc/net/tcp: 32-bit words, each in the machine's (little-endian) order."""
    raw = bytes.fromhex(digits)
    text = socket.inet_ntop(family, b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))
    return text.removeprefix("::ffff:") if "." in text else text


def server_pid(path: str) -> int:
    """Return the id of the process that listens on the unix socket `path` (unix(7), SO_PEERCRED). Raises OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return int.from_bytes(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")


def shut_down(pid: int, peers: Collection[Peer]) -> int:
    """Shut down process `pid`'s sockets of `peers` in both directions, as if the peers had closed; return their number.
    Needs the right to trace the process (root). Raises OSError."""
    inodes = {f"socket:[{peer.inode}]" for peer in peers}
    library = ctypes.CDLL(None, use_errno=True)
    done = 0
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if str(entry.readlink()) not in inodes:
                    continue
                copy = library.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
                if copy < 0:
                    raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
                with socket.socket(fileno=copy) as shared, contextlib.suppress(OSError):  # not connected any more
                    shared.shutdown(socket.SHUT_RDWR)
                    done += 1
    finally:
        os.close(process)
    return done
