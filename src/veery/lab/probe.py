"""The client outside: it sends ICMP echo requests (RFC 792; RFC 4443 for IPv6) to one or more addresses every few ms,
and measures the longest gap in the answers.

`Probe` is the handle; the prober is a separate process (`python -m veery.lab.probe`) in the client's namespace. Each
address has its own socket: otherwise packets that wait for one address's ARP would block the others. The time of an
answer is the kernel's (SO_TIMESTAMPNS), so the prober's own scheduling adds nothing to it. The prober's delays in
sending are reported with the gap, as `stall_ms`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from veery.errors import Failed

ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO_REQUEST_6, ECHO_REPLY_6, ICMP6_FILTER = 128, 129, 1  # linux/icmpv6.h
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
SOL_RAW, ICMP_FILTER = 255, 1  # linux/socket.h, linux/icmp.h
MAGIC = 0x76656572
_BODY = struct.Struct("!IIQ")  # magic, address number, sequence
_REPLY_TIMEOUT_S = 20.0  # for the process's answer to a command


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The counts of one address since the last mark. `gap_ms`: the longest time between two successive answers, or
    since the last answer if that is longer; None without an answer. `gap_at`: the epoch second of the gap's begin.
    `lost`: unanswered requests before the last answered one. `age_ms`: the age of the last answer."""

    sent: int
    received: int
    lost: int
    gap_ms: float | None
    gap_at: float | None
    age_ms: float | None
    stall_ms: float


@dataclass
class _Target:
    """One address and its counts since the last mark."""

    number: int
    address: str
    raw: socket.socket
    sent: int = 0
    received: int = 0
    first: int = 0  # the first sequence number since the mark
    highest: int = 0
    last: float | None = None
    gap: float = 0.0
    gap_at: float | None = None
    stall: float = 0.0
    sent_at: float | None = None

    @classmethod
    def open(cls, number: int, address: str) -> _Target:
        if ":" in address:
            raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            blocked = [0xFFFFFFFF] * 8
            blocked[ECHO_REPLY_6 // 32] &= ~(1 << ECHO_REPLY_6 % 32)
            raw.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *blocked))
            where = socket.getaddrinfo(address, None, socket.AF_INET6, socket.SOCK_DGRAM)[0][4]  # including %DEVICE
        else:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF))
            where = (address, 0)
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        raw.connect(where)
        return cls(number, address, raw)

    def mark(self, sequence: int) -> None:
        self.sent = self.received = 0
        self.first, self.highest = sequence + 1, sequence
        self.gap, self.gap_at, self.last, self.stall, self.sent_at = 0.0, None, None, 0.0, None

    def send(self, sequence: int) -> None:
        now = time.time()
        if self.sent_at is not None:
            self.stall = max(self.stall, now - self.sent_at)
        self.sent_at = now
        self.sent += 1
        with contextlib.suppress(OSError):  # no route, no neighbour, buffer full: counts as unanswered
            kind = ECHO_REQUEST_6 if ":" in self.address else ECHO_REQUEST
            self.raw.send(_request(self.number, sequence, kind))  # the kernel writes ICMPv6's checksum

    def receive(self) -> None:
        while True:
            try:
                packet, control, _, _ = self.raw.recvmsg(2048, 128)
            except BlockingIOError:
                return
            except OSError:  # a queued ICMP error (host unreachable)
                continue
            six = ":" in self.address
            icmp = packet if six else packet[(packet[0] & 15) * 4 :]
            if len(icmp) < 8 + _BODY.size or icmp[0] != (ECHO_REPLY_6 if six else ECHO_REPLY):
                continue
            magic, number, sequence = _BODY.unpack_from(icmp, 8)
            if (magic, number) == (MAGIC, self.number) and sequence >= self.first:
                self._count(sequence, _kernel_time(control))

    def _count(self, sequence: int, at: float) -> None:
        self.received += 1
        self.highest = max(self.highest, sequence)
        if self.last is not None and at - self.last > self.gap:
            self.gap, self.gap_at = at - self.last, self.last
        self.last = at

    def reading(self) -> Reading:
        age = None if self.last is None else time.time() - self.last
        gap, gap_at = (age, self.last) if age is not None and age > self.gap else (self.gap, self.gap_at)
        return Reading(
            sent=self.sent,
            received=self.received,
            lost=self.highest - self.first + 1 - self.received,
            gap_ms=None if self.last is None else round(gap * 1e3, 1),
            gap_at=gap_at,
            age_ms=None if age is None else round(age * 1e3, 1),
            stall_ms=round(self.stall * 1e3, 1),
        )


