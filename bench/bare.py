"""A move by hand: the least that a script over QMP can do, with the driver's own command line and settings.

It decides nothing and remembers nothing: tap, target QEMU, migrate, wait, source gone. Everything blocks; it is
to be called in a thread."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veery.errors import Failed
from veery.hypervisor.qemu.argv import Wiring, build_argv
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.devices import secret, secret_id
from veery.hypervisor.qemu.migration import UNLIMITED, credentials
from veery.hypervisor.qemu.transfer import orders
from veery.model.domain import DomainSpec
from veery.model.move import MoveSettings
from veery.model.volume import AttachedVif, Attachments

DEADLINE = 90.0
PORT = 4444  # on the target, where nothing else listens; several that move at once have one each


class Qmp:
    """One QMP connection, spoken line by line."""

    def __init__(self, path: Path) -> None:
        """Connect; the socket listens already."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._data = b""
        self.events: list[dict[str, Any]] = []
        self._message(DEADLINE)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; its answer. Raises Failed with QEMU's words."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._message(DEADLINE)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise Failed(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event that is `wanted`."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if wanted(event):
                    return event
            message = self._message(DEADLINE)
            if "event" in message:
                self.events.append(message)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _message(self, seconds: float) -> dict[str, Any]:
        ends = time.monotonic() + seconds
        while b"\n" not in self._data:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise Failed("QEMU does not answer")
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise Failed("QEMU hung up")
            self._data += piece
        line, _, self._data = self._data.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


@dataclass(frozen=True, slots=True)
class Host:
    """Where a QEMU runs: a network namespace, its address, and its certificates."""

    name: str
    namespace: str
    address: str
    tls: Path


@dataclass(slots=True)
class Running:
    """One QEMU of the domain."""

    host: Host
    process: subprocess.Popen[bytes]
    qmp: Qmp
    tap: str
    folder: Path

    def end(self) -> None:
        """Kill it, see it off, take its tap away."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        self.qmp.close()
        _ip(self.host, f"link del {self.tap}")
        shutil.rmtree(self.folder)


@dataclass(slots=True)
class Bare:
    """One domain run by hand. `attachments` maps a host's name to the disks as that host reaches them."""

    binary: str
    spec: DomainSpec
    build: Build
    attachments: dict[str, Attachments]
    folder: Path
    numbers: Iterator[int]
    port: int = PORT
    here: Running | None = None

    @classmethod
    def of(
        cls,
        binary: str,
        spec: DomainSpec,
        build: Build,
        attachments: dict[str, Attachments],
        folder: Path,
        *,
        port: int = PORT,
    ) -> Bare:
        """A domain that does not run yet; `folder` for its sockets and logs."""
        return cls(binary, spec, build, attachments, folder, itertools.count(1), port)

    def start(self, host: Host) -> None:
        """Boot it on `host`."""
        self.here = self._spawn(host, incoming=False)

    def stop(self) -> None:
        """End it; succeeds if it does not run."""
        running, self.here = self.here, None
        if running is not None:
            running.end()

    def type(self, line: str) -> None:
        """Type `line` into its console, as soon as a shell answers there. Raises Failed after DEADLINE."""
        assert self.here is not None
        type_into(self.here.folder / "port", self.here.folder / "console.log", line)

    def move(self, target: Host, *, tls: bool) -> dict[str, float]:
        """Move it; milliseconds: "total" and its parts "spawn", "copy" and "end"; "downtime" as QEMU tells it; and
        "bytes" sent."""
        source = self.here
        assert source is not None
        begun = time.perf_counter()
        arrived = self._spawn(target, incoming=True)
        spawned = time.perf_counter()
        try:
            info = _copy(source, arrived, self.port, tls=tls)
        except BaseException:
            arrived.end()
            raise
        copied = time.perf_counter()
        source.end()
        ended = time.perf_counter()
        self.here = arrived
        return {
            "total": (ended - begun) * 1e3,
            "spawn": (spawned - begun) * 1e3,
            "copy": (copied - spawned) * 1e3,
            "end": (ended - copied) * 1e3,
            "downtime": float(info["downtime"]),
            "bytes": float(info["ram"]["transferred"]),
        }

    def _spawn(self, host: Host, *, incoming: bool) -> Running:
        number = next(self.numbers)
        folder = self.folder / str(number)
        folder.mkdir(parents=True)
        tap = f"bare{self.port}x{number}"
        _ip(host, f"tuntap add {tap} mode tap vnet_hdr", f"link set {tap} master xenbr0 up")
        attachments = self.attachments[host.name]
        vifs = tuple(AttachedVif(spec=vif, device=tap) for vif in self.spec.vifs)
        attachments = replace(attachments, vifs=vifs)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(_listen(folder / name)) for name in ("qmp0", "qmp1", "port", "agent")]
            secrets = {
                secret_id(disk): stack.enter_context(_in_memory(secret(disk)))
                for disk in attachments.disks
                if secret(disk)
            }
            qmp0, qmp1, port, agent = (each.fileno() for each in sockets)
            log_file = folder / "console.log"
            wiring = Wiring(monitors=(qmp0, qmp1), console=port, console_log=log_file, secrets=secrets, agent=agent)
            words = build_argv(self.binary, self.spec, attachments, self.build, wiring, incoming=incoming)
            words.remove("-S")  # QEMU itself lets the domain go: nothing is quicker
            with (folder / "qemu.log").open("wb") as log:
                process = subprocess.Popen(
                    ["nsenter", f"--net=/run/netns/{host.namespace}", "--", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(qmp0, qmp1, port, agent, *secrets.values()),
                    start_new_session=True,
                )
        try:
            return Running(host, process, Qmp(folder / "qmp0"), tap, folder)
        except (OSError, Failed) as error:
            process.kill()
            process.wait()
            _ip(host, f"link del {tap}")
            raise Failed(f"bare QEMU: {(folder / 'qemu.log').read_text()[-300:]}") from error


def type_into(port: Path, log: Path, line: str) -> None:
    """Type `line` into the console whose socket is `port`, as soon as a shell answers there; what it says is also in
    `log`. Raises Failed after DEADLINE."""
    ends = time.monotonic() + DEADLINE
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(port))
        # What is typed while the kernel sets its serial port up can leave the port silent for ever.
        while b"# " not in log.read_bytes()[-9:] and time.monotonic() < ends - DEADLINE / 2:
            time.sleep(0.1)
        while b"\nready" not in log.read_bytes():
            if time.monotonic() > ends:
                raise Failed(f"no shell on the console: {log.read_text(errors='replace')[-300:]}")
            console.sendall(b"echo re''ady\n")
            time.sleep(0.5)
        console.sendall(f"{line}\n".encode())
        time.sleep(0.5)


