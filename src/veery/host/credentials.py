"""The credentials of a unix socket's peer, as the kernel recorded them at its connect (unix(7))."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python 3.11 has no name for it
GROUPS_BYTES_MAX = 1024  # the limit of Python's getsockopt: 256 groups


@dataclass(frozen=True, slots=True)
class Credentials:
    """The peer's user and all its groups."""

    uid: int
    groups: frozenset[int]


def credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of the process that connected, or made the listening socket. Raises OSError.

    For a process in more than 256 groups the result has only the first one, its gid."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", data)
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES_MAX)
    except OSError:  # ERANGE: more than fit
        data = b""
    return Credentials(uid, frozenset({gid, *(each for (each,) in struct.iter_unpack("I", data))}))
