"""The relay between xl and the stream of a move: one process on each side, which carries the bytes and keeps xl's last
message back.

    python -m veery.hypervisor.xen.relay send DOOR          the command that `xl migrate -s ''` runs
    python -m veery.hypervisor.xen.relay receive DOOR PID XL   starts `XL migrate-receive`, its pid into the file PID

An xl that waits for the other side's message acts by itself when its pipe ends: the sender resumes the domain, the
receiver destroys it. So once the receiver has said READY each relay stops its xl (SIGSTOP), and only then reports it.
Until then the end of any of these processes undoes the move by itself. From then on nothing happens by itself,
whichever process ends, and the node does what the owner key says. The sender never gets READY: it is killed, or its
pipe ends and it resumes the domain. The receiver's REPORT is not read either: a receiver that got its GO and fails
would destroy the domain after that.

DOOR is a unix socket of the node with JSON lines. The node sends {"take": ...} with the stream's descriptor, {"rate":
bytes/s}, {"go": true}. The relay sends {"there"}, {"sent"}, {"ready"}, {"tried"}, {"end"}. When the socket closes the
relay ends. Never splice(2) into a pipe that xl reads: it holds the pipe's lock while it waits (Linux 6.1, fs/splice.c,
splice_file_to_pipe)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from veery.hypervisor.xen.handshake import BANNER, GO, READY, REPORT, Garbled, Header, Word, Words, furnished

CHUNK = 256 << 10  # bytes of a pipe, and of a turn: what waits in pipes when the domain is paused adds to its gap
RECORD = 16 << 10  # bytes of a TLS record
NEWS_INTERVAL_S = 0.2  # between two reports of what was sent
HANDSHAKE_DEADLINE_S = 60.0  # for TLS: the domain runs meanwhile, and a busy host is slow to start a process
STOP_DEADLINE_S = 10.0  # for a signal to take effect
LOOK_INTERVAL_S = 0.005  # between two checks whether xl has reported
_F_SETPIPE_SZ = 1031  # fcntl(2)


class End(Exception):
    """The relay must end, for this reason."""


class Control:
    """The relay's connection to the node."""

    def __init__(self, door: str) -> None:
        """Connect to `door`. Raises OSError when no process listens there."""
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(door)
        self._data, self._handles = b"", list[int]()

    def tell(self, **news: Any) -> None:
        """Send a report. Raises End when the node is gone."""
        try:
            self.link.sendall(json.dumps(news).encode() + b"\n")
        except OSError as error:
            raise End("the node is gone") from error

    def hear(self) -> Iterator[dict[str, Any]]:
        """Yield the orders that have arrived, after `link` was seen to be readable. Raises End at the connection's
        end."""
        data, handles, _, _ = socket.recv_fds(self.link, 1 << 16, 4)
        self._handles += handles
        if not data:
            raise End("the node is gone")
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def take(self) -> socket.socket:
        """Return the stream that came with the last order."""
        return socket.socket(fileno=self._handles.pop(0))

    def order(self) -> dict[str, Any]:
        """Wait for the next order. Raises End."""
        while True:
            for order in self.hear():
                return order


