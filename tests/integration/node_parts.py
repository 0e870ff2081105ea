"""A node of the lab as a user has it: its command line, its terminals, and what is left on it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import http.client
import json
import os
import pty
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from veery.host import tls
from veery.host.process import start_ticks
from veery.host.run import Result
from veery.lab import faults
from veery.lab.guest import Guest
from veery.lab.plan import NAMESPACES
from veery.lab.services import Lab
from veery.lab.shell import doubled

T = TypeVar("T")
LEAVE = "\x1d"  # Ctrl-]
PROMPT = r"[~/] # "


def aside(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a loop of its own: for fixtures that outlive a test's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work)).result()


class Terminal:
    """A program on a terminal of its own: what it shows is `seen`, what is typed goes to it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process, self._master = process, master
        self.seen, self._place = "", 0
        self._news = asyncio.Event()
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.seen += data.decode(errors="replace").replace("\r", "").replace("\x1b[6n", "")
        self._news.set()

    async def expect(self, pattern: str, *, within: float = 90.0) -> re.Match[str]:
        """Wait until `pattern` is seen behind what was expected before; go on behind it."""
        try:
            async with asyncio.timeout(within):
                while not (match := re.compile(pattern, re.MULTILINE).search(self.seen, self._place)):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{pattern!r} was not seen in:\n{self.seen[self._place :][-2000:]}") from None
        self._place = match.end()
        return match

    def type(self, text: str) -> None:
        """Type `text`."""
        os.write(self._master, text.encode())

    async def run(self, command: str, *, within: float = 60.0) -> str:
        """Run a command in the guest's shell; what it printed. Fails when its status is not 0."""
        mark = secrets.token_hex(2)
        self.type(f"echo @''{mark}; {command}; echo $?=''{mark}\n")  # its echo has the quotes, and is no mark
        await self.expect(rf"@{doubled(mark)}\n", within=within)
        begin = self._place
        match = await self.expect(rf"(\d+)={{1,2}}{doubled(mark)}\n", within=within)
        printed = self.seen[begin : match.start()].strip()
        assert int(match[1]) == 0, f"{command}: exit {match[1]}: {printed}"
        return printed

    async def leave(self) -> None:
        """Ctrl-]."""
        self.type(LEAVE)
        assert await self.ended() == 0

    async def ended(self, *, within: float = 60.0) -> int:
        """Wait for the program's end; its status."""
        async with asyncio.timeout(within):
            return await self.process.wait()

    async def close(self) -> None:
        """End it if it has not ended."""
        asyncio.get_running_loop().remove_reader(self._master)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        os.close(self._master)


@asynccontextmanager
async def terminal(lab: Lab, node: str, *argv: str | Path) -> AsyncIterator[Terminal]:
    """A program on `node`, on a terminal, for the while."""
    master, slave = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *map(str, lab.enter(node, argv)),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, **lab.environ(node)},
            start_new_session=True,
        )
    finally:
        os.close(slave)
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        await shown.close()


