"""The messages between the two ends of a move on the relocation port.

A connection begins with 64 plain bytes that say what it is for, `VEERY/1 CONTROL` or `VEERY/1 STREAM TOKEN`, padded
with spaces and ended by a newline. The server answers with one plain line, `OK` or `NO reason`. After a CONTROL
greeting both ends speak TLS with the cluster's certificates and exchange frames: four bytes of length (network order)
and one JSON message. After a STREAM greeting the socket is passed to the hypervisor, which does its own TLS. Messages
of one move, in order:

    source                         target
    Offer       ->
                                <- Wait ... Ready | Problem
    (opens the stream)
                                <- Loaded | Problem
    Finish      ->                              (after COMMIT)
                                <- Running | Problem

A source that gives up before COMMIT also sends Problem; the target closes the connection when it has cleaned up. In
post-copy Poised comes before Loaded, because the stream does not end. Later, over separate connections, either side may
Ask for the state of the rest, and a source whose stream broke sends Mend. After Mending the connection carries the
hypervisors' bytes, so that it also encrypts a mended stream."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import ssl
import struct
from typing import TypeVar

import msgspec

from veery.cluster.identity import check_name as check_node
from veery.config import check
from veery.errors import Failed, Refused, VeeryError, from_kind
from veery.host import tasks
from veery.model import codec, endpoint
from veery.model.domain import DomainSpec
from veery.model.flow import Flow
from veery.model.volume import CarriedDisk

T = TypeVar("T")

GREETING_BYTES = 64
FRAME_MAX = 8 << 20
PIECE = 256 << 10
PARTING_S = 2.0  # time for the other end to clean up after this end gave up; a dead peer costs all of it
SILENT_S = 30  # a machine whose kernel answers nothing for so long is taken for gone
_PROBE_INTERVAL_S = 5  # between two keep-alive probes of the kernel
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
FASTEST = 1_250_000_000  # bytes/s of the fastest path for which a stream's buffers are sized
SHALLOWEST, DEEPEST = 512 << 10, 2 << 20
FLOWS_MAX = 1 << 16  # connections that move along with a domain
LATEST_S = 1 << 40  # seconds since the epoch; no guest booted this late
POUR_MAX = 3600  # seconds; the receiver counts for one at most
SAID_MAX = 2000  # characters of an error's message, and of its hint
_TOKEN = re.compile(r"[0-9a-f]{32}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:+~() -]{0,127}")  # "10.0.2", "10.0.2 (Debian 1:10.0.2+ds-2)"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_GREETING = re.compile(rb"VEERY/1 (CONTROL|STREAM ([0-9a-f]{32})) *\n")


class Unreadable(Refused):
    """The error for bytes that are not a valid message."""


class Unfit(Failed):
    """The error for a message of the other end that cannot be accepted."""


def _match(what: str, pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise Unreadable(f"{what} cannot be {check.short(text)}", hint="compare `veery version` on both nodes")


def _revision(what: str, number: int) -> None:
    check.check_number(what, number, 0, check.LARGEST_NUMBER)


def _plain(text: str, longest: int = SAID_MAX) -> str:
    """Return `text` of another node as one line that a log or a terminal can show."""
    return _CONTROL.sub(" ", text[:longest])


class Offer(msgspec.Struct, frozen=True, tag="offer", kw_only=True):
    """The source asks the target to take a domain in. `backlog` is the console's earlier output. `luggage` is what the
    driver needs to build exactly the same devices. `paused`: the domain must not run when it arrives. `disks` go along,
    to `disk_dir` ("": the target chooses). `post_copy`: the rest of its memory may follow it. `packed`: the nodes
    compress and encrypt its stream, not the hypervisors. `level`: what the source's version can do (0: it does not
    say)."""

    move: str
    source: str
    domain: str
    boot: str
    owner_revision: int
    driver: str
    spec: DomainSpec
    luggage: msgspec.Raw = msgspec.Raw(b"null")
    backlog: bytes = b""
    tls: bool = True
    paused: bool = False
    disks: tuple[CarriedDisk, ...] = ()
    disk_dir: str = ""
    post_copy: bool = False
    packed: bool = False
    level: int = 0

    def __post_init__(self) -> None:
        """Check everything that may reach a path, an option or a log line. Raises Refused."""
        check.check_move(self.move)
        check_node(self.source, "node")
        if self.domain != self.spec.name:
            raise Refused(f"{check.short(self.domain)} is offered as {check.short(self.spec.name)}")
        check.check_spec(self.spec, settled=True)
        check.check_luggage(bytes(self.luggage))
        _match("the instance's id", _WORD, self.boot)
        _match("the driver's name", _WORD, self.driver)
        _revision("the owner's revision", self.owner_revision)
        _revision("the level", self.level)
        check.check_carried(self.disks, self.spec)
        if self.disk_dir:
            check.check_path("the folder for disks", self.disk_dir)


class Ready(msgspec.Struct, frozen=True, tag="ready", kw_only=True):
    """The half domain waits for a stream that shows `token`; `reservation` is its promise's revision. `disks` are those
    of the offer with their files at the target; streams that show `disk_token` write them. `hypervisor` is the version
    of the target's hypervisor ("": a node of an older version), `level` what its veery can do (0: it does not say)."""

    token: str
    reservation: int
    disks: tuple[CarriedDisk, ...] = ()
    disk_token: str = ""
    hypervisor: str = ""
    level: int = 0

    def __post_init__(self) -> None:
        """Check the fields. Raises Refused."""
        for token in (self.token, *((self.disk_token,) if self.disk_token else ())):
            _match("a token", _TOKEN, token)
        if self.hypervisor:
            _match("the hypervisor's version", _VERSION, self.hypervisor)
        _revision("the reservation's revision", self.reservation)
        _revision("the level", self.level)
        check.check_carried(self.disks)


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Too many domains are arriving; the target repeats this every few seconds until there is room."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Everything is loaded; the domain is paused at the target."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """The target is now the owner: let the domain run. `flows` are its connections as the source's firewall knew them;
    a node of an older version sends none. `started`: the time of its guest's last boot, in seconds since the epoch,
    which may be after the offer (0: a node of an older version, which does not say)."""

    flows: tuple[Flow, ...] = ()
    started: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields. Raises Refused."""
        check.check_number("the time of its boot", self.started, 0, LATEST_S)
        check.check_number("the number of connections", len(self.flows), 0, FLOWS_MAX)
        for flow in self.flows:
            _check_flow(flow)


class Running(msgspec.Struct, frozen=True, tag="running"):
    """The domain runs (or is paused, where the user had paused it)."""


class Poised(msgspec.Struct, frozen=True, tag="poised"):
    """Post-copy: the domain is paused, and everything that goes before it was sent. The target answers Loaded when it
    is ready for it."""


class Mend(msgspec.Struct, frozen=True, tag="mend"):
    """The stream of this move broke after COMMIT: take the rest of the domain's memory from this connection."""

    move: str
    uuid: str

    def __post_init__(self) -> None:
        """Check the fields. Raises Refused."""
        check.check_move(self.move)
        check.check_uuid(self.uuid)


