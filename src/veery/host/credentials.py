"""Who is at the other end of a unix socket, as the kernel knew it when that end connected (unix(7))."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python 3.11 has no name for it
GROUPS_BYTES_MAX = 1024  # what Python's getsockopt can take: 256 groups


@dataclass(frozen=True, slots=True)
class Credentials:
    """The other end's user and all its groups."""

    uid: int
    groups: frozenset[int]


def credentials(connection: socket.socket) -> Credentials:
    """Those of the process that connected, or made the listening socket. Raises OSError.

    Of a process in more than 256 groups only the first one, its gid, is told."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", told)
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES_MAX)
    except OSError:  # ERANGE: more than fit
        data = b""
    return Credentials(uid, frozenset({gid, *(each for (each,) in struct.iter_unpack("I", data))}))