@dataclass(frozen=True)
class Node:
    """The command line on one node of the lab, and what can be seen there."""

    lab: Lab
    name: str

    # ---- orders
    async def veery(self, *words: str | Path, code: int = 0, stdin: bytes | None = None, within: float = 90.0) -> str:
        """Run `veery WORDS...`: what it printed. Fails when its status is not `code`."""
        result = await self.result(*words, stdin=stdin, within=within)
        assert result.code == code, f"veery {words}: exit {result.code}\n{result.out}\n{result.err}"
        return result.out

    async def result(self, *words: str | Path, stdin: bytes | None = None, within: float = 90.0) -> Result:
        """Run `veery WORDS...`, whatever comes of it."""
        return await self.lab.veery(self.name, *map(str, words), check=False, stdin=stdin, deadline=within)

    async def beyond(self, node: str, *words: str | Path, stdin: bytes | None = None, within: float = 90.0) -> Result:
        """Run `veery --node NODE WORDS...` here, so that this node's daemon sends it on, as outside a lab."""
        argv = ["env", "-u", "VEERY_LAB", "veery", "--node", node, *words]
        return await self.lab.run(self.name, argv, check=False, stdin=stdin, deadline=within)

    async def refused(self, *words: str | Path, code: int = 1, within: float = 90.0) -> str:
        """Run what must end in one line and a hint; both, as printed."""
        result = await self.result(*words, within=within)
        assert result.code == code, f"veery {words}: exit {result.code}\n{result.out}\n{result.err}"
        lines = result.err.splitlines()
        assert len(lines) == 2, result.err
        assert lines[0].startswith("veery: ")
        assert lines[1].startswith("  hint: ")
        assert len(lines[0]) < 250
        assert not re.search(r"Error\b|[Ee]rrno|Traceback|internal", result.err), result.err
        return result.err

    async def json(self, *words: str | Path) -> Any:
        """What `veery WORDS...` prints, as JSON."""
        return json.loads(await self.veery(*words))

    # ---- observations
    async def domains(self) -> dict[str, dict[str, Any]]:
        """The domains here by name, without the machine itself; from the API, since it is asked again and again."""
        answer = await asyncio.to_thread(self.lab.client(self.name).get, "/v1/domains")
        return {row["name"]: row for row in answer["domains"] if row["domid"]}

    async def domain(self, name: str) -> dict[str, Any]:
        """One of them; {} when it is not here."""
        return (await self.domains()).get(name, {})

    async def taps(self) -> set[str]:
        """The taps of the node."""
        shown = (await self.lab.run(self.name, ["ip", "-o", "link", "show", "type", "tun"])).out
        return {row.split(":")[1].strip() for row in shown.splitlines()}

    def qemus(self) -> set[int]:
        """The pids of the QEMUs of the node."""
        return {one.process.pid for one in self.lab.members(self.name) if one.program.startswith("qemu-system")}

    async def traces(self) -> dict[str, Any]:
        """All that a domain leaves while it runs: on this node, and in the store."""
        homes = (self.lab.plan.home(self.name) / "run/domains").glob("[0-9]*")
        found = {"taps": await self.taps(), "qemus": self.qemus(), "homes": {path.name for path in homes}}
        owners, records = await self.store()
        return {**found, "owners": owners, "records": records}

    async def store(self) -> tuple[dict[str, str], list[str]]:
        """Owner keys (domain: node) and the names of the domains' records, by etcd itself."""

        def read() -> tuple[dict[str, str], list[str]]:
            owners = {name: str(value["node"]) for name, value in _scan(self.lab, "owner/").items()}
            return owners, sorted(_scan(self.lab, "domain/"))

        return await asyncio.to_thread(_inside, NAMESPACES / self.lab.plan.namespace("stor"), read)

    async def targets(self) -> list[dict[str, Any]]:
        """What tgtd serves."""
        found: list[dict[str, Any]] = (await self.json("target", "list", "--json"))["stor"]
        return found

    # ---- terminals
    def console(self, name: str) -> contextlib.AbstractAsyncContextManager[Terminal]:
        """`veery console NAME` on a terminal."""
        return terminal(self.lab, self.name, "veery", "console", name)

    @asynccontextmanager
    async def shell(self, name: str) -> AsyncIterator[Terminal]:
        """The shell on the domain's console."""
        async with self.console(name) as shown:
            await shown.expect(PROMPT)  # in the backlog, which is there from the boot on
            yield shown

    async def booted(self, name: str) -> None:
        """Return once the shell of a new domain answers."""
        async with self.shell(name):
            pass

    async def gone(self, name: str) -> None:
        """Wait until the domain is not here."""

        async def absent() -> bool:
            return name not in await self.domains()

        await until(absent, f"{name} gone from {self.name}")


async def scan(lab: Lab, prefix: str) -> dict[str, Any]:
    """What stands in the store under `prefix`, as etcd on the storage node tells it."""
    return await asyncio.to_thread(_inside, NAMESPACES / lab.plan.namespace("stor"), lambda: _scan(lab, prefix))