def serve(interval: float, addresses: Sequence[str]) -> None:
    """Probe until stdin ends. Commands on stdin: "mark" resets the counts, "read" does not; both print
    {ADDRESS: Reading} on one line."""
    _be_prompt()
    targets = [_Target.open(number, address) for number, address in enumerate(addresses)]
    by_handle = {target.raw.fileno(): target for target in targets}
    poll = select.poll()
    for handle in (*by_handle, 0):
        poll.register(handle, select.POLLIN)
    os.set_blocking(0, False)
    for target in targets:
        target.mark(0)
    sequence, due, pending = 0, time.monotonic(), b""
    while True:
        now = time.monotonic()
        if now >= due:
            sequence += 1
            for target in targets:
                target.send(sequence)
            due = due + interval if now < due + 10 * interval else now + interval
        for handle, _ in poll.poll(max(0.0, (due - time.monotonic()) * 1e3)):
            if handle in by_handle:
                by_handle[handle].receive()
                continue
            data = os.read(0, 4096)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _command(line.decode(), targets, sequence)


def _command(line: str, targets: Sequence[_Target], sequence: int) -> None:
    if line == "mark":
        for target in targets:
            target.mark(sequence)
    print(json.dumps({target.address: asdict(target.reading()) for target in targets}), flush=True)


def _be_prompt() -> None:
    """Request a high scheduling priority: the probe measures the domain, not the machine's run queue."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(-10)


def _request(number: int, sequence: int, kind: int) -> bytes:
    body = _BODY.pack(MAGIC, number, sequence)
    identity = os.getpid() & 0xFFFF
    sum_ = _checksum(struct.pack("!BBHHH", kind, 0, 0, identity, sequence & 0xFFFF) + body)
    return struct.pack("!BBHHH", kind, 0, sum_, identity, sequence & 0xFFFF) + body


def _checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071; `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _kernel_time(control: Sequence[tuple[int, int, bytes]]) -> float:
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return float(seconds + nanoseconds / 1e9)
    return time.time()


@dataclass
class Probe:
    """A running probe: `start` starts it, `stop` ends it."""

    process: asyncio.subprocess.Process
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def start(
        cls, enter: Callable[[Sequence[str | Path]], list[str | Path]], addresses: Sequence[str], *, interval: float
    ) -> Probe:
        """Probe `addresses` every `interval` seconds; `enter` makes a command line for the client's namespace."""
        argv = enter([sys.executable, "-m", "veery.lab.probe", str(interval), *addresses])
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*map(str, argv), stdin=pipe, stdout=pipe)
        return cls(process)

    async def mark(self) -> None:
        """Reset the counts."""
        await self._ask("mark")

    async def read(self) -> dict[str, Reading]:
        """Return the counts of each address since the last mark. Raises Failed if the probe has ended."""
        answer: dict[str, dict[str, float]] = json.loads(await self._ask("read"))
        return {address: Reading(**row) for address, row in answer.items()}  # type: ignore[arg-type]

    async def answered(self, *, deadline: float) -> None:
        """Return once every address has answered within the last 100 ms. Raises Failed after `deadline` s."""
        silent = "?"
        try:
            async with asyncio.timeout(deadline):
                while True:
                    readings = await self.read()
                    late = [at for at, each in readings.items() if each.age_ms is None or each.age_ms > 100]
                    if not late:
                        return
                    silent = ", ".join(late)
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise Failed(f"no answer from {silent} within {deadline:g} s", hint="check the domain's console") from error

    async def stop(self) -> None:
        """End the probe; no error if it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()

    async def _ask(self, word: str) -> bytes:
        assert self.process.stdin is not None and self.process.stdout is not None
        line = b""
        async with self._turn:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_REPLY_TIMEOUT_S):
                    self.process.stdin.write(f"{word}\n".encode())
                    await self.process.stdin.drain()
                    line = await self.process.stdout.readline()
        if not line:
            raise Failed("the probe has ended", hint="run the command again; the probe's message is above")
        return line


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(float(sys.argv[1]), sys.argv[2:])
