"""The client side of docs/api.md: a small synchronous client over veeryd's unix socket.

It is synchronous and uses the standard library only, because imports take most of a command's start-up time."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from veery.client.address import Address
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError, from_kind
from veery.host import restarting

NODE_HEADER = "X-Veery-Node"
RESTART_S = 30.0  # for a restarting veeryd to listen again
_RETRY_S = 0.1
_KIND_OF_STATUS = {
    400: "refused",
    408: "refused",
    413: "refused",
    403: "refused",
    404: "refused",
    409: "refused",
    504: "unknown",
}


def connect_unix(path: Path, timeout: float) -> socket.socket:
    """Return a stream socket connected to `path`, which may be longer than the 107 bytes of a socket address.

    Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        if len(os.fsencode(path)) < 108:
            sock.connect(str(path))
        else:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_for_restart(path: Path) -> bool:
    """Wait until the veeryd of the socket `path` has restarted, at most RESTART_S. Returns False immediately if it is
    not restarting."""
    ends = time.monotonic() + RESTART_S
    waited = False
    while restarting.under_way(path.parent) and time.monotonic() < ends:
        time.sleep(_RETRY_S)
        waited = True
    return waited


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path, self._seconds = path, timeout

    def connect(self) -> None:
        self.sock = connect_unix(self._path, self._seconds)


def domain_path(domain: str, *rest: str) -> str:
    """Return `/v1/domains/DOMAIN[/REST...]`, quoted."""
    return "/v1/domains/" + "/".join(quote(word, safe="") for word in (domain, *rest))


def request_line(path: str) -> str:
    """Quote the characters of `path` that a request cannot contain. Quoted parts stay as they are."""
    return quote(path, safe="/?&=%+,:;@~!$'()*")


class Client:
    """The client of one veeryd. Each call opens its own connection. A call ends after `deadline` seconds without data.

    Every method raises the error that veeryd answers (Refused, Failed, OutcomeUnknown), and Refused if no veeryd
    listens. If the answer is lost, a query raises Failed, and an order raises OutcomeUnknown."""

    def __init__(self, address: Address, *, deadline: float = 60.0) -> None:
        self.address, self._deadline = address, deadline

    def get(self, path: str, **query: str) -> Any:
        """Send GET `path` and return the JSON of the answer."""
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: object = None, *, deadline: float = 0.0) -> Any:
        """Send POST `path` with JSON `body` and return the JSON of the answer."""
        return self._call("POST", path, {} if body is None else body, deadline)

    def delete(self, path: str, *, deadline: float = 0.0) -> Any:
        """Send DELETE `path` and return the JSON of the answer."""
        return self._call("DELETE", path, None, deadline)

    def stream(self, path: str, body: object = None, *, silence: float = 120.0) -> Iterator[dict[str, Any]]:
        """Order long work. The order is sent when this returns. The iterator yields its events, the last of which is
        {"event": "done", "result": ...}.

        The iterator raises the error of the work, or OutcomeUnknown after `silence` seconds without an event."""
        connection = self._open(silence)
        try:
            self._send(connection, "POST", path, json.dumps({} if body is None else body).encode())
        except BaseException:
            connection.close()
            raise
        return self._events(connection, path)

    def _events(self, connection: _Connection, path: str) -> Iterator[dict[str, Any]]:
        with contextlib.closing(connection):
            response = self._response(connection, "POST", path)
            while line := self._receive("POST", path, response.readline):
                event = json.loads(line)
                if event["event"] == "error":
                    raise _error(event["error"])
                if event["event"] == "alive":
                    continue
                yield event
                if event["event"] == "done":
                    return
        raise OutcomeUnknown(
            f"veeryd ended its answer early (POST {path})", hint="the work may continue; see veeryd's log"
        )

    def upload(self, path: str, chunks: Iterable[bytes], size: int) -> Any:
        """Send PUT `path` with `size` bytes in `chunks`. Raises veeryd's refusal, also in the middle."""
        connection = self._open(self._deadline)
        with contextlib.closing(connection):
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            try:
                connection.request("PUT", request_line(path), body=chunks, headers={**self._headers(), **headers})
            except (BrokenPipeError, ConnectionResetError):
                pass  # veeryd has answered already and reads no more; its answer has the reason
            except OSError as error:
                raise self._lost("PUT", path, error) from error
            return self._answer(connection, "PUT", path)

    # ---- one call
    def _call(self, method: str, path: str, body: object = None, deadline: float = 0.0) -> Any:
        connection = self._open(deadline or self._deadline)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body).encode()
            response = self._ask(connection, method, path, data)
            text = self._receive(method, path, response.read)
            return json.loads(text) if text else {}

    def _headers(self) -> dict[str, str]:
        node = self.address.node
        if not (node.isascii() and (node.isprintable() or not node)):
            raise Refused(f"{node[:60]!a} is not a node name", hint="veery node list shows the names")
        return {NODE_HEADER: node} if node else {}

    def _open(self, deadline: float) -> _Connection:
        connection = _Connection(self.address.socket, deadline)
        try:
            self._connect(connection)
        except PermissionError as error:
            raise Refused(
                f"no permission to use {self.address.socket}",
                hint="run as root, or as a member of the group in api.group",
            ) from error
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise Refused(f"no veeryd answers at {self.address.socket}", hint=self.address.start) from error
        except OSError as error:
            raise Refused(f"cannot reach {self.address.socket}: {error}", hint=self.address.start) from error
        return connection

    def _connect(self, connection: _Connection) -> None:
        try:
            connection.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if not wait_for_restart(self.address.socket):
                raise
            connection.connect()

    def _ask(self, connection: _Connection, method: str, path: str, data: bytes | None) -> http.client.HTTPResponse:
        self._send(connection, method, path, data)
        return self._response(connection, method, path)

    def _send(self, connection: _Connection, method: str, path: str, data: bytes | None) -> None:
        headers = self._headers() | ({"Content-Type": "application/json"} if data is not None else {})
        try:
            connection.request(method, request_line(path), body=data, headers=headers)
        except OSError as error:
            raise self._lost(method, path, error) from error

    def _response(self, connection: _Connection, method: str, path: str) -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = self._receive(method, path, connection.getresponse)
        if response.status >= 400:
            raise _refusal(response.status, self._receive(method, path, response.read))
        return response

    def _answer(self, connection: _Connection, method: str, path: str) -> Any:
        text = self._receive(method, path, self._response(connection, method, path).read)
        return json.loads(text) if text else {}

    def _receive(self, method: str, path: str, read: Any) -> Any:
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(method, path, error) from error

    def _lost(self, method: str, path: str, error: Exception) -> VeeryError:
        silent = isinstance(error, TimeoutError)
        message = f"veeryd {'does not answer' if silent else 'ended the connection'} ({method} {path})"
        if method == "GET":
            return Failed(message, hint="see veeryd's log")
        return OutcomeUnknown(message, hint="the order may or may not be done; see veery list, and veeryd's log")


def _refusal(status: int, body: bytes) -> VeeryError:
    try:
        return _error(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip().splitlines()
        line = text[0][:200] if text else "no message"
        return from_kind(_KIND_OF_STATUS.get(status, "failed"), f"veeryd answers {status}: {line}")


def _error(error: dict[str, Any]) -> VeeryError:
    return from_kind(str(error["kind"]), str(error["message"]), str(error.get("hint", "")))