class Stream:
    """The plain connection to the other relay. Only `say` blocks."""

    unsent = False  # whether data that `send` has taken still waits here
    early = False  # whether data may have arrived that the socket no longer shows

    def __init__(self, link: socket.socket) -> None:
        """Own `link` from now on."""
        self.link = link
        self.link.setblocking(False)

    def receive(self) -> bytes | None:
        """Return what has arrived; None: nothing yet, b"": the stream has ended."""
        try:
            return self.link.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: memoryview) -> int:
        """Return how many bytes of `data` were taken. Raises End when the connection is broken."""
        try:
            return self.link.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise End(f"the stream broke: {error.strerror or error}") from error

    def say(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        self.link.settimeout(HANDSHAKE_DEADLINE_S)
        self.link.sendall(data)

    def close(self) -> None:
        """Break the connection, although the node has it open too."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()


class Encrypted(Stream):
    """The same with TLS. Python's ssl makes two system calls for each 16 KiB, which is slow in a PV dom0; here a call
    carries as much as the socket takes."""

    def __init__(self, link: socket.socket, order: dict[str, Any], *, server: bool) -> None:
        """`order` has "tls", the folder of the node's certificates, and "peer", the expected node. Raises End when the
        other side is another node."""
        from veery.host.tls import client_context, peer_name, server_context

        super().__init__(link)
        self._cipher = b""
        folder, peer = Path(order["tls"]), order["peer"]
        try:
            context = server_context(folder) if server else client_context(folder)
            context.verify_mode = ssl.CERT_REQUIRED
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            name = None if server else peer
            self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=name)
            self._shake_hands()
        except OSError as error:
            raise End(f"no encrypted stream: {error}") from error
        if peer_name(self._tls) != peer:
            raise End(f"the stream comes from {peer_name(self._tls) or 'an unknown node'}, not from {peer}")
        self.early = True  # data that came with the last message of the handshake
        link.setblocking(False)

    def _shake_hands(self) -> None:
        self.link.settimeout(HANDSHAKE_DEADLINE_S)
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.link.sendall(self._out.read())
            if done:
                return
            data = self.link.recv(CHUNK)
            if not data:
                raise OSError("the other side closed the connection")
            self._in.write(data)

    @property
    def unsent(self) -> bool:  # type: ignore[override]
        """See Stream.unsent."""
        return bool(self._cipher)

    def receive(self) -> bytes | None:
        """See Stream.receive."""
        self.early = False
        data = super().receive()
        if data == b"":
            return b""
        self._in.write(data or b"")
        pieces = []
        try:
            while piece := self._tls.read(CHUNK):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces) or None
        except ssl.SSLError:  # the end of the stream, or bytes that are not TLS
            pass
        return b"".join(pieces)

    def send(self, data: memoryview) -> int:
        """See Stream.send. Takes nothing while encrypted data still waits."""
        taken = 0
        if not self._cipher:
            while taken < min(len(data), CHUNK):
                taken += self._tls.write(data[taken : taken + RECORD])
            self._cipher = self._out.read()
        if self._cipher:
            self._cipher = self._cipher[super().send(memoryview(self._cipher)) :]
        return taken

    def say(self, data: bytes) -> None:
        """See Stream.say."""
        self._tls.write(data)
        super().say(self._cipher + self._out.read())


def stream_of(link: socket.socket, order: dict[str, Any], *, server: bool) -> Stream:
    """Return the stream that the order asks for, encrypted or plain. Raises End."""
    return Encrypted(link, order, server=server) if order.get("tls") else Stream(link)


class Child:
    """An xl process, by pidfd, so that no signal ever reaches another process."""

    def __init__(self, pid: int, ticks: int = 0) -> None:
        """`ticks`: its start time (proc(5), field 22), 0 for a child of the relay. Raises End when it is gone."""
        try:
            self.pid, self.handle = pid, os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise End("xl ended") from error
        if ticks and int(self._fields()[19]) != ticks:
            raise End("xl ended")

    def stop(self) -> None:
        """Stop it by a signal, and return when it is stopped. Raises End when it has ended."""
        self._send(signal.SIGSTOP)
        ends = time.monotonic() + STOP_DEADLINE_S
        while (state := self._state()) != "T":
            if state in "XZ" or time.monotonic() > ends:
                raise End("xl ended")
            time.sleep(0.0005)

    def go_on(self) -> None:
        """Undo `stop`."""
        self._send(signal.SIGCONT)

    def lives(self) -> bool:
        """Return whether it is still running."""
        return not _waiting([self.handle], [], 0)[0]

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.handle, number)
        except ProcessLookupError as error:
            raise End("xl ended") from error

    def _state(self) -> str:
        return self._fields()[0]

    def _fields(self) -> list[str]:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ["X", *["0"] * 20]

    @property
    def ticks(self) -> int:
        """Its start time."""
        return int(self._fields()[19])


def _waiting(reading: Sequence[Any], writing: Sequence[Any], seconds: float | None) -> tuple[set[int], set[int]]:
    """Return the descriptors that can be read, and those that can be written (poll(2): descriptors may be high)."""
    look = select.poll()
    wanted: dict[int, int] = {}
    for each in reading:
        wanted[_number(each)] = wanted.get(_number(each), 0) | select.POLLIN
    for each in writing:
        wanted[_number(each)] = wanted.get(_number(each), 0) | select.POLLOUT
    for number, events in wanted.items():
        look.register(number, events)
    found = look.poll(None if seconds is None else max(0, seconds * 1000))
    broken = select.POLLERR | select.POLLHUP | select.POLLNVAL
    readable = {number for number, event in found if event & (select.POLLIN | broken)}
    writable = {number for number, event in found if event & (select.POLLOUT | broken)}
    return readable, writable


def _number(thing: Any) -> int:
    return thing if isinstance(thing, int) else int(thing.fileno())


def _read(handle: int) -> bytes | None:
    """Return the contents of a pipe; None: nothing yet, b"": its end."""
    try:
        return os.read(handle, CHUNK)
    except BlockingIOError:
        return None


def _held(pipe: int) -> int:
    """Return how many bytes wait in a pipe (ioctl_pipe, FIONREAD)."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


class Pace:
    """A limit of `rate` bytes a second (0: none)."""

    def __init__(self, rate: int) -> None:
        """Begin now."""
        self._rate, self._free = rate, time.monotonic()

    def set(self, rate: int) -> None:
        """Use another rate from now on."""
        self._rate, self._free = rate, time.monotonic()

    def sent(self, count: int) -> None:
        """Count `count` bytes as taken."""
        if self._rate:
            self._free = max(self._free, time.monotonic() - 0.05) + count / self._rate

    @property
    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free - time.monotonic())