class Mending(msgspec.Struct, frozen=True, tag="mending"):
    """The next bytes on this connection, both ways, are the hypervisors'."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question: what is the state of this move's domain at the other side?"""

    move: str
    uuid: str

    def __post_init__(self) -> None:
        """Check the fields. Raises Refused."""
        check.check_move(self.move)
        check.check_uuid(self.uuid)


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The answer to Ask: one of Standing."""

    standing: str

    def __post_init__(self) -> None:
        """Check the field. Raises Refused."""
        _match("a standing", _WORD, self.standing)


class Problem(msgspec.Struct, frozen=True, tag="problem"):
    """An error, in the kinds of veery.errors."""

    kind: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        """Turn each text into one line of bounded length, because users see them."""
        for name in ("kind", "message", "hint"):
            msgspec.structs.force_setattr(self, name, _plain(getattr(self, name)))

    @classmethod
    def of(cls, error: VeeryError) -> Problem:
        """Return the message that carries `error`."""
        return cls(error.kind, error.message, error.hint)


class Pour(msgspec.Struct, frozen=True, tag="pour"):
    """A bandwidth probe instead of a move: meaningless bytes follow, which the receiver counts for `seconds`."""

    seconds: float

    def __post_init__(self) -> None:
        """Check the field. Raises Refused."""
        check.check_number("the seconds", self.seconds, 0, POUR_MAX)


class Poured(msgspec.Struct, frozen=True, tag="poured"):
    """The answer to Pour: `bytes` arrived in `seconds`."""

    bytes: int
    seconds: float

    def __post_init__(self) -> None:
        """Check the fields. Raises Refused."""
        check.check_number("the number of bytes", self.bytes, 0, check.LARGEST_NUMBER)
        check.check_number("the seconds", self.seconds, 0, POUR_MAX)


class _Spec(msgspec.Struct):
    """An Offer's spec as it arrived."""

    spec: msgspec.Raw


