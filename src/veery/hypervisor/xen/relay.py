"""What stands between xl and the stream of a move: a process a side, which carries the bytes and holds xl's last word.

    python -m veery.hypervisor.xen.relay send DOOR          the command that `xl migrate -s ''` runs
    python -m veery.hypervisor.xen.relay receive DOOR PID XL   starts `XL migrate-receive`, its pid into the file PID

An xl that waits for the other's word acts by itself when its pipe ends: the sender resumes the domain, the receiver
destroys it. So once the receiver has said READY each relay stops its xl (SIGSTOP), and only then tells of it. Up to
there the end of any of us undoes the move by itself; from there on nothing happens by itself, whoever ends, and the
node acts as the owner key says. The sender is never told READY: it is killed, or its pipe ends and it resumes. Nor is
the receiver's REPORT taken from it: a receiver that was given its GO and fails would destroy the domain after that.

DOOR is a unix socket of the node's: JSON lines, to us {"take": ...} with the stream's descriptor, {"rate": bytes/s},
{"go": true}; from us {"there"}, {"sent"}, {"ready"}, {"tried"}, {"end"}. When it closes we end. Never splice(2) into a
pipe that xl reads: it holds the pipe's lock while it waits (Linux 6.1, fs/splice.c, splice_file_to_pipe)."""

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

CHUNK = 256 << 10  # bytes of a pipe, and of a turn: what waits in pipes when the domain stands is part of its gap
RECORD = 16 << 10  # bytes of a TLS record
NEWS = 0.2  # seconds between two reports of what was sent
HANDSHAKE = 15.0  # seconds for TLS
STOP = 10.0  # seconds for a signal to show
LOOK = 0.005  # seconds between two looks whether xl has reported
_F_SETPIPE_SZ = 1031  # fcntl(2)


class End(Exception):
    """Our work is over, for this reason."""


class Control:
    """The node's end of us."""

    def __init__(self, door: str) -> None:
        """Raises OSError when nobody is behind `door`."""
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(door)
        self._data, self._handles = b"", list[int]()

    def tell(self, **news: Any) -> None:
        """Say something. Raises End when nobody listens any more."""
        try:
            self.link.sendall(json.dumps(news).encode() + b"\n")
        except OSError as error:
            raise End("the node is gone") from error

    def hear(self) -> Iterator[dict[str, Any]]:
        """The orders that have come, after `link` was seen to be readable. Raises End at the connection's end."""
        data, handles, _, _ = socket.recv_fds(self.link, 1 << 16, 4)
        self._handles += handles
        if not data:
            raise End("the node is gone")
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def take(self) -> socket.socket:
        """The stream that came with the last order."""
        return socket.socket(fileno=self._handles.pop(0))

    def order(self) -> dict[str, Any]:
        """Wait for the next order. Raises End."""
        while True:
            for order in self.hear():
                return order


class Stream:
    """The connection to the other relay in the clear; never blocks, but for `say`."""

    unsent = False  # whether something waits here that `send` has taken
    early = False  # whether something may have come that the socket does not show any more

    def __init__(self, link: socket.socket) -> None:
        """Takes `link` over."""
        self.link = link
        self.link.setblocking(False)

    def receive(self) -> bytes | None:
        """What has come; None: nothing yet, b"": it has ended."""
        try:
            return self.link.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: memoryview) -> int:
        """How many bytes of `data` were taken. Raises End when the connection is broken."""
        try:
            return self.link.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise End(f"the stream broke: {error.strerror or error}") from error

    def say(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        self.link.settimeout(HANDSHAKE)
        self.link.sendall(data)

    def close(self) -> None:
        """Break it, whoever else holds it: the node does."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()


class Encrypted(Stream):
    """The same by TLS. What ssl does by itself are two system calls for each 16 KiB, dear in a PV dom0; here a call
    carries as much as the socket takes."""

    def __init__(self, link: socket.socket, order: dict[str, Any], *, server: bool) -> None:
        """`order` has "tls", the folder of the node's certificates, and "peer", whom we expect. Raises End when the
        other is someone else."""
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
            raise End(f"the stream is {peer_name(self._tls) or 'nobody'}'s, not {peer}'s")
        self.early = True  # what came with the hand-shake's last word
        link.setblocking(False)

    def _shake_hands(self) -> None:
        self.link.settimeout(HANDSHAKE)
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
                raise OSError("the other side hung up")
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
        except ssl.SSLError:  # its end, or what is no TLS
            pass
        return b"".join(pieces)

    def send(self, data: memoryview) -> int:
        """See Stream.send: nothing is taken while something waits."""
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
    """As the order to take it wants it. Raises End."""
    return Encrypted(link, order, server=server) if order.get("tls") else Stream(link)


class Child:
    """An xl, by pidfd, so that no other process is ever meant."""

    def __init__(self, pid: int, ticks: int = 0) -> None:
        """`ticks`: its start time (proc(5), field 22), 0 for a child of ours. Raises End when it is gone."""
        try:
            self.pid, self.handle = pid, os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise End("xl ended") from error
        if ticks and int(self._fields()[19]) != ticks:
            raise End("xl ended")

    def stop(self) -> None:
        """Have it stand still, and return when it does. Raises End when it has ended."""
        self._send(signal.SIGSTOP)
        ends = time.monotonic() + STOP
        while (state := self._state()) != "T":
            if state in "XZ" or time.monotonic() > ends:
                raise End("xl ended")
            time.sleep(0.0005)

    def go_on(self) -> None:
        """Undo `stop`."""
        self._send(signal.SIGCONT)

    def lives(self) -> bool:
        """Whether it has not ended."""
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
    """The descriptors of those that can be read, and written (poll(2): descriptors may be high)."""
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
    """What a pipe has; None: nothing yet, b"": its end."""
    try:
        return os.read(handle, CHUNK)
    except BlockingIOError:
        return None


def _held(pipe: int) -> int:
    """How many bytes wait in a pipe (ioctl_pipe, FIONREAD)."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


class Pace:
    """At most `rate` bytes a second (0: as fast as it goes)."""

    def __init__(self, rate: int) -> None:
        """From now on."""
        self._rate, self._free = rate, time.monotonic()

    def set(self, rate: int) -> None:
        """From now on another rate."""
        self._rate, self._free = rate, time.monotonic()

    def sent(self, count: int) -> None:
        """`count` bytes were taken."""
        if self._rate:
            self._free = max(self._free, time.monotonic() - 0.05) + count / self._rate

    @property
    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free - time.monotonic())