def _copy(source: Running, arrived: Running, port: int, *, tls: bool) -> dict[str, Any]:
    """Migrate until the domain runs on the other side; what QEMU tells of it. Raises Failed."""
    for running, endpoint in ((arrived, "server"), (source, "client")):
        _set_up(running.qmp, running.host.tls if tls else None, endpoint, arrived.host.name)
    source.qmp.events.clear()
    address = {"transport": "socket", "type": "inet", "host": arrived.host.address, "port": str(port)}
    channels = [{"channel-type": "main", "addr": address}]
    arrived.qmp.execute("migrate-incoming", channels=channels)
    source.qmp.execute("migrate", channels=channels)
    status = source.qmp.wait(_over)["data"]["status"]
    if status != "completed":
        raise Failed(f"a move by hand ended as {status}")
    if arrived.qmp.execute("query-status")["status"] != "running":
        arrived.qmp.wait(lambda event: event["event"] == "RESUME")
    info: dict[str, Any] = source.qmp.execute("query-migrate")
    return info


def _set_up(qmp: Qmp, tls: Path | None, endpoint: str, target: str) -> None:
    """The driver's own capabilities and parameters."""
    parameters: dict[str, Any] = {"tls_creds": "", "tls_hostname": ""}
    if tls is not None:
        told = qmp.execute("query-version")["qemu"]
        made = credentials(tls, endpoint, (told["major"], told["minor"]))
        qmp.execute("object-add", **made)
        parameters = {"tls_creds": made["id"], "tls_hostname": target if endpoint == "client" else ""}
    if endpoint == "client":
        parameters |= {"max_bandwidth": UNLIMITED, "downtime_limit": MoveSettings().downtime}
    for command, arguments in orders(return_path=True, **parameters):
        qmp.execute(command, **arguments)


def _over(event: dict[str, Any]) -> bool:
    return event["event"] == "MIGRATION" and event["data"]["status"] in {"completed", "failed", "cancelled"}


def _ip(host: Host, *lines: str) -> None:
    """ip(8) inside the host, all lines in one go."""
    subprocess.run(
        ["ip", "-netns", host.namespace, "-batch", "-"],
        input="".join(f"{line}\n" for line in lines).encode(),
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[int]:
    handle = os.memfd_create("secret")
    try:
        os.write(handle, text.encode())
        yield handle
    finally:
        os.close(handle)
