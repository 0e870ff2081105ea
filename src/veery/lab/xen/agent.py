"""The agent inside a nested node: it runs commands and gives access to processes and sockets. Its clients are `call`,
`door` and `talk`.

One TCP connection carries one request, over the node's own link, which cuts of the lab's network do not affect. Frames
in both directions: a kind (one byte), a length (four, big-endian), the content. The first frame is the request:

    R  {"argv", "env", "tty"}  run a command; then I (input), E (its end), W (window size) come in, O (output),
                               X (error output) and last Q (exit status) go out
    U  PATH                    from then on this connection is forwarded to the unix socket PATH
    P                          the processes as JSON, [[pid, ticks, [word, ...]], ...]
    K  {"pid", "ticks", "signal"}  send a signal to that process and to no other; for SIGKILL, wait for its end
    B  {"epoch", "entropy"}    turn a copy of a snapshot into a separate machine: set its clock and randomness (hex)

If a connection ends before its command does, the command's process group is killed: the client has a deadline.

veery's own programs are not started by exec but forked from this process, which imported their modules before the
snapshot was taken: in software emulation the imports take seconds each time. Their command lines are still their own.
This module uses only the standard library: it is copied into the image alone, and runs before veery is installed."""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import signal
import struct
import sys
import termios
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

HERE, THERE, PORT = "169.254.31.1", "169.254.31.2", 9
LAN, LINK = "lan0", "link0"  # the taps in the node's namespace: to the lab's network, and to this agent
READY = "veery-agent: ready"
OURS = ("veery", "veeryd", "xm")
_PLACE = Path("/usr/local/bin")
_NEEDED = (
    *(
        "aiohttp",
        "aiohttp.web",
        "argparse",
        "cryptography.x509",
        "http.client",
        "logging.handlers",
        "msgspec",
        "pyroute2",
    ),
    *("qemu.qmp", "rich.console", "rich.progress", "rich.table", "runpy", "ssl", "tomllib", "uuid"),
    *("cryptography.hazmat.primitives.asymmetric.ec", "cryptography.hazmat.primitives.serialization"),
)
_CHUNK = 1 << 16


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    return kind + struct.pack(">I", len(content)) + content


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read the next frame. Raises EOFError at the connection's end."""
    try:
        head = await reader.readexactly(5)
        return head[:1], await reader.readexactly(struct.unpack(">I", head[1:])[0])
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error


