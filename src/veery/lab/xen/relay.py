"""A bare move of xl's, without ssh: both ends of a TCP connection that carries xl's migration stream.

    python3 -m veery.lab.xen.relay receive PORT       on the target: take one connection, be xl migrate-receive on it
    xl migrate -s '' DOMAIN 'python3 -m veery.lab.xen.relay send ADDRESS PORT'       on the source

xl gives the sender two pipes; what comes out of one is spliced to the socket, a MiB at a time (splice(2)). This is what
the driver's own moves are measured against, and proves the lab. Only the standard library."""

import fcntl
import os
import socket
import sys
import threading

_F_SETPIPE_SZ = 1031  # fcntl(2)
_CHUNK = 1 << 20
_WAIT = 60.0  # seconds for the other side


def receive(port: int) -> None:
    """Take one connection and become `xl migrate-receive` on it."""
    with socket.create_server(("", port)) as door:
        door.settimeout(_WAIT)
        link, _ = door.accept()
    link.setblocking(True)
    os.dup2(link.fileno(), 0)
    os.dup2(link.fileno(), 1)
    os.execvp("xl", ["xl", "migrate-receive"])


def send(address: str, port: int) -> None:
    """Carry xl's stream to `address` and the answers back, until the receiver has ended."""
    with socket.create_connection((address, port), timeout=_WAIT) as link:
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fcntl.fcntl(0, _F_SETPIPE_SZ, _CHUNK)

        def forth() -> None:
            while os.splice(0, link.fileno(), _CHUNK):
                pass
            link.shutdown(socket.SHUT_WR)

        threading.Thread(target=forth, daemon=True).start()
        # not by splice(2) this way round: while it waits for the socket it holds the pipe's lock, and xl's read(2) of
        # what is already in the pipe never returns (Linux 6.1, fs/splice.c, splice_file_to_pipe)
        while data := link.recv(_CHUNK):
            os.write(1, data)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]))
