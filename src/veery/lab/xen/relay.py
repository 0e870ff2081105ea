"""A plain move by xl without ssh: both ends of a TCP connection that carries xl's migration stream.

    python3 -m veery.lab.xen.relay receive PORT       on the target: accept one connection, run xl migrate-receive on it
    xl migrate -s '' DOMAIN 'python3 -m veery.lab.xen.relay send ADDRESS PORT'       on the source

xl gives the sender two pipes; the output of one is spliced to the socket, a MiB at a time (splice(2)). The driver's
moves are compared with these, which also prove that the lab works. This module uses only the standard library."""

import fcntl
import os
import socket
import sys
import threading

_F_SETPIPE_SZ = 1031  # fcntl(2)
_CHUNK_BYTES = 1 << 20
_PEER_TIMEOUT_S = 60.0  # for the other side


def receive(port: int) -> None:
    """Accept one connection and exec `xl migrate-receive` on it."""
    with socket.create_server(("", port)) as listener:
        listener.settimeout(_PEER_TIMEOUT_S)
        link, _ = listener.accept()
    link.setblocking(True)
    os.dup2(link.fileno(), 0)
    os.dup2(link.fileno(), 1)
    os.execvp("xl", ["xl", "migrate-receive"])


def send(address: str, port: int) -> None:
    """Carry xl's stream to `address` and the answers back, until the receiver has ended."""
    with socket.create_connection((address, port), timeout=_PEER_TIMEOUT_S) as link:
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fcntl.fcntl(0, _F_SETPIPE_SZ, _CHUNK_BYTES)

        def forth() -> None:
            while os.splice(0, link.fileno(), _CHUNK_BYTES):
                pass
            link.shutdown(socket.SHUT_WR)

        threading.Thread(target=forth, daemon=True).start()
        # Not splice(2) in this direction: while it waits for the socket it holds the pipe's lock, and xl's read(2) of
        # data already in the pipe never returns (Linux 6.1, fs/splice.c, splice_file_to_pipe).
        while data := link.recv(_CHUNK_BYTES):
            os.write(1, data)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]))