class Sender:
    """The source's side: its input is what xl sends, its output what xl receives."""

    def __init__(self, control: Control) -> None:
        """Nothing is carried before `run`."""
        self._control = control
        self._pending = memoryview(b"")
        self._sent, self._told = 0, 0.0
        self._answer = b""

    def run(self) -> None:
        """Carry the copy; return once the target has it and xl is stopped. Raises End."""
        order = self._control.order()["take"]
        xl = Child(*order["xl"])
        stream = stream_of(self._control.take(), order, server=False)
        self._pace = Pace(order.get("rate", 0))
        for handle in (0, 1):
            with contextlib.suppress(OSError):
                fcntl.fcntl(handle, _F_SETPIPE_SZ, CHUNK)
        os.set_blocking(0, False)
        os.write(1, BANNER)
        try:
            while self._answer != READY:
                self._turn(stream)
            xl.stop()
        except BaseException:
            stream.close()
            raise
        self._control.tell(ready=True, sent=self._sent)
        with contextlib.suppress(End):  # the stream no longer matters
            while True:
                self._control.order()

    def _turn(self, stream: Stream) -> None:
        reading: list[Any] = [self._control.link, stream.link]
        wait = self._pace.wait
        if not self._pending and not wait:
            reading.append(0)
        writing = [stream.link] if self._pending or stream.unsent else []
        readable, writable = _waiting(reading, writing, wait or NEWS_INTERVAL_S)
        if self._control.link.fileno() in readable:
            for order in self._control.hear():
                self._pace.set(order.get("rate", 0))
        if 0 in readable:
            data = _read(0)
            if data == b"":
                raise End("xl ended")
            self._pending = memoryview(data or b"")
            self._pace.sent(len(self._pending))
        if stream.link.fileno() in writable or (self._pending and 0 in readable):
            count = stream.send(self._pending)
            self._pending, self._sent = self._pending[count:], self._sent + count
        if stream.link.fileno() in readable:
            self._listen(stream.receive())
        if time.monotonic() - self._told > NEWS_INTERVAL_S:
            self._told = time.monotonic()
            self._control.tell(sent=self._sent, blocked=len(self._pending) > 0 or stream.unsent)

    def _listen(self, data: bytes | None) -> None:
        if data == b"":
            raise End("the target closed the stream")
        self._answer += data or b""
        if not READY.startswith(self._answer):
            raise End("the target did not send what xl sends")


