"""`python -m veery.lab.xen.call ARGV...`: run a command inside the nested node of this process's network namespace.

Input, output, terminal, exit status (128 + number for a signal) and end are the command's own. If this process is
killed, the command is killed too. It uses only the standard library, to start fast."""

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

_CONNECT_TIMEOUT_S = 20.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOST = 125  # the exit status if the node is lost during the command


def main(argv: list[str]) -> int:
    """Run the command; return its exit status."""
    terminal = all(os.isatty(number) for number in (0, 1))
    env = {"TERM": os.environ.get("TERM", "dumb"), "PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    order = {"argv": argv, "env": env, "tty": _size() if terminal else None}
    try:
        link = socket.create_connection((THERE, PORT), timeout=_CONNECT_TIMEOUT_S)
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
    sys.stderr.write("the connection to the node was lost\n")
    return _LOST


def _write(number: int, content: bytes) -> None:
    while content:
        content = content[os.write(number, content) :]


def _size() -> list[int]:
    return list(struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2])


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except BrokenPipeError:  # the reader of the output has closed it
        status = 128 + signal.SIGPIPE
    os._exit(status)  # the thread that reads the input may never end