async def write(lab: Lab, key: str, value: bytes | None) -> None:
    """Put `value` under `key` of the store, behind veery's back; None takes the key away."""
    place = NAMESPACES / lab.plan.namespace("stor")
    body = {"key": f"/veery/{key}".encode(), **({"value": value} if value is not None else {})}
    path = "/v3/kv/put" if value is not None else "/v3/kv/deleterange"
    await asyncio.to_thread(_inside, place, lambda: _ask(lab, path, body))


def _inside(namespace: Path, work: Callable[[], T]) -> T:
    """Do `work` in a network namespace (setns(2)), in a thread of its own."""

    def entered() -> T:
        with namespace.open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()


def _scan(lab: Lab, prefix: str) -> dict[str, Any]:
    """What stands in etcd under `prefix` (its JSON gateway), without the prefix."""
    begin = f"/veery/{prefix}".encode()
    answer = _ask(lab, "/v3/kv/range", {"key": begin, "range_end": begin[:-1] + bytes([begin[-1] + 1])})
    found = ((base64.b64decode(row["key"]), base64.b64decode(row["value"])) for row in answer.get("kvs", ()))
    return {key.removeprefix(begin).decode(): json.loads(value) for key, value in found}


def _ask(lab: Lab, path: str, body: dict[str, bytes]) -> Any:
    """One request to etcd's JSON gateway on the storage node, from within its network namespace."""
    context = tls.client_context(lab.plan.home("stor") / "lib/tls")
    connection = http.client.HTTPSConnection(lab.plan.node("stor").address, 2379, context=context, timeout=20)
    with contextlib.closing(connection):
        text = json.dumps({key: base64.b64encode(value).decode() for key, value in body.items()})
        connection.request("POST", path, text)
        answer = connection.getresponse()
        told = json.loads(answer.read())
    assert answer.status == 200, told
    return told


async def until(wanted: Callable[[], Awaitable[T]], what: str, *, within: float = 60.0) -> T:
    """Await `wanted()` again and again until what it gives is true; that."""
    ends = time.monotonic() + within
    while not (value := await wanted()):
        assert time.monotonic() < ends, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.1)
    return value


def alive(pid: int) -> bool:
    """Whether the process runs."""
    return start_ticks(pid) != 0


@dataclass(frozen=True)
class Workshop:
    """Makes domain files, and the volumes that they name."""

    lab: Lab
    guest: Guest
    ramdisk: Path
    folder: Path

    def file(self, name: str, /, *, volume: str = "", **keys: object) -> Path:
        """A domain file; `keys` beside the usual ones, or instead of them (None: left out)."""
        known: dict[str, object] = {
            "name": name,
            "kernel": str(self.guest.kernel),
            "ramdisk": str(self.ramdisk),
            "memory": 128,
            "disk": [f"volume={volume or name},xvda,w"],
            "root": "/dev/xvda rw",
            "extra": "quiet",
            "vif": ["bridge=xenbr0"],
            **keys,
        }
        path = self.folder / name
        rows = [f"{key} = {json.dumps(value)}" for key, value in known.items() if value is not None]
        path.write_text("\n".join(rows) + "\n")
        return path

    async def volume(self, name: str, *, size: str = "32M") -> None:
        """A volume with the busybox image."""
        await self.lab.veery("test1", "image", "build", "busybox", "--volume", name, "--size", size, deadline=180)

    async def clear(self, *names: str) -> None:
        """End and forget the domains and volumes of these names, wherever they are."""
        for node in ("test1", "test2"):
            await self.lab.veery(node, "list")  # it answers
            for name in names:
                await self.lab.veery(node, "destroy", name, check=False)
        for name in names:
            await self.lab.veery("test1", "delete", name, check=False)
            await self.lab.veery("test1", "volume", "delete", name, check=False)


@asynccontextmanager
async def set_up(lab: Lab, node: str, change: Callable[[str], str]) -> AsyncIterator[None]:
    """The node's daemon with changed settings, while this lasts."""
    path = lab.plan.settings(node)
    before = path.read_text()
    try:
        for text in (change(before), before):
            path.write_text(text)
            await faults.kill(lab, node, "veeryd")
            await lab.start(node)
            if text != before:
                yield
    finally:
        path.write_text(before)