class Receiver:
    """The target's side: xl is a child of the relay, which holds its pipes."""

    def __init__(self, control: Control, pid_file: Path, program: str) -> None:
        """Start xl. Raises OSError when it cannot be started."""
        self._control, self._loaded = control, pid_file.with_name("loaded")
        command = [program, "migrate-receive", "-e"]  # -e: no xl stays behind to wait for the domain's end
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._xl = Child(self._process.pid)
        pid_file.write_text(f"{self._xl.pid} {self._xl.ticks}\n")
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, CHUNK)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._words = Words()
        self._pending = memoryview(b"")

    def run(self) -> None:
        """Run until xl has let the domain run, or has failed to; then wait for the order to end. Raises End."""
        while Word.BANNER not in self._hear(None):
            pass
        self._control.tell(there=True)
        order = self._control.order()["take"]
        stream = stream_of(self._control.take(), order, server=True)
        try:
            self._load(stream, order)
            self._xl.stop()
            self._loaded.touch()
            with contextlib.suppress(OSError):  # the sender may have left: then there is no COMMIT
                stream.say(READY)
            self._control.tell(ready=True)
            while "go" not in self._control.order():
                pass
        finally:
            stream.close()
        full = self._narrow()
        os.set_blocking(self._in, True)
        os.write(self._in, GO)
        self._xl.go_on()  # only once GO is in the pipe: xl would take the end of its pipe for a failure
        while _held(self._out) < full and self._xl.lives():
            if _waiting([self._control.link], [], LOOK_INTERVAL_S)[0]:
                self._control.order()  # only the end of the connection can come now
        self._control.tell(tried=True)
        with contextlib.suppress(End):
            while True:
                self._control.order()

    def _narrow(self) -> int:
        """Leave space in xl's pipe for its REPORT but not for the status after it, so that xl waits there. Whichever
        ends first, xl or the relay, then destroys nothing (xl_migrate.c: a write that fails ends it). Returns how much
        the pipe holds when xl is done."""
        full = fcntl.fcntl(self._out, _F_SETPIPE_SZ, 1)  # one page, the least there is
        into = os.open(f"/proc/self/fd/{self._out}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(into, bytes(full - len(REPORT)))  # xl's 39 bytes go behind these in the same page
        finally:
            os.close(into)
        return full

    def _load(self, stream: Stream, order: dict[str, Any]) -> None:
        """Carry the stream until xl has loaded it."""
        header = Header(lambda config: furnished(config, order.get("disks", {}), order.get("scripts", {})))
        while True:
            reading: list[Any] = [self._control.link, self._out]
            if not self._pending:
                reading.append(stream.link)
            readable, writable = _waiting(reading, [self._in] if self._pending else [], 0 if stream.early else None)
            if self._control.link.fileno() in readable:
                self._control.order()  # only the end of the connection can come now
            if self._out in readable and Word.READY in self._hear(0):
                return
            if not self._pending and (stream.early or stream.link.fileno() in readable):
                data = stream.receive()
                if data == b"":
                    raise End("the source closed the stream")
                self._pending = memoryview(header.feed(data or b""))
            if self._pending and (self._in in writable or not writable):
                self._pour()

    def _pour(self) -> None:
        try:
            self._pending = self._pending[os.write(self._in, self._pending) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise End("xl migrate-receive ended") from error

    def _hear(self, seconds: float | None) -> list[Word]:
        """Return xl's messages. Raises End when xl has ended, or the node is gone."""
        readable, _ = _waiting([self._out, self._control.link], [], seconds)
        if self._out in readable:
            data = _read(self._out)
            if data == b"":
                raise End("xl migrate-receive ended")
            return self._words.feed(data or b"")
        if self._control.link.fileno() in readable:
            for _order in self._control.hear():
                raise End("an unexpected order")
        return []


def main(words: list[str]) -> int:
    """Run as sender or receiver."""
    if words[0] == "send":
        os.closerange(3, 4096)  # xl leaks its own ends of these pipes: with them open no pipe would ever end
        os.setsid()  # a signal to xl's session must not end the relay, nor the other way round
    control = Control(words[1])
    try:
        if words[0] == "send":
            Sender(control).run()
        else:
            Receiver(control, Path(words[2]), words[3]).run()
    except (End, Garbled, OSError) as error:
        with contextlib.suppress(End):
            control.tell(end=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