class Sender:
    """The source's side: our input is what xl sends, our output what it hears."""

    def __init__(self, control: Control) -> None:
        """Nothing is carried before `run`."""
        self._control = control
        self._pending = memoryview(b"")
        self._sent, self._told = 0, 0.0
        self._answer = b""

    def run(self) -> None:
        """Carry the copy; return once the target has it and xl stands still. Raises End."""
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
        with contextlib.suppress(End):  # nothing that the stream does matters any more
            while True:
                self._control.order()

    def _turn(self, stream: Stream) -> None:
        reading: list[Any] = [self._control.link, stream.link]
        wait = self._pace.wait
        if not self._pending and not wait:
            reading.append(0)
        writing = [stream.link] if self._pending or stream.unsent else []
        readable, writable = _waiting(reading, writing, wait or NEWS)
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
        if time.monotonic() - self._told > NEWS:
            self._told = time.monotonic()
            self._control.tell(sent=self._sent, blocked=len(self._pending) > 0 or stream.unsent)

    def _listen(self, data: bytes | None) -> None:
        if data == b"":
            raise End("the target closed the stream")
        self._answer += data or b""
        if not READY.startswith(self._answer):
            raise End("the target did not say what xl says")


class Receiver:
    """The target's side: xl is our child, and we hold its pipes."""

    def __init__(self, control: Control, pid_file: Path, program: str) -> None:
        """Starts xl. Raises OSError when it cannot be."""
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
        """Until xl has let the domain run, or has failed to; then wait for our end. Raises End."""
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
        self._xl.go_on()  # after GO is there for it to read: it would take the end of its pipe for a failure
        while _held(self._out) < full and self._xl.lives():
            if _waiting([self._control.link], [], LOOK)[0]:
                self._control.order()  # there is none now but its end
        self._control.tell(tried=True)
        with contextlib.suppress(End):
            while True:
                self._control.order()

    def _narrow(self) -> int:
        """Leave room in xl's pipe for its REPORT but not for the status behind it: there it waits, and whatever ends
        first, xl or we, it destroys nothing (xl_migrate.c: a write that fails ends it). How much the pipe then holds
        when xl has done what it was to do."""
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
                self._control.order()  # there is none now but its end
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
        """What xl says. Raises End when it has ended, or the node is gone."""
        readable, _ = _waiting([self._out, self._control.link], [], seconds)
        if self._out in readable:
            data = _read(self._out)
            if data == b"":
                raise End("xl migrate-receive ended")
            return self._words.feed(data or b"")
        if self._control.link.fileno() in readable:
            for _order in self._control.hear():
                raise End("an order out of turn")
        return []


def main(words: list[str]) -> int:
    """Be one of the two."""
    if words[0] == "send":
        os.closerange(3, 4096)  # xl lets its own ends of our pipes slip through: then there would never be an end
        os.setsid()  # what ends xl must not end us, and the other way round
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
