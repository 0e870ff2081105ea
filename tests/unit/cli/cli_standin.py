"""A stand-in for veeryd: HTTP over a unix socket, answers as docs/api.md has them. The remote end, not our code."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ZERO = {
    "name": "Domain-0",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "domid": 0,
    "state": "running",
    "memory": 1023,
    "vcpus": 2,
    "cpu_seconds": 710.1,
    "started": 1000.0,
    "pid": 0,
}
BUSYBOX = {
    "name": "busybox",
    "uuid": "8e0eb2c5-6d5c-4a0b-9a0a-111111111111",
    "domid": 3,
    "state": "blocked",
    "memory": 512,
    "vcpus": 1,
    "cpu_seconds": 2.34,
    "started": 2000.0,
    "pid": 4242,
    "reason": "",
}
CRASHED = {**BUSYBOX, "name": "wren", "uuid": "8e0eb2c5-6d5c-4a0b-9a0a-222222222222", "domid": 4, "state": "crashed"}
DISK = {"spec": {"vdev": "xvda", "volume": "root"}, "source": {"portal": "172.16.31.3:3260", "iqn": "i:root", "lun": 1}}
VIF = {"spec": {"bridge": "xenbr0", "mac": "00:16:3e:28:bb:f6"}, "device": "vif3.0"}
HOST = {
    "host": "test1",
    "release": "6.1.0",
    "version": "#1 SMP",
    "machine": "x86_64",
    "cpus": 2,
    "cpu_mhz": 2272.0,
    "cpu_model": "Example CPU",
    "memory_total": 2047,
    "memory_free": 998,
    "accelerator": "tcg",
    "software": {"qemu": "10.0.2"},
    "facts": {},
}
NODE = {
    "name": "test1",
    "address": "172.16.31.1",
    "roles": ["hypervisor", "voter"],
    "driver": "qemu",
    "api_port": 8001,
    "relocation_address": "",
    "relocation_port": 8002,
    "initiator": "iqn.2026-01.example:test1",
    "version": "0.1.0",
}
VOLUME = {
    "name": "root",
    "size": 1 << 30,
    "node": "stor",
    "backing": "file",
    "path": "/var/lib/veery/volumes/root",
    "iqn": "iqn.2026-01.example:root",
    "tid": 1,
    "portal": "172.16.31.3:3260",
    "ready": True,
    "created": 0.0,
}
REPORT = {
    "id": "m1",
    "domain": "busybox",
    "source": "test1",
    "target": "test2",
    "state": "done",
    "phase": "CONFIRM",
    "started": 0.0,
    "total_ms": 310.0,
    "downtime_ms": 14.2,
    "bytes": 137579003,
    "rounds": 3,
    "dirty_rate": 0.0,
    "phases": {"BEGIN": 1.0, "COPY": 200.5},
    "reason": "",
    "hint": "",
    "runs_on": "test2",
}


@dataclass(frozen=True)
class Told:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Told]


def refused(message: str, hint: str = "") -> tuple[int, Any]:
    """An answer: refused."""
    return 409, {"error": {"kind": "refused", "message": message, "hint": hint}}


class Lines(list[Any]):
    """An answer in lines; a number among them is seconds to wait, a callable is called and waited for."""


Answer = Any


class StandIn:
    """`routes` maps "METHOD /path" to an answer: a value (200), (status, value), Lines, or a function of the request's
    JSON (or bytes) giving one of those. `seen` is every request: (method, path, headers, body)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.routes: dict[str, Answer] = {
            "GET /v1/domains": {"node": "test1", "domains": [ZERO, BUSYBOX]},
            "GET /v1/domains/busybox": {"reading": BUSYBOX, "spec": {"name": "busybox"}, "owner": None},
            "GET /v1/host": {"node": NODE, "host": HOST, "domains": 1},
            "GET /v1/domains/3/disks": [DISK],
            "GET /v1/domains/3/vifs": [VIF],
            "GET /v1/domains/3/vcpus": [{"number": 0, "cpu": 1, "seconds": 2.34}],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(path), self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        self.path.unlink(missing_ok=True)

    def orders(self) -> list[tuple[str, str, Any]]:
        """(method, path, JSON) of every request that was no GET."""
        return [
            (method, path, json.loads(body) if body[:1] == b"{" else body)
            for method, path, _, body in self.seen
            if method != "GET"
        ]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = True

    def __init__(self, path: str, owner: StandIn) -> None:
        super().__init__(path, _Handler)
        self.owner = owner

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def _serve(self) -> None:
        stand = self.server.owner
        route = f"{self.command} {unquote(self.path)}"
        answer = stand.routes.get(route, refused(f"no route {route}"))
        early = isinstance(answer, tuple) and self.command == "PUT"
        body = b"" if early else self._body()
        stand.seen.append((self.command, self.path, dict(self.headers), body))
        if callable(answer):
            answer = answer(body)
        status, value = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(value, Lines):
            self._lines(value)
            return
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if early:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _lines(self, lines: Lines) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            if isinstance(line, (int, float)):
                time.sleep(line)
            elif callable(line):
                line()
            else:
                data = json.dumps(line).encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_DELETE = do_PUT = _serve  # noqa: N815 (http.server looks for these names)