Message = (
    Offer | Ready | Wait | Loaded | Finish | Running | Problem | Pour | Poured | Poised | Mend | Mending | Ask | Told
)
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def _check_flow(flow: Flow) -> None:
    """Raise Refused unless the kernel could have reported this connection."""
    for address in (flow.source, flow.target):
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise Unreadable(f"{check.short(address)} is not a valid address of a connection") from error
    small = (flow.protocol, *flow.scales, *flow.flags, flow.state)
    bounds = ((small, 0xFF), ((flow.source_port, flow.target_port, flow.zone), 0xFFFF))
    for numbers, most in (*bounds, ((flow.status, flow.timeout, flow.mark), 0xFFFFFFFF)):
        for number in numbers:
            check.check_number("a number of a connection", number, 0, most)


def decode(data: bytes) -> Message:
    """Return the message in a frame. Raises Refused where the frame is not a valid message."""
    try:
        message = _decoder.decode(data)
        if isinstance(message, Offer):  # keep a newer version's fields: they go into the domain's record
            spec = codec.decode(bytes(msgspec.json.decode(data, type=_Spec).spec), DomainSpec)
            msgspec.structs.force_setattr(message, "spec", spec)
        return message
    except Failed as error:
        raise Unreadable(_plain(error.message), hint=_plain(error.hint)) from error
    except Refused as error:
        raise Unreadable(_plain(error.message), hint=_plain(error.hint)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise Unreadable(
            _plain(f"unreadable message: {error}"), hint="compare `veery version` on both nodes"
        ) from error


def greeting(token: str = "") -> bytes:
    """Return the first 64 bytes of a connection: a stream's with `token`, a control connection's without."""
    words = f"VEERY/1 STREAM {token}" if token else "VEERY/1 CONTROL"
    return words.encode().ljust(GREETING_BYTES - 1) + b"\n"


def parse_greeting(data: bytes) -> str:
    """Return the token in a greeting, "" for a control connection. Raises Refused for anything else."""
    match = _GREETING.fullmatch(data)
    if not match:
        raise Refused("not a veery relocation greeting")
    return (match.group(2) or b"").decode()


class Channel:
    """A control connection: whole messages, each with a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        """`peer` is the node named by the other end's certificate."""
        self.peer = peer
        self._reader, self._writer = reader, writer
        self._parting = False

    async def send(self, message: Message) -> None:
        """Write one message. Raises Failed when the other end is gone."""
        data = codec.encode(message)
        try:
            self._writer.write(struct.pack("!I", len(data)) + data)
            async with asyncio.timeout(10):
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise Failed(f"{self.peer} takes no message: {error or 'timeout'}") from error

    async def receive(self, deadline: float | None) -> Message:
        """Return the next message within `deadline` seconds (None: the caller ends the wait itself). Raises Failed when
        the other end is gone or silent, Unfit when its message is not valid."""
        try:
            async with asyncio.timeout(deadline):
                (length,) = struct.unpack("!I", await self._reader.readexactly(4))
                if length > FRAME_MAX:
                    raise Failed(f"{self.peer} sent a message of {length} bytes")
                return decode(await self._reader.readexactly(length))
        except TimeoutError as error:
            raise Failed(f"{self.peer} sent no message for {deadline:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Failed(f"{self.peer} closed the connection", hint=f"look at veeryd's log on {self.peer}") from error
        except Refused as error:
            raise Unfit(f"{self.peer}: {error.message}", hint=error.hint) from error

    async def expect(self, kind: type[T] | tuple[type[T], ...], deadline: float | None) -> T:
        """Return the next message, which must be of `kind` or one of them. A Problem is raised as the error that it
        carries."""
        message = await self.receive(deadline)
        if isinstance(message, Problem):
            raise from_kind(message.kind, message.message, message.hint)
        if not isinstance(message, kind):
            due = kind[0] if isinstance(kind, tuple) else kind
            raise Failed(f"{self.peer} sent {type(message).__name__} where {due.__name__} was due")
        return message

    async def pour(self, data: bytes) -> None:
        """Write raw bytes that are not a message. Raises Failed when the other end is gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Failed(f"{self.peer} closed the connection") from error

    async def catch(self, deadline: float) -> int:
        """Read and drop raw bytes; return how many, 0 at the end. Raises Failed after `deadline`."""
        try:
            async with asyncio.timeout(deadline):
                return len(await self._reader.read(1 << 20))
        except TimeoutError as error:
            raise Failed(f"{self.peer} sent nothing for {deadline:g} s") from error
        except OSError as error:
            raise Failed(f"{self.peer} closed the connection") from error

    async def carry(self, stream: socket.socket) -> None:
        """Carry raw bytes between the other end and `stream` (not blocking), both ways, until either side ends. Raises
        nothing when a side breaks."""
        loop = asyncio.get_running_loop()

        async def there() -> None:
            with contextlib.suppress(OSError):
                while data := await loop.sock_recv(stream, PIECE):
                    self._writer.write(data)
                    await self._writer.drain()

        async def back() -> None:
            with contextlib.suppress(OSError):
                while data := await self._reader.read(PIECE):
                    await loop.sock_sendall(stream, data)

        both = asyncio.create_task(there()), asyncio.create_task(back())
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.stop(*both)

    def drop(self) -> None:
        """Close the connection at once, whatever is still unsent."""
        self._writer.transport.abort()

    def part(self, why: str) -> None:
        """Tell the other end that this end gives up; `close` then gives it a moment to clean up and close first."""
        data = msgspec.json.encode(Problem("failed", why))
        self._writer.write(struct.pack("!I", len(data)) + data)
        self._parting = True

    async def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PARTING_S):
                while self._parting and await self._reader.read(PIECE):
                    pass
        self._writer.close()
        try:
            async with asyncio.timeout(2):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass


async def _greet(address: str, port: int, token: str, deadline: float) -> socket.socket:
    """Return a connected TCP socket on which the server has answered OK."""
    loop = asyncio.get_running_loop()
    where = endpoint.join(address, port)
    try:
        async with asyncio.timeout(deadline):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(connection, (address, port))
                await loop.sock_sendall(connection, greeting(token))
                answer = b""
                while not answer.endswith(b"\n") and len(answer) < 512:
                    byte = await loop.sock_recv(connection, 1)
                    if not byte:
                        raise Failed(f"relocation server {where} closed the connection")
                    answer += byte
            except BaseException:
                connection.close()
                raise
    except TimeoutError as error:
        raise Failed(f"relocation server {where} does not answer", hint="is the path to it cut?") from error
    except OSError as error:
        raise Refused(
            f"relocation server {where}: {os.strerror(error.errno) if error.errno else error}",
            hint="is veeryd running there?",
        ) from error
    if answer.strip() != b"OK":
        connection.close()
        reason = answer.decode(errors="replace").removeprefix("NO ").strip() or f"{where} refused"
        hint = "set relocation.hosts_allow in veery.toml of that node and restart veeryd there"
        raise Refused(reason, hint=hint if "relocation.hosts_allow" in reason else "")
    return connection


async def open_control(address: str, port: int, peer: str, tls: ssl.SSLContext, deadline: float) -> Channel:
    """Open a control connection to node `peer`, whose certificate must name it. Raises Refused, Failed."""
    connection = await _greet(address, port, "", deadline)
    end_when_silent(connection)
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection(
                sock=connection, ssl=tls, server_hostname=peer, limit=FRAME_MAX
            )
    except TimeoutError as error:
        connection.close()
        raise Failed(f"{peer} did not finish the TLS handshake within {deadline:g} s") from error
    except (ssl.SSLError, OSError) as error:
        connection.close()
        raise Refused(
            f"{address} is not {peer} of this cluster: {error}", hint="compare `veery node list` and the certificates"
        ) from error
    return Channel(reader, writer, peer)


def end_when_silent(connection: socket.socket) -> None:
    """Make a control connection break SILENT_S seconds after the machine at its other end, or the cable, failed
    (tcp(7)). A message may take minutes, and its reader learns of a power cut in no other way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _PROBE_INTERVAL_S),
        (socket.TCP_KEEPINTVL, _PROBE_INTERVAL_S),
        (socket.TCP_KEEPCNT, SILENT_S // _PROBE_INTERVAL_S - 1),
        (socket.TCP_USER_TIMEOUT, SILENT_S * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def open_stream(address: str, port: int, token: str, deadline: float) -> socket.socket:
    """Return a connected, blocking TCP socket from which the target's hypervisor will read. Raises Refused, Failed."""
    connection = await _greet(address, port, token, deadline)
    connection.setblocking(True)
    keep_shallow(connection, SO_SNDBUFFORCE)
    return connection


def keep_shallow(stream: socket.socket, option: int) -> None:
    """Limit a stream's buffer at this end (SO_SNDBUFFORCE or SO_RCVBUFFORCE) to what its path needs.

    What the buffers hold when the domain stops adds to its downtime, because the target still has to load it. Without a
    limit they grow to many megabytes. A path so long that it needs as much keeps the kernel's own tuning."""
    with contextlib.suppress(OSError, struct.error):  # not permitted, or an older kernel: the move is only slower
        info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        (round_trip,) = struct.unpack_from("=I", info, 148)  # tcpi_min_rtt in us, linux/tcp.h
        wanted = FASTEST * round_trip // 1_000_000
        if wanted <= DEEPEST:
            stream.setsockopt(socket.SOL_SOCKET, option, max(SHALLOWEST, wanted))