def processes() -> list[tuple[int, int, list[str]]]:
    """Return (pid, start time in ticks, words) of every running process that has a command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # the process has just ended
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
                ticks = _ticks(int(folder.name))
                if words != [""] and ticks:
                    found.append((int(folder.name), ticks, words))
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


async def _signal(order: dict[str, Any]) -> None:
    pid, ticks, number = int(order["pid"]), int(order["ticks"]), int(order["signal"])
    if _ticks(pid) != ticks:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    while True:
        if number != signal.SIGKILL or _ticks(pid) != ticks:
            return
        await asyncio.sleep(0.01)


def _born(order: dict[str, Any]) -> None:
    """Set the clock and add new randomness, since copies of one snapshot would otherwise make the same keys and names:
    random(4), RNDADDENTROPY and RNDRESEEDCRNG."""
    entropy = bytes.fromhex(order["entropy"])
    with Path("/dev/urandom").open("wb") as device:
        fcntl.ioctl(device, 0x40085203, struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy)
        fcntl.ioctl(device, 0x5207)
    time.clock_settime(time.CLOCK_REALTIME, float(order["epoch"]))


async def _relay(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, back = await asyncio.open_unix_connection(path)
    try:
        await both_ways((reader, writer), (there, back))
    finally:
        back.close()


async def both_ways(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter], other: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Forward bytes between two connections until both sides have ended, or one breaks."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    with contextlib.suppress(OSError):
        await asyncio.gather(carry(one[0], other[1]), carry(other[0], one[1]))


class _Forked:
    """One of veery's own programs, with the interface of asyncio.subprocess.Process."""

    def __init__(self, order: dict[str, Any], terminal: int) -> None:
        pairs = [] if terminal >= 0 else [os.pipe(), os.pipe(), os.pipe()]
        ends = (terminal,) * 3 if terminal >= 0 else (pairs[0][0], pairs[1][1], pairs[2][1])
        self.pid = os.fork()
        if self.pid == 0:
            _become(order, ends, terminal=terminal >= 0)
        self._handle = os.pidfd_open(self.pid)
        self._pairs = pairs
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    async def open(self) -> None:
        """Open this process's ends of its pipes."""
        if self._pairs:
            (there, into), (out, one), (err, two) = self._pairs
            for number in (there, one, two):
                os.close(number)
            self.stdin = await _writer(into)
            self.stdout, self.stderr = await _reader(out), await _reader(err)

    async def wait(self) -> int:
        """Return its exit status, below 0 for a signal."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(self._handle, _mark, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._handle)
            os.close(self._handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # noqa: ASYNC222 (it has ended)


def _mark(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def _reader(number: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(number, "rb", 0))
    return reader


async def _writer(number: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(number, "wb", 0))
    return asyncio.StreamWriter(transport, protocol, None, loop)


def _become(order: dict[str, Any], ends: tuple[int, int, int], *, terminal: bool) -> NoReturn:
    """Run the program in the forked process, with the same conditions as after exec."""
    status = 1
    try:
        asyncio._set_running_loop(None)
        os.setsid()
        for here, there in zip(ends, (0, 1, 2), strict=True):
            os.dup2(here, there)
        os.closerange(3, 4096)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        program, *words = order["argv"]
        path = str(_PLACE / Path(program).name)
        _named([sys.executable, path, *words])
        os.environ.update(order.get("env", {}))
        sys.argv = [path, *words]
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        random.seed()
        importlib.invalidate_caches()
        importlib.import_module("runpy").run_path(path, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def _named(words: list[str]) -> None:
    """Overwrite this process's command line in proc(5) with `words` (stat's fields 48 and 49)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = "\0".join(words).encode() + b"\0"
    ctypes.memmove(begin, text[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


class _Command:
    """One command and the connection of its client."""

    def __init__(self, order: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._order, self._reader, self._writer = order, reader, writer
        self._master = -1

    async def run(self) -> None:
        """Run the command until it or the connection ends."""
        tty, slave = self._order.get("tty"), -1
        if tty:
            self._master, slave = os.openpty()
            self._size(tty)
        process: asyncio.subprocess.Process | _Forked
        try:
            if Path(self._order["argv"][0]).name in OURS:
                process = _Forked(self._order, slave)
                await process.open()
            else:
                process = await self._start(slave)
        except OSError as error:
            self._send(b"X", f"{self._order['argv'][0]}: {error.strerror}\n".encode())
            self._send(b"Q", b"127")
            return
        finally:
            if slave >= 0:
                os.close(slave)
        await self._attend(process)

    async def _start(self, slave: int) -> asyncio.subprocess.Process:
        ends = asyncio.subprocess.PIPE if slave < 0 else slave
        return await asyncio.create_subprocess_exec(
            *self._order["argv"],
            stdin=ends,
            stdout=ends,
            stderr=ends,
            env={**os.environ, **self._order.get("env", {})},
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if slave >= 0 else None,
        )

    async def _attend(self, process: asyncio.subprocess.Process | _Forked) -> None:
        listening = asyncio.ensure_future(self._listen(process))
        telling = asyncio.ensure_future(self._tell(process))
        await asyncio.wait([listening, telling], return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        listening.cancel()
        await asyncio.gather(listening, telling, return_exceptions=True)
        if self._master >= 0:
            os.close(self._master)

    async def _listen(self, process: asyncio.subprocess.Process | _Forked) -> None:
        """Forward input until the connection ends."""
        with contextlib.suppress(EOFError):
            while True:
                kind, content = await read_frame(self._reader)
                if kind == b"W":
                    self._size(json.loads(content))
                elif self._master >= 0:
                    os.write(self._master, content if kind == b"I" else b"\x04")
                elif process.stdin is not None:
                    with contextlib.suppress(OSError):  # the command no longer reads
                        if kind == b"I":
                            process.stdin.write(content)
                            await process.stdin.drain()
                        else:
                            process.stdin.close()

    async def _tell(self, process: asyncio.subprocess.Process | _Forked) -> None:
        """Send output, then the exit status. If a running child keeps the output open, wait one second for it."""
        if self._master >= 0:
            pumps = [asyncio.ensure_future(self._pump(await _reader(os.dup(self._master)), b"O"))]
        else:
            assert process.stdout is not None and process.stderr is not None
            pumps = [
                asyncio.ensure_future(self._pump(process.stdout, b"O")),
                asyncio.ensure_future(self._pump(process.stderr, b"X")),
            ]
        code = await process.wait()
        _, late = await asyncio.wait(pumps, timeout=1)
        for pump in late:
            pump.cancel()
        self._send(b"Q", str(code if code >= 0 else 128 - code).encode())
        await self._writer.drain()

    async def _pump(self, reader: asyncio.StreamReader, kind: bytes) -> None:
        with contextlib.suppress(OSError):  # a terminal whose other side has closed: EIO
            while data := await reader.read(_CHUNK):
                self._send(kind, data)
                await self._writer.drain()

    def _send(self, kind: bytes, content: bytes) -> None:
        self._writer.write(frame(kind, content))

    def _size(self, size: list[int]) -> None:
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        kind, content = await read_frame(reader)
        if kind == b"R":
            await _Command(json.loads(content), reader, writer).run()
        elif kind == b"U":
            await _relay(content.decode(), reader, writer)
        elif kind == b"P":
            writer.write(frame(b"P", json.dumps(processes()).encode()))
        elif kind == b"K":
            await _signal(json.loads(content))
            writer.write(frame(b"K"))
        elif kind == b"B":
            _born(json.loads(content))
            writer.write(frame(b"B"))
        await writer.drain()
    except (EOFError, OSError):
        pass
    finally:
        writer.close()


async def _main() -> None:
    for name in _NEEDED:
        with contextlib.suppress(ImportError):  # it then fails where it is needed
            importlib.import_module(name)
    gc.freeze()
    server = await asyncio.start_server(_serve, THERE, PORT)
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
