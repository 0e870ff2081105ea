"""`python -m veery.lab.xen.call ARGV...`: run a command inside the nested node whose network namespace we are in.

Input, output, terminal, signals' exit status (128 + number) and the end are the command's own; when we are killed, it
is killed. Only the standard library, to start fast."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import threading
import tty

from veery.lab.xen.agent import PORT, THERE, frame

_CONNECT = 20.0  # seconds
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOST = 125  # our exit status when the node went away under the command


def main(argv: list[str]) -> int:
    """Run it; its exit status."""
    terminal = all(os.isatty(number) for number in (0, 1))
    env = {"TERM": os.environ.get("TERM", "dumb"), "PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    order = {"argv": argv, "env": env, "tty": _size() if terminal else None}
    try:
        link = socket.create_connection((THERE, PORT), timeout=_CONNECT)
    except OSError as error:
        sys.stderr.write(f"the node does not answer: {error}\n")
        return _LOST
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sending = threading.Lock()

    def send(kind: bytes, content: bytes = b"") -> None:
        with sending, contextlib.suppress(OSError):
            link.sendall(frame(kind, content))

    send(b"R", json.dumps(order).encode())
    threading.Thread(target=_feed, args=(send,), daemon=True).start()
    if not terminal:
        return _follow(link)
    saved = termios.tcgetattr(0)
    signal.signal(signal.SIGWINCH, lambda *_: send(b"W", json.dumps(_size()).encode()))
    try:
        tty.setraw(0)
        return _follow(link)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _feed(send) -> None:  # type: ignore[no-untyped-def]
    while data := os.read(0, 1 << 16):
        send(b"I", data)
    send(b"E")


def _follow(link: socket.socket) -> int:
    with link.makefile("rb") as stream:
        while len(head := stream.read(5)) == 5:
            content = stream.read(struct.unpack(">I", head[1:])[0])
            if head[:1] == b"Q":
                return int(content)
            _write(2 if head[:1] == b"X" else 1, content)
    sys.stderr.write("the node went away\n")
    return _LOST


def _write(number: int, content: bytes) -> None:
    while content:
        content = content[os.write(number, content) :]


def _size() -> list[int]:
    return list(struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2])


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except BrokenPipeError:  # who reads us has enough
        status = 128 + signal.SIGPIPE
    os._exit(status)  # the thread that reads our input may never end
